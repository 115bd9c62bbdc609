"""Health of running games is known, not assumed: their declared ports are looked at again and again.

Looks are spread evenly over time and their cost is bounded: however many games run, and however slow the machine is,
at most a fiftieth of the time goes into looking. Frozen games are not looked at: their sockets cannot change.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from fleet.node.model import RunState
from fleet.node.run import Run
from fleet.node.runtime import EngineUnavailable, Port, Readiness, RunKey

log = structlog.get_logger(__name__)

SHARE = 0.02  # of the time, at most, goes into looking
LOOK_LIMIT_S = 10.0


def pause_after(cost_s: float, games: int, every_s: float) -> float:
    """How long to rest after a look, so that each of `games` has its turn every `every_s`, or later if looks cost."""
    return max(every_s / max(1, games) - cost_s, cost_s * (1 / SHARE - 1), 0.001)


class Vigil:
    """Tells `changed(run, healthy, why)` whenever a running game's ports close or open again."""

    def __init__(
        self,
        runs: Callable[[], list[Run]],
        look: Callable[[tuple[Port, ...], RunKey], Awaitable[Readiness]],
        changed: Callable[[Run, Readiness], None],
        every_s: float,
    ) -> None:
        self._runs, self._look, self._changed = runs, look, changed
        self._every_s = every_s

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            games = [run for run in self._runs() if _alive(run)]
            if not games:
                await asyncio.sleep(self._every_s)
            for game in games:
                cost = await self._visit(game)
                await asyncio.sleep(pause_after(cost, len(games), self._every_s))

    async def _visit(self, run: Run) -> float:
        """One look; the seconds that it took."""
        if not _alive(run):
            return 0.0
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(LOOK_LIMIT_S):
                seen = await self._look(run.view.ports, run.view.key)
        except (EngineUnavailable, TimeoutError):
            return time.perf_counter() - begun
        except Exception:  # one game that cannot be looked at must not hide the others
            log.exception("a game could not be looked at", run=str(run.view.key))
            return time.perf_counter() - begun
        if _alive(run) and seen.ready != run.view.healthy:
            self._changed(run, seen)
        return time.perf_counter() - begun


def _alive(run: Run) -> bool:
    view = run.view
    return view.state is RunState.RUNNING and not view.frozen and not run.stopping and bool(view.ports)
