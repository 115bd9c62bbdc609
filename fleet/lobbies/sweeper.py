"""Looking again at who waits: rules relax with time, so that a match may become possible without a new ticket.

An arriving ticket is tried at once where it arrives; this is for the rest. Rounds go over all projects (`turns.py`),
each with an equal share of a round's time, and who takes long rests, so that a queue which takes long delays its own
project only. A queue is looked through in a thread, so the keeper answers meanwhile; what is found is checked against
who still waits, as they are by then (`loop.py`). Beside it: queue figures to the streams, queue depth to the pools,
projects that are gone, and the repair of what an error left behind.
"""

import asyncio
import time
from collections import defaultdict
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from fleet.actors.tasks import SupervisedTasks
from fleet.errors import FleetError, NotFound
from fleet.lobbies.queues import QueueKey
from fleet.lobbies.world import World
from fleet.matchmaking import MatchLoop, Sweep
from fleet.matchmaking.turns import Turns, share_s
from fleet.pools.config import is_pooled
from fleet.times import now_ms

if TYPE_CHECKING:
    from fleet.lobbies.core import Core

log = structlog.get_logger(__name__)

_SWEEP_S = 0.5
_ROUND_LIMIT_S = 120.0
HUNG_S = 15.0  # a look through a queue that ends so long after its time is given up
_REST_S, _REST_MOST_S = 60.0, 600.0  # a project whose queues hung is left out so long; doubles
_ANNOUNCE_S = 5.0
_ANNOUNCE_LIMIT_S = 30.0
_TIDY_S, _TIDY_LIMIT_S = 15.0, 60.0
REPAIR_S, _REPAIR_LIMIT_S = 5.0, 60.0

Pool = tuple[str, str, str, str]  # region, project, size, build


