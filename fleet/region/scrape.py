"""The fleet's actors as a scrape sees them: those that live are asked, none is made."""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, cast

import ray
import ray.util
import structlog
from prometheus_client import Metric
from ray.exceptions import RayError

from fleet.errors import Unavailable
from fleet.ray_calls import ray_call
from fleet.region.names import NAMESPACE

log = structlog.get_logger(__name__)

ANSWER_S = 2.0
FIND_S = 5.0


class ActorScrape:
    """One per replica and kind of actor (`fleet.telemetry.scrape.Actors`). `names`: region or shard -> actor name."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._handles: dict[str, Any] = {}

    async def metrics(self, expected: Collection[str]) -> dict[str, list[Metric] | None]:
        """What each counts; None if it does not answer, or is expected and not there."""
        try:
            handles = await ray_call("which actors there are", self._find, FIND_S)
        except Unavailable as error:  # nor does any of Ray's actors answer, as far as can be told
            log.warning("actors_not_found", error=error.detail)
            return dict.fromkeys([*expected, *self._handles])
        families = await asyncio.gather(*(self._ask(key, handle) for key, handle in handles.items()))
        found = dict(zip(handles, families, strict=True))
        for key, answer in found.items():
            if answer is None:
                self._handles.pop(key, None)  # it may be another actor next time
        return {**dict.fromkeys(expected), **found}

    def _find(self) -> dict[str, Any]:
        actors: list[Any] = ray.util.list_named_actors(all_namespaces=True)
        there = {actor["name"] for actor in actors if actor["namespace"] == NAMESPACE}
        for key, name in self._names.items():
            if name not in there:
                self._handles.pop(key, None)
            elif key not in self._handles:
                try:
                    self._handles[key] = ray.get_actor(name, namespace=NAMESPACE)
                except ValueError:  # it ended meanwhile
                    continue
        return dict(self._handles)

    async def _ask(self, key: str, handle: Any) -> list[Metric] | None:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await handle.metrics.remote()
        except (RayError, TimeoutError) as error:
            log.warning("actor not scraped", actor=self._names[key], error=repr(error))
            return None


def ray_targets() -> list[dict[str, Any]]:
    """Where Ray's own metrics are, one target a node, in the shape of Prometheus' HTTP service discovery.

    Ray writes a file of this shape only with its dashboard, which the fleet does not run.
    """
    nodes = cast(list[dict[str, Any]], ray.nodes())
    addresses = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes if node["Alive"]]
    return [{"targets": sorted(addresses), "labels": {"job": "ray"}}]
