"""Connect this process to the fleet's Ray head."""

import logging
import os
from typing import Any, cast

import ray
from ray import _raylet  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]

from fleet.ops.head import Head


def join_head(head: Head, namespace: str) -> None:
    """`ray.init` with the head's own settings and token, whenever Ray was imported."""
    os.environ.update(head.environment)
    # Ray reads its settings when it is imported, and a token once; without this it would send none, or another head's.
    cast(Any, _raylet).Config.initialize("")
    cast(Any, _raylet).AuthenticationTokenLoader.instance().reset_cache()
    ray.init(address=head.address, namespace=namespace, log_to_driver=False, logging_level=logging.WARNING)
