"""Connect this process to the fleet's Ray head."""

import logging
import os
from typing import Any, cast

import ray
from ray import _raylet  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
from ray._private import ray_constants

from fleet.ops.head import CLUSTER, Head


def join_head(head: Head, namespace: str) -> None:
    """`ray.init` with the head's own settings and token, whenever Ray was imported."""
    os.environ.update(head.environment)
    # Ray reads its settings when it is imported, and a token once; without this it would send none, or another head's.
    cast(Any, _raylet).Config.initialize("")
    cast(Any, _raylet).AuthenticationTokenLoader.instance().reset_cache()
    # Whether 127.0.0.1 means itself (`head.CLUSTER`).
    ray_constants.ENABLE_RAY_CLUSTER = head.environment.get(CLUSTER, "1") == "1"
    ray.init(address=head.address, namespace=namespace, log_to_driver=False, logging_level=logging.WARNING)
