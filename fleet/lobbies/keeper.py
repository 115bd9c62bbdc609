"""The LobbyKeeper actor: the one writer of its shard's lobbies, players in them, tickets and matches.

It is thin: `core.py` does the work. After any restart it raises the shard's epoch, which fences its predecessor, and
reads its rows again.
"""

import gc
import os

import ray
import structlog
from prometheus_client import Metric

from fleet.builds.service import BuildService
from fleet.catalog import load_catalog
from fleet.lobbies.calls import Answer, Command, Poll, Polled
from fleet.lobbies.core import Core
from fleet.lobbies.names import epoch_name, shard_of
from fleet.lobbies.world import World
from fleet.projects.plans import plan_book
from fleet.region.client import RegionClient
from fleet.servers.service import ServerService
from fleet.settings import get_settings
from fleet.store.commit import GroupCommit, take_epoch
from fleet.store.engine import Store
from fleet.telemetry.logs import setup_logging

log = structlog.get_logger(__name__)


def die(error: BaseException) -> None:
    """End this process: Ray starts a successor, which rebuilds from the database."""
    log.error("the keeper ends; its successor rebuilds", error=repr(error), pid=os.getpid())
    os._exit(1)


@ray.remote
class LobbyKeeper:
    """Calls are not repeated by Ray: replicas do that, and say so (`Command.again`)."""

    async def __init__(self, shard: int) -> None:
        settings = get_settings()
        setup_logging(f"lobbies-{shard}", settings.home)
        store = Store(settings.database)
        regions = RegionClient(store)
        starts = ServerService(
            store,
            regions,
            BuildService(store, settings),
            load_catalog(),
            settings.servers,
            plan_book(settings.plans_config),
        )
        name = epoch_name(shard)
        epoch = await take_epoch(store, name)
        commits = GroupCommit(
            store, name, epoch, die, lambda seconds, count: self._core.metrics.committed(seconds, count)
        )
        self._core = Core(shard, settings.lobbies, store, commits, World(store, starts, regions))
        await self._core.load(lambda project_id: shard_of(project_id, settings.lobbies.shards))
        # Thousands of small objects that live long: looking at them again and again would be a third of the work.
        gc.freeze()
        gc.set_threshold(100_000, 20, 50)
        log.info("keeper ready", shard=shard, epoch=epoch, lobbies=len(self._core.books.lobbies), pid=os.getpid())

    async def commands(self, commands: list[Command]) -> list[Answer]:
        return await self._core.commands(commands)

    async def poll(self, poll: Poll) -> Polled:
        return await self._core.poll(poll)

    async def metrics(self) -> list[Metric]:
        """For a scrape."""
        return self._core.metrics.collect()

    async def pid(self) -> int:
        """For tests that kill it."""
        return os.getpid()