class Sweeper:
    def __init__(self, core: "Core", world: World) -> None:
        self._core = core
        self._world = world
        self.thread: Executor = _thread()
        self._tasks = SupervisedTasks("lobby_keeper", shard=core.shard)
        self._turns: Turns[str, QueueKey] = Turns()
        self._took: defaultdict[str, float] = defaultdict(float)  # looking through each project's queues, this round
        self._resting: dict[str, tuple[float, float]] = {}  # project -> until when, for how long
        self._announced: set[Pool] = set()

    def begin(self) -> None:
        every, stats_s = self._tasks.every, self._core.settings.stats_s
        every("sweep", self.sweep, _SWEEP_S, limit_s=_ROUND_LIMIT_S)
        every("announce", self.announce, _ANNOUNCE_S, limit_s=_ANNOUNCE_LIMIT_S)
        every("stats", self._stats, stats_s, limit_s=_TIDY_LIMIT_S)
        every("tidy", self.tidy, _TIDY_S, limit_s=_TIDY_LIMIT_S)
        every("repair", self._core.repair, REPAIR_S, limit_s=_REPAIR_LIMIT_S)

    async def close(self) -> None:
        await self._tasks.close()
        self.thread.shutdown(wait=False)

    # Sweeps ---------------------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """One round. A project that is in trouble is told of at the end, and delays no other."""
        core = self._core
        if core.away:
            return
        now, failed = time.monotonic(), None
        queues = [(key[0], key) for key in core.queues.all() if core.queues[key].waiting]
        awake = [(owner, key) for owner, key in queues if self._resting.get(owner, (0.0, 0.0))[0] <= now]
        turns, self._took = self._turns.round(awake, now), defaultdict(float)
        try:
            for project_id, keys in turns:
                try:
                    await self._turn(project_id, keys, share_s(len(turns)))
                except Exception as error:
                    log.warning("queues_not_swept", project=project_id, error=repr(error))
                    failed = error
        finally:
            self._turns.ended(self._took, time.monotonic())
        if failed is not None:
            raise failed

    async def _turn(self, project_id: str, keys: list[QueueKey], share: float) -> None:
        """Its queues one after the other, until its share ends. Whatever takes time counts: many queues without a match
        cost their project as much as one that is long."""
        core = self._core
        await core.refresh([project_id])
        ends = time.monotonic() + share
        for key in keys:
            if key not in core.queues:
                continue
            queue, mode = core.queues[key], core.projects.config(key[0], key[1]).modes.get(key[2])
            if mode is None:
                await self._close(key)
                continue
            if mode.digest != queue.loop.mode.digest:
                core.queues.renew(key, mode)
            if now_ms() >= queue.held_until:
                await self._sweep(key, max(0.0, ends - time.monotonic()))
            if time.monotonic() >= ends:
                self._turns.used_up(project_id, keys, key)
                return

    async def _sweep(self, key: QueueKey, budget_s: float) -> None:
        core, loop = self._core, self._core.queues[key].loop
        began, sweep = time.perf_counter(), loop.begin()
        try:
            await self._run(sweep, budget_s)
        except TimeoutError:
            self._hung(key[0])
            raise
        finally:
            took = time.perf_counter() - began
            self._took[key[0]] += took
            if not sweep.done:  # whatever it left of its matcher: the next begins with a new one
                sweep.give_up()
                loop.abandon()
        self._resting.pop(key[0], None)
        core.metrics.swept(took)
        self._form(key, loop, sweep)
        if sweep.found or sweep.faults:
            await core.commit()

    async def _run(self, sweep: Sweep, budget_s: float) -> None:
        async with asyncio.timeout(budget_s + HUNG_S):
            await asyncio.get_running_loop().run_in_executor(self.thread, sweep.run, now_ms() / 1000, budget_s)

    def _hung(self, project_id: str) -> None:
        """A thread cannot be ended: it is left alone, and another takes its place."""
        self.thread.shutdown(wait=False)
        self.thread = _thread()
        rest = min(_REST_MOST_S, 2 * self._resting.get(project_id, (0.0, _REST_S / 2))[1])
        self._resting[project_id] = (time.monotonic() + rest, rest)
        log.error("sweep_hung", project=project_id, rest_s=rest)

    def _form(self, key: QueueKey, loop: MatchLoop, sweep: Sweep) -> None:
        core = self._core
        for found in core.queues.settle(key, loop, sweep, now_ms()):
            try:
                core.matches.form(key, found, now_ms())
            except Exception:  # its tickets that wait on are tried again
                log.exception("match_not_formed", project=key[0], mode=key[2])
        core.matches.try_fresh(now_ms())

    async def _close(self, key: QueueKey) -> None:
        """The mode is not configured any more."""
        core = self._core
        for lobby_id in list(core.queues[key].waiting):
            core.matches.give_up(
                core.books.lobbies[lobby_id], now_ms(), f"mode '{key[2][:64]}' is not configured any more"
            )
        core.queues.forget(key)
        await core.commit()

    # Others ---------------------------------------------------------------------------------------------------------

    async def _stats(self) -> None:
        self._core.feed.tell_stats()

    async def tidy(self) -> None:
        """Replicas and projects that are gone."""
        core = self._core
        core.feed.end_silent()
        if core.away:
            return
        projects = {lobby.project_id for lobby in core.books.lobbies.values()}
        await core.refresh(projects)
        for project_id in projects:
            try:
                core.projects.principal(project_id)
            except NotFound:
                for lobby in core.books.of_project(project_id):
                    core.desk.end(lobby, now_ms(), "the project is gone")
                await core.commit()

    async def announce(self) -> None:
        """To each pool that matches will be served from: how many, and when. What is not announced again is over.
        Regions are told side by side: one that does not answer keeps no other waiting."""
        expected: defaultdict[Pool, list[tuple[float, float]]] = defaultdict(list)
        for key in self._core.queues.all():
            for where, when, count in self._expected(key):
                expected[where].append((when, count))
        regions: defaultdict[str, list[Pool]] = defaultdict(list)
        for pool in self._announced | expected.keys():
            regions[pool[0]].append(pool)
        said = dict(expected)
        told = await asyncio.gather(*(self._tell(pools, said) for pools in regions.values()))
        # A region that was not told that nothing is expected any more is told again.
        self._announced = {pool for pools in told for pool in pools} | expected.keys()

    async def _tell(self, pools: list[Pool], expected: dict[Pool, list[tuple[float, float]]]) -> list[Pool]:
        """The pools of one region, one after the other; those that were not told."""
        for number, (region, project_id, size, build) in enumerate(pools):
            said = expected.get((region, project_id, size, build), [])
            if not await self._world.announce(region, project_id, size, build, said):
                return pools[number:]
        return []

    def _expected(self, key: QueueKey) -> list[tuple[Pool, float, float]]:
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
                ((region, project_id, size, build), now_ms() / 1000 + wait_s, count / queue.loop.mode.shape.players)
                for region, count in players.items()
                if is_pooled(settings, region, size)
            ]
        return []


def _thread() -> Executor:
    return ThreadPoolExecutor(1, thread_name_prefix="sweep")
