"""Where the counts are, and how replicas on other nodes reach them."""

import asyncio
from typing import Any, cast

import ray

from fleet.limits.leases import Ask, LeasedWindows
from fleet.limits.limiter import Windows
from fleet.limits.windows import SharedWindows, Taken, counts_folder
from fleet.ray_calls import ray_call
from fleet.region.head_actor import on_head
from fleet.region.names import HEAD
from fleet.settings import FleetSettings, get_settings

_ASK_S = 2.0


@ray.remote
class LimitDoor:
    """The counts of the head node, for others."""

    async def __init__(self) -> None:
        self._windows = SharedWindows(counts_folder(get_settings().home) / "keys")

    async def take(self, asks: list[Ask]) -> list[Taken]:
        return [self._windows.take(*ask) for ask in asks]


def windows_of_this_node(settings: FleetSettings) -> Windows:
    """The counts themselves on the head, else leases of them."""
    own = SharedWindows(counts_folder(settings.home) / "keys")
    here = ray.get_runtime_context().get_node_id()
    nodes = cast("list[dict[str, Any]]", ray.nodes())
    if any(node["NodeID"] == here and HEAD in node["Resources"] for node in nodes):
        return own
    return LeasedWindows(_Door().ask, own)


class _Door:
    def __init__(self) -> None:
        self._actor: Any = None

    async def ask(self, asks: list[Ask]) -> list[Taken]:
        if self._actor is None:
            self._actor = await ray_call("the counts of limits", _door, _ASK_S)
        async with asyncio.timeout(_ASK_S):
            return await self._actor.take.remote(asks)


def _door() -> Any:
    return on_head(LimitDoor, "limits", repeats=False)  # a count that may have been taken is not taken again
