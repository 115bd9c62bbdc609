"""Connect this process to the fleet's Ray head."""

import logging
import os
import time
from typing import Any, cast

import ray
import structlog
from ray import _raylet  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]

from fleet.ops.head import Head

log = structlog.get_logger(__name__)
_AGAIN_AFTER_S = (1.0, 3.0)


def join_head(head: Head, namespace: str) -> None:
    """`ray.init` with the head's own settings and token, whenever Ray was imported."""
    os.environ.update(head.environment)
    # Ray reads its settings when it is imported, and a token once; without this it would send none, or another head's.
    cast(Any, _raylet).Config.initialize("")
    cast(Any, _raylet).AuthenticationTokenLoader.instance().reset_cache()
    for delay_s in (*_AGAIN_AFTER_S, None):
        try:
            ray.init(address=head.address, namespace=namespace, log_to_driver=False, logging_level=logging.WARNING)
        except ConnectionError as error:  # also where the head is only too busy to answer in time
            if delay_s is None:
                raise
            log.warning("Ray's head did not answer, trying again", cause=repr(error.__cause__), delay_s=delay_s)
            time.sleep(delay_s)
        else:
            return
