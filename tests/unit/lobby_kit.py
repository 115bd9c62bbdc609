"""A keeper of lobbies in the test's own process: the real core over a real database, without Ray."""

import asyncio
from typing import Any

from fleet.builds.service import BuildService
from fleet.catalog import load_catalog
from fleet.errors import FleetError
from fleet.lobbies.calls import Answer, Command, Poll, Polled
from fleet.lobbies.core import Core
from fleet.lobbies.world import World
from fleet.projects.plans import plan_book
from fleet.sealing import Variables
from fleet.servers.service import ServerService
from fleet.settings import FleetSettings
from fleet.store.commit import GroupCommit, take_epoch
from fleet.store.engine import Store

EPOCH = "lobbies/0"


def fatal(error: BaseException) -> None:
    raise AssertionError("a commit failed for good") from error


class LocalKeepers:
    """One shard, made when it is first asked. `regions` is what servers are started with."""

    def __init__(self, store: Store, settings: FleetSettings, regions: Any, builds: BuildService) -> None:
        self._store = store
        self._settings = settings
        self._regions = regions
        self._builds = builds
        self._making = asyncio.Lock()
        self._core: Core | None = None

    async def recover(self) -> None:
        return None

    def shard_of(self, project_id: str) -> int:
        return 0

    async def core(self) -> Core:
        async with self._making:
            if self._core is None:
                plans = plan_book(self._settings.plans_config)
                servers = ServerService(
                    self._store,
                    self._regions,
                    self._builds,
                    load_catalog(),
                    self._settings.servers,
                    plans,
                    Variables(self._settings.home),
                )
                epoch = await take_epoch(self._store, EPOCH)
                commits = GroupCommit(
                    self._store, EPOCH, epoch, fatal, lambda seconds, count: core.metrics.committed(seconds, count)
                )
                world = World(self._store, servers, self._regions)
                self._core = core = Core(0, self._settings.lobbies, self._store, commits, world)
                await core.load(lambda _: 0)
            return self._core

    async def restart(self) -> Core:
        """As after a kill: nothing that waits is written, and a new keeper reads the rows."""
        await self.close()
        return await self.core()

    async def close(self) -> None:
        core, self._core = self._core, None
        if core is not None:
            await core.close()
            await core.commits.close()

    async def command(self, command: Command) -> Answer:
        (answer,) = await (await self.core()).commands([command])
        if isinstance(answer, FleetError):
            raise answer
        return answer

    async def poll(self, shard: int, poll: Poll) -> Polled:
        return await (await self.core()).poll(poll)
