"""Builds are on a node before its servers come: which ones, told to which node, and for how long servers wait for it.

A new node fetches the builds that are likely to be asked for next; servers of those wait for it up to `_WAIT_S`, all
others may be placed there at once. Later, builds that become popular are fetched too, one at a time, and nobody waits.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable

import structlog

from fleet.background import Background
from fleet.errors import FleetError
from fleet.node.runtime import BuildRef, LaunchFailed
from fleet.region.leases import Leases
from fleet.region.link import Link
from fleet.times import now_ms

log = structlog.get_logger(__name__)

MOST_BUILDS = 8
_WAIT_S = 90.0
_FETCH_S = 600.0
_AGAIN_MS = 600_000


class Preparation:
    """`favourites()`: builds of the region's pools, wanted on every node. `ref(build_id)` says how to get one."""

    def __init__(self, epoch: int, leases: Leases, ref: Callable[[str], Awaitable[BuildRef]]) -> None:
        self._epoch = epoch
        self._leases = leases
        self._ref = ref
        self.favourites: Callable[[], Iterable[str]] = tuple
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._failed: dict[tuple[str, str], int] = {}
        self._busy: set[str] = set()
        self._spawn = Background("preparation").spawn

    def started(self, build_id: str) -> None:
        """A server of that build was asked for."""
        self._recent[build_id] = None
        self._recent.move_to_end(build_id)
        while len(self._recent) > MOST_BUILDS:
            self._recent.popitem(last=False)

    def wanted(self) -> list[str]:
        """Builds that nodes shall have, the likeliest first."""
        return list(dict.fromkeys([*self.favourites(), *reversed(self._recent)]))[: 2 * MOST_BUILDS]

    def welcome(self, link: Link, ready: Callable[[], None]) -> None:
        """A node has come: have it fetch what is wanted. `ready` is called when it has, or the wait is over."""
        node_id = link.hello.node_id if link.hello else ""
        missing = [build for build in self.wanted() if build not in link.builds]
        if not missing:
            ready()
            return
        link.preparing = frozenset(missing)
        self._spawn(self._bounded(node_id, missing, ready))

    def keep_up(self) -> None:
        """Nodes fetch what has become wanted since; one build at a time each."""
        now = now_ms()
        wanted = self.wanted()
        for node_id, link in self._leases.links().items():
            if not link.synced or link.drain is not None or node_id in self._busy:
                continue
            for build in wanted:
                if build not in link.builds and now - self._failed.get((node_id, build), -_AGAIN_MS) >= _AGAIN_MS:
                    self._spawn(self._fetch(node_id, build))
                    break

    async def _bounded(self, node_id: str, builds: list[str], ready: Callable[[], None]) -> None:
        fetching = asyncio.create_task(self._fetch_all(node_id, builds))
        try:
            async with asyncio.timeout(_WAIT_S):
                await asyncio.shield(fetching)
        except TimeoutError:
            log.warning("a node takes servers although it still fetches builds", node=node_id)
            self._leases.prepared(node_id, preparing=frozenset())
        ready()
        await fetching

    async def _fetch_all(self, node_id: str, builds: list[str]) -> None:
        """One after another, so that the likeliest is there first."""
        for build in builds:
            await self._fetch(node_id, build, waits=True)

    async def _fetch(self, node_id: str, build_id: str, *, waits: bool = False) -> None:
        """A build that cannot be had now does not make the node useless: its servers say why when they start."""
        self._busy.add(node_id)
        present: frozenset[str] = frozenset()
        try:
            ref = await self._ref(build_id)
            await self._leases.call(node_id, "prepare", self._epoch, ref, timeout_s=_FETCH_S)
            present = frozenset({build_id})
        except (FleetError, LaunchFailed) as error:
            self._failed[node_id, build_id] = now_ms()
            log.warning("build not prepared", node=node_id, build=build_id, error=str(error))
        finally:
            self._busy.discard(node_id)
        link = self._leases.links().get(node_id)
        if link is not None:
            preparing = link.preparing - {build_id} if waits else None
            self._leases.prepared(node_id, preparing=preparing, present=present)
