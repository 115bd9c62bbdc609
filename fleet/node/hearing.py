"""What this node's games have said, and what follows: ready, players, silence after a promise to beat, stop me.

Nothing of it is written to a database: what matters goes to the region as a change of the run, players are told when
somebody asks.
"""

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
    """`run_of` finds a run; `tell(run, **facts)` tells the region. `begin` is called once, when the first game promises
    to beat: from then on somebody must `look`."""

    def __init__(
        self,
        run_of: Callable[[RunKey], Run | None],
        tell: Callable[..., None],
        begin: Callable[[], object] = lambda: None,
    ) -> None:
        self._run_of, self._tell, self._begin = run_of, tell, begin
        self._begun = False
        self._promised: dict[RunKey, float] = {}  # seconds between beats
        self._quiet: dict[RunKey, float] = {}  # seconds without one
        self._looked_at = time.monotonic()
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
                self._promised[key], self._quiet[key] = within_s, 0.0
                if not self._begun:
                    self._begun = True
                    self._begin()
                self._tell(run, silent="")
            case StopMe(reason):
                log.info("game_asks_to_stop", run=str(key), reason=reason)
                self._tell(run, stop_asked=reason)

    def players(self, key: RunKey) -> dict[str, Any] | None:
        """`{count, capacity, at}` as the game said last; None if it never did."""
        return self._players.get(key)

    def forget(self, key: RunKey) -> None:
        self._promised.pop(key, None)
        self._quiet.pop(key, None)
        self._players.pop(key, None)

    async def look(self) -> None:
        """Look for promises that were not kept; every `LOOK_S`.

        A pass counts for little more than its own time: when this machine, or this process, has stood still, the beats
        that came meanwhile have not been read yet.
        """
        now = time.monotonic()
        passed, self._looked_at = min(now - self._looked_at, 2 * LOOK_S), now
        for key, within_s in list(self._promised.items()):
            self._look(key, within_s, passed)

    def _look(self, key: RunKey, within_s: float, passed: float) -> None:
        run = self._run_of(key)
        if run is None or run.view.state.ended:
            self.forget(key)
        elif run.view.frozen or run.temperature.locked():
            self._quiet[key] = 0.0  # it cannot speak; its time begins when it can
        else:
            self._quiet[key] += passed
            if self._quiet[key] > within_s and not run.view.silent and run.view.state is RunState.RUNNING:
                log.warning("game_silent", run=str(key), within_s=within_s)
                self._tell(run, silent=f"The game promised a health beat every {within_s:g} s and has stopped beating.")
