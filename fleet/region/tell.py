"""A word to every region manager that lives, without waiting for an answer and without making one."""

from typing import Any, cast

import ray
import ray.util
import structlog

from fleet.region.names import MANAGER_PREFIX, NAMESPACE

log = structlog.get_logger(__name__)


def tell_regions(method: str, *arguments: object) -> None:
    """Call the method of each. What does not arrive is found out by the managers' own timers."""
    try:
        named: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)  # pyright: ignore[reportAssignmentType]
    except Exception as error:
        log.warning("regions_not_listed", method=method, error=repr(error))
        return
    for entry in named:
        if entry["namespace"] != NAMESPACE or not entry["name"].startswith(MANAGER_PREFIX):
            continue
        try:
            getattr(cast(Any, ray.get_actor(entry["name"], namespace=NAMESPACE)), method).remote(*arguments)
        except Exception as error:  # it may have ended meanwhile, or Ray's head may be away
            log.warning("a region was not told", region=entry["name"], method=method, error=repr(error))
