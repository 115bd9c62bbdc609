"""Looks at what all running games of a node use, every few seconds, and keeps it for a day.

Series of ended runs are kept for a while too, as long as they are few: what a game used before it crashed is asked for
afterwards. The agent's own end ends them.
"""

import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from fleet.node.runtime import RunKey
from fleet.node.series import Series, Usage, empty
from fleet.times import now_ms

ENDED_KEPT, ENDED_KEPT_S = 100, 3600.0


class Sampler:
    """`running`: keys of what runs now; `look` tells what each of them uses."""

    def __init__(
        self,
        running: Callable[[], Collection[RunKey]],
        look: Callable[[Collection[RunKey]], Awaitable[dict[RunKey, Usage]]],
    ) -> None:
        self._running, self._look = running, look
        self._series: dict[RunKey, Series] = {}
        self._ended: dict[RunKey, float] = {}

    async def sample(self) -> None:
        """One look at all that run."""
        running = self._running()
        seen = await self._look(running) if running else {}
        at_ms, tick_s = now_ms(), time.monotonic()
        for key, usage in seen.items():
            self._series.setdefault(key, Series()).add(at_ms, tick_s, usage)
        self._forget(set(running), tick_s)

    def _forget(self, running: set[RunKey], tick_s: float) -> None:
        for key in self._series.keys() - running - self._ended.keys():
            self._ended[key] = tick_s
        while self._ended:
            key, since = next(iter(self._ended.items()))
            if len(self._ended) <= ENDED_KEPT and tick_s - since <= ENDED_KEPT_S:
                return
            del self._ended[key]
            self._series.pop(key, None)

    def read(self, key: RunKey, period_s: int, step_s: int) -> dict[str, Any]:
        """`{"step": seconds, "series": {name: [[unix seconds, mean], …]}}`; empty series if nothing is known."""
        series = self._series.get(key)
        if series is None:
            return {"step": step_s, "series": empty()}
        step_s, points = series.read(now_ms(), period_s, step_s)
        return {"step": step_s, "series": points}
