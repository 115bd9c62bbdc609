"""The LobbyKeeper actor: the one writer of its shard's lobbies, players in them, tickets and matches.

It is thin: `core.py` does the work. After any restart it raises the shard's epoch, which fences its predecessor, and
reads its rows again. Its `__init__` never raises: until the database can be read, coming up is tried again, and calls
are told what is missing.
"""

import asyncio
import gc
import os
from contextlib import suppress
from typing import Any

import structlog
from prometheus_client import Metric
from sqlmodel import literal, select

from fleet.actors.health import process_health
from fleet.actors.lanes import HEALTH, WATCH, Lanes, in_lanes, lane
from fleet.actors.startup import Startup
from fleet.actors.tasks import SupervisedTasks
from fleet.actors.watchdog import Watchdog
from fleet.builds.service import BuildService
from fleet.catalog import load_catalog
from fleet.lobbies.calls import Answer, Command, Poll, Polled
from fleet.lobbies.core import Core
from fleet.lobbies.metrics import starting
from fleet.lobbies.names import epoch_name, keeper_name, shard_of
from fleet.lobbies.world import World
from fleet.projects.plans import plan_book
from fleet.region.client import RegionClient
from fleet.sealing import Variables
from fleet.servers.service import ServerService
from fleet.settings import get_settings
from fleet.store.commit import GroupCommit, take_epoch
from fleet.store.engine import Store
from fleet.telemetry.logs import setup_logging

READY_S = 20.0  # calls wait so long for it to come up
LOAD_S = 120.0
_CLOSE_S = 5.0
log = structlog.get_logger(__name__)


def die(error: BaseException) -> None:
    """End this process: Ray starts a successor, which rebuilds from the database."""
    log.error("keeper_ends", error=repr(error), pid=os.getpid())
    os._exit(1)


class Keeper:
    """The actor without Ray. Made within its event loop."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._tasks = SupervisedTasks("keeper", shard=shard)
        self._startup = Startup(f"The keeper of lobby shard {shard}", self._tasks)
        self._store: Store | None = None
        self._core: Core | None = None
        self._watchdog: Watchdog | None = None
        self._startup.begin(self._come_up)

    async def _come_up(self) -> None:
        """May be tried many times: each has a new epoch and a new core, and ends what it began if it fails."""
        settings = get_settings()
        self._watchdog = self._watchdog or Watchdog(settings.hung_s)
        setup_logging(f"lobbies-{self._shard}", settings.home)
        store = self._store = self._store or Store(settings.database)
        regions = RegionClient(store)
        starts = ServerService(
            store,
            regions,
            BuildService(store, settings),
            load_catalog(),
            settings.servers,
            plan_book(settings.plans_config),
            Variables(settings.home),
        )
        async with asyncio.timeout(READY_S), store.read() as session:
            await session.exec(select(literal(1)))  # what is wrong is told; an epoch is waited for in silence
        name = epoch_name(self._shard)
        epoch = await take_epoch(store, name)
        commits = GroupCommit(store, name, epoch, die, lambda seconds, count: core.metrics.committed(seconds, count))
        core = Core(self._shard, settings.lobbies, store, commits, World(store, starts, regions))
        try:
            async with asyncio.timeout(LOAD_S):
                await core.load(lambda project_id: shard_of(project_id, settings.lobbies.shards))
        except BaseException:
            with suppress(Exception):
                async with asyncio.timeout(_CLOSE_S):
                    await core.close()
                    await commits.close()
            raise
        self._core = core
        # Thousands of small objects that live long: looking at them again and again would be a third of the work.
        gc.freeze()
        gc.set_threshold(100_000, 20, 50)
        log.info("keeper_ready", shard=self._shard, epoch=epoch, lobbies=len(core.books.lobbies), pid=os.getpid())

    async def _ready(self) -> Core:
        await self._startup.ready(READY_S)
        assert self._core is not None, "it has come up"
        return self._core

    async def commands(self, commands: list[Command]) -> list[Answer]:
        """`Unavailable`, with what is missing, while it cannot come up."""
        return await (await self._ready()).commands(commands)

    async def poll(self, poll: Poll) -> Polled:
        return await (await self._ready()).poll(poll)

    async def metrics(self) -> list[Metric]:
        """For a scrape."""
        mine = process_health.collect(keeper_name(self._shard))
        return [*(self._core.metrics.collect() if self._core is not None else [starting(self._shard)]), *mine]

    async def status(self) -> dict[str, Any]:
        """`missing`: why it is not up yet; `failing`: background tasks that fail without end, and their last error."""
        return {
            "shard": self._shard,
            "pid": os.getpid(),
            "ready": self._startup.done,
            "missing": self._startup.missing,
            "failing": {one.task: one.error for one in process_health.failing()},
        }

    async def close(self) -> None:
        """For tests: as if killed, but tidily."""
        await self._tasks.close()
        if self._watchdog is not None:
            await self._watchdog.close()
        core, self._core = self._core, None
        if core is not None:
            await core.close()
            await core.commits.close()
        if self._store is not None:
            await self._store.close()


@in_lanes
class LobbyKeeper:
    """Calls are not repeated by Ray: replicas do that, and say so (`Command.again`)."""

    async def __init__(self, shard: int) -> None:
        self._lanes = Lanes()
        self._keeper = Keeper(shard)

    async def commands(self, commands: list[Command]) -> list[Answer]:
        return await self._keeper.commands(commands)

    @lane(WATCH)
    async def poll(self, poll: Poll) -> Polled:
        return await self._lanes.run(lambda: self._keeper.poll(poll))

    @lane(HEALTH)
    async def metrics(self) -> list[Metric]:
        return await self._lanes.run(self._keeper.metrics)

    @lane(HEALTH)
    async def status(self) -> dict[str, Any]:
        return await self._lanes.run(self._keeper.status)

    async def pid(self) -> int:
        """For tests that kill it."""
        return os.getpid()
