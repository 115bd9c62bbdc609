"""Tells when a game has filled its disk: it sees its writes fail, and its studio should hear why."""

from collections.abc import Awaitable, Callable, Collection, Mapping

from fleet.node.run import Run
from fleet.node.runtime import RunKey
from fleet.times import now_ms

LOOK_S, LOOK_LIMIT_S = 5.0, 30.0
AGAIN_MS = 600_000  # a game that fills its disk again and again is told of no oftener


class DiskWatch:
    """`running`: the runs that may write now; `look`: which of them have full disks; `tell`: whom to tell of one."""

    def __init__(
        self,
        running: Callable[[], Mapping[RunKey, Run]],
        look: Callable[[Collection[RunKey]], Awaitable[frozenset[RunKey]]],
        tell: Callable[[Run, bool], None],
    ) -> None:
        self._running, self._look, self._tell = running, look, tell
        self._told: dict[RunKey, int] = {}

    async def look(self) -> None:
        """One look at all that run."""
        running = self._running()
        full = await self._look(running.keys())
        self._told = {key: at for key, at in self._told.items() if key in running}
        for key, run in running.items():
            self._consider(run, full=key in full)

    def _consider(self, run: Run, *, full: bool) -> None:
        if not full and run.view.disk_full:
            self._tell(run, False)
        elif full and not run.view.disk_full and now_ms() - self._told.get(run.key, -AGAIN_MS) >= AGAIN_MS:
            self._told[run.key] = now_ms()
            self._tell(run, True)
