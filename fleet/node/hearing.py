"""What this node's games have said, and what follows: ready, players, silence after a promise to beat, stop me.

Nothing of it is written to a database: what matters goes to the region as a change of the run, players are told when
somebody asks.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from fleet.node.model import RunState
from fleet.node.run import Run
from fleet.node.runtime import RunKey
from fleet.node.words import Beat, Players, Ready, StopMe, Word
from fleet.times import now_ms

log = structlog.get_logger(__name__)

READY_BY = "fleet.ready-by"  # label; "game": it runs when the game itself says so
LOOK_S = 0.5


class Hearing:
    """`run_of` finds a run; `tell(run, **facts)` tells the region."""

    def __init__(self, run_of: Callable[[RunKey], Run | None], tell: Callable[..., None]) -> None:
        self._run_of, self._tell = run_of, tell
        self._beats: dict[RunKey, tuple[float, float]] = {}  # seconds promised, when the last one came
        self._players: dict[RunKey, dict[str, int | None]] = {}

    def heard(self, key: RunKey, word: Word) -> None:
        run = self._run_of(key)
        if run is None or run.view.state.ended:
            return
        match word:
            case Ready():
                run.said_ready.set()
            case Players(count, capacity):
                self._players[key] = {"count": count, "capacity": capacity, "at": now_ms()}
            case Beat(within_s):
                self._beats[key] = (within_s, time.monotonic())
                self._tell(run, silent="")
            case StopMe(reason):
                log.info("game_asks_to_stop", run=str(key), reason=reason)
                self._tell(run, stop_asked=reason)

    def players(self, key: RunKey) -> dict[str, Any] | None:
        """`{count, capacity, at}` as the game said last; None if it never did."""
        return self._players.get(key)

    def forget(self, key: RunKey) -> None:
        self._beats.pop(key, None)
        self._players.pop(key, None)

    async def run(self) -> None:
        """Look for promises that were not kept, until cancelled. Costs nothing while nobody has promised anything."""
        while True:
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            for key, (within_s, last) in list(self._beats.items()):
                self._look(key, within_s, last, now)

    def _look(self, key: RunKey, within_s: float, last: float, now: float) -> None:
        run = self._run_of(key)
        if run is None or run.view.state.ended:
            self.forget(key)
        elif run.view.frozen or run.temperature.locked():
            self._beats[key] = (within_s, now)  # it cannot speak; its time begins when it can
        elif now - last > within_s and not run.view.silent and run.view.state is RunState.RUNNING:
            log.warning("game_silent", run=str(key), within_s=within_s)
            self._tell(run, silent=f"The game promised a health beat every {within_s:g} s and has stopped beating.")
