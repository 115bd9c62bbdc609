"""Builds are on a node before its servers come: which ones, told to which node, and for how long servers wait for it.

A new node fetches the builds that are likely to be asked for next; servers of those wait for it up to `_WAIT_S`, all
others may be placed there at once. Later, builds that become popular are fetched too, one at a time, and nobody waits.
Whatever becomes of a fetch, the node is ready after that: without a build that it could not get, its servers say why.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable

import structlog

from fleet.actors.tasks import SupervisedTasks
from fleet.errors import FleetError, Unavailable
from fleet.node.runtime import BuildRef, LaunchFailed
from fleet.region.leases import Leases
from fleet.region.link import Link
from fleet.times import now_ms

log = structlog.get_logger(__name__)

MOST_BUILDS = 8
_WAIT_S = 90.0
_FETCH_S = 600.0  # of one build; the node itself ends a fetch that makes no progress long before
_REF_S = 20.0
_AGAIN_MS = 600_000
_SOON_MS = 30_000  # a node that was silent meanwhile: it is no fault of the build


class Preparation:
    """`favourites()`: builds of the region's pools, wanted on every node. `ref(build_id)` says how to get one."""

    def __init__(self, epoch: int, leases: Leases, ref: Callable[[str], Awaitable[BuildRef]]) -> None:
        self._epoch = epoch
        self._leases = leases
        self._ref = ref
        self.favourites: Callable[[], Iterable[str]] = tuple
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._not_before: dict[tuple[str, str], int] = {}  # node and build whose fetch failed, and when it may be again
        self._busy: set[str] = set()
        self._tasks = SupervisedTasks("preparation")  # what fails here is tried again by a later `keep_up`

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
        self._busy.add(node_id)
        fetching = self._tasks.once("fetch_all", self._fetch_all(node_id, missing), node=node_id)
        self._tasks.once("welcome", self._bounded(node_id, fetching, ready), node=node_id)

    def keep_up(self) -> None:
        """Nodes fetch what has become wanted since; one build at a time each."""
        now = now_ms()
        self._not_before = {key: at for key, at in self._not_before.items() if at > now}
        wanted = self.wanted()
        for node_id, link in self._leases.links().items():
            if not link.synced or link.drain is not None or node_id in self._busy:
                continue
            for build in wanted:
                if build not in link.builds and (node_id, build) not in self._not_before:
                    self._busy.add(node_id)
                    self._tasks.once("fetch", self._fetch_one(node_id, build), node=node_id)
                    break

    async def close(self) -> None:
        await self._tasks.close()

    async def _bounded(self, node_id: str, fetching: asyncio.Task[None], ready: Callable[[], None]) -> None:
        await asyncio.wait([fetching], timeout=_WAIT_S)
        if not fetching.done():
            log.warning("a node takes servers although it still fetches builds", node=node_id)
        self._leases.prepared(node_id, preparing=frozenset())
        ready()

    async def _fetch_all(self, node_id: str, builds: list[str]) -> None:
        """One after another, so that the likeliest is there first."""
        try:
            for build in builds:
                await self._fetch(node_id, build, waits=True)
        finally:
            self._busy.discard(node_id)

    async def _fetch_one(self, node_id: str, build: str) -> None:
        try:
            await self._fetch(node_id, build, waits=False)
        finally:
            self._busy.discard(node_id)

    async def _fetch(self, node_id: str, build_id: str, *, waits: bool) -> None:
        """A build that cannot be had now does not make the node useless: its servers say why when they start."""
        present: frozenset[str] = frozenset()
        try:
            async with asyncio.timeout(_REF_S):
                ref = await self._ref(build_id)
            await self._leases.call(node_id, "prepare", self._epoch, ref, timeout_s=_FETCH_S)
            present = frozenset({build_id})
        except Exception as error:
            link = self._leases.links().get(node_id)
            silent = isinstance(error, Unavailable) and (link is None or not link.synced)
            self._not_before[node_id, build_id] = now_ms() + (_SOON_MS if silent else _AGAIN_MS)
            expected = isinstance(error, FleetError | LaunchFailed | TimeoutError)
            log.warning("build not prepared", node=node_id, build=build_id, error=repr(error), exc_info=not expected)
        link = self._leases.links().get(node_id)
        if link is not None:
            preparing = link.preparing - {build_id} if waits else None
            self._leases.prepared(node_id, preparing=preparing, present=present)
