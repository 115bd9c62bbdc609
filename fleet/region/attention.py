"""Since when a manager has seen to its servers without a break.

Deadlines speak against a server only by what was seen, and could be done, since then. A break is a time in which this
process stood still, so that it heard of nothing, or the database took no commits, so that nothing could follow.
"""

from collections.abc import Callable

from fleet.times import now_ms

BEAT_S = 1.0
GAP_MS = 15_000  # more than that between two beats: the process stood still


class Attention:
    """`beat` is to be called every `BEAT_S` seconds. `steady_since()`: since when commits have been taken (ms)."""

    def __init__(self, steady_since: Callable[[], int]) -> None:
        self._steady_since = steady_since
        self._since = self._last = now_ms()

    def beat(self) -> None:
        now = now_ms()
        if now - self._last > GAP_MS:
            self._since = now
        self._last = now

    def since(self) -> int:
        """In ms; now, while a break lasts."""
        self.beat()  # whoever asks first after a break must hear of it
        return max(self._since, self._steady_since())
