"""Looking again at who waits: rules relax with time, so that a match may become possible without a new ticket.

An arriving ticket is tried at once where it arrives; this is for the rest. It works on a snapshot in a thread, so the
keeper answers meanwhile, and what it finds is checked against who still waits. Beside it: queue figures to the
streams, queue depth to the pools, projects that are gone.
"""

import asyncio
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from fleet.errors import FleetError, NotFound
from fleet.lobbies.queues import QueueKey
from fleet.lobbies.world import World
from fleet.matchmaking import Found, Matcher, ModeConfig, OpenMatch, Ticket
from fleet.pools.config import is_pooled
from fleet.times import now_ms

if TYPE_CHECKING:
    from fleet.lobbies.core import Core

log = structlog.get_logger(__name__)

_SWEEP_S = 0.5
_BUDGET_S = 1.0
_ANNOUNCE_S = 5.0
_SHARE = 4  # a sweep that takes long comes so much less often


class Sweeper:
    def __init__(self, core: "Core", world: World) -> None:
        self._core = core
        self._world = world
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sweep")
        self._tasks: list[asyncio.Task[None]] = []
        self._announced: set[tuple[str, str, str, str]] = set()

    def begin(self) -> None:
        every = {
            self.sweep: _SWEEP_S,
            self.announce: _ANNOUNCE_S,
            self._stats: self._core.settings.stats_s,
            self.tidy: 15.0,
        }
        self._tasks = [asyncio.create_task(self._repeat(work, seconds)) for work, seconds in every.items()]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def _repeat(self, work: "Any", seconds: float) -> None:
        while True:
            began = time.monotonic()
            try:
                await work()
            except Exception:  # the next round tries again
                log.exception("a round of the keeper broke", work=work.__name__)
            await asyncio.sleep(max(seconds, _SHARE * (time.monotonic() - began)))

    # Sweeps ---------------------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        core = self._core
        for key in core.queues.all():
            queue = core.queues[key]
            if not queue.waiting:
                continue
            await core.projects.refresh([key[0]])
            mode = core.projects.config(key[0], key[1]).modes.get(key[2])
            if mode is None:
                await self._close(key)
                continue
            if mode.digest != queue.matcher.mode.digest:
                core.queues.renew(key, mode)
            if now_ms() >= queue.held_until:
                await self._sweep(key, mode)

    async def _sweep(self, key: QueueKey, mode: ModeConfig) -> None:
        core = self._core
        queue, now = core.queues[key], now_ms()
        began = time.perf_counter()
        snapshot = (queue.matcher.snapshot(), list(queue.running.values()))
        found = await asyncio.get_running_loop().run_in_executor(self._thread, _matches, *snapshot, mode, now / 1000)
        core.metrics.swept(time.perf_counter() - began)
        if found:
            for one in found:
                core.matches.form(key, one, now_ms())
            await core.commit()

    async def _close(self, key: QueueKey) -> None:
        """The mode is not configured any more."""
        core = self._core
        for lobby_id in list(core.queues[key].waiting):
            core.matches.give_up(
                core.books.lobbies[lobby_id], now_ms(), f"mode '{key[2][:64]}' is not configured any more"
            )
        await core.commit()

    # Others ---------------------------------------------------------------------------------------------------------

    async def _stats(self) -> None:
        self._core.feed.tell_stats()

    async def tidy(self) -> None:
        """Replicas and projects that are gone."""
        core = self._core
        core.feed.end_silent()
        projects = {lobby.project_id for lobby in core.books.lobbies.values()}
        await core.projects.refresh(projects)
        for project_id in projects:
            try:
                core.projects.principal(project_id)
            except NotFound:
                for lobby in core.books.of_project(project_id):
                    core.desk.end(lobby, now_ms(), "the project is gone")
                await core.commit()

    async def announce(self) -> None:
        """To each pool that matches will be served from: how many, and when. What is not announced again is over."""
        expected: defaultdict[tuple[str, str, str, str], list[tuple[float, float]]] = defaultdict(list)
        for key in self._core.queues.all():
            for where, when, count in self._expected(key):
                expected[where].append((when, count))
        over = self._announced - expected.keys()
        self._announced = set(expected)
        for region, project_id, size, build in [*expected, *over]:
            told = expected.get((region, project_id, size, build), [])
            await self._world.announce(region, project_id, size, build, told)

    def _expected(self, key: QueueKey) -> list[tuple[tuple[str, str, str, str], float, float]]:
        core, (project_id, config_name, _) = self._core, key
        queue = core.queues[key]
        config = core.projects.config(project_id, config_name)
        players: defaultdict[str, int] = defaultdict(int)
        for lobby_id, (_, count) in queue.waiting.items():
            players[core.books.lobbies[lobby_id].region] += count
        wait_s = sum(queue.waits) / len(queue.waits) if queue.waits else _ANNOUNCE_S
        size, build = config.server_settings.server_size, config.server_settings.game_build
        with suppress(FleetError):
            settings = core.projects.principal(project_id).settings
            return [
                ((region, project_id, size, build), time.time() + wait_s, count / queue.matcher.mode.shape.players)
                for region, count in players.items()
                if is_pooled(settings, region, size)
            ]
        return []


def _matches(tickets: list[Ticket], running: list[OpenMatch], mode: ModeConfig, now: float) -> list[Found]:
    matcher = Matcher(mode)
    for match in running:
        matcher.open(match)
    for ticket in tickets:
        matcher.add(ticket)
    return matcher.sweep(now, _BUDGET_S)
