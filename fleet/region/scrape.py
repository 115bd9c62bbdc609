"""The region managers as a scrape sees them: those that live are asked, none is made."""

import asyncio
from collections.abc import Collection
from typing import Any, cast

import ray
import ray.util
import structlog
from prometheus_client import Metric
from ray.exceptions import RayError

from fleet.catalog import load_catalog
from fleet.region.names import NAMESPACE, manager_name

log = structlog.get_logger(__name__)

ANSWER_S = 2.0


class ManagerScrape:
    """One per replica (`fleet.telemetry.scrape.Managers`)."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}

    async def metrics(self, expected: Collection[str]) -> dict[str, list[Metric] | None]:
        """By region: what its manager counts; None if it does not answer, or is expected and not there."""
        handles = await asyncio.to_thread(self._find)
        families = await asyncio.gather(*(_ask(region, handle) for region, handle in handles.items()))
        found = dict(zip(handles, families, strict=True))
        for region, answer in found.items():
            if answer is None:
                self._handles.pop(region, None)  # it may be another actor next time
        return {**dict.fromkeys(expected), **found}

    def _find(self) -> dict[str, Any]:
        actors: list[Any] = ray.util.list_named_actors(all_namespaces=True)
        there = {actor["name"] for actor in actors if actor["namespace"] == NAMESPACE}
        for region in load_catalog().regions:
            name = manager_name(region)
            if name not in there:
                self._handles.pop(region, None)
            elif region not in self._handles:
                try:
                    self._handles[region] = ray.get_actor(name, namespace=NAMESPACE)
                except ValueError:  # it ended meanwhile
                    continue
        return dict(self._handles)


async def _ask(region: str, handle: Any) -> list[Metric] | None:
    try:
        async with asyncio.timeout(ANSWER_S):
            return await handle.metrics.remote()
    except (RayError, TimeoutError) as error:
        log.warning("region not scraped", region=region, error=repr(error))
        return None


def ray_targets() -> list[dict[str, Any]]:
    """Where Ray's own metrics are, one target a node, in the shape of Prometheus' HTTP service discovery.

    Ray writes a file of this shape only with its dashboard, which the fleet does not run.
    """
    nodes = cast(list[dict[str, Any]], ray.nodes())
    addresses = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes if node["Alive"]]
    return [{"targets": sorted(addresses), "labels": {"job": "ray"}}]
