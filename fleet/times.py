"""Times are integer milliseconds since the epoch, UTC; ISO 8601 at the API's edge only.

`now_ms` does not jump with the machine's clock: a step of the clock (by an operator, by NTP after a pause) must not end
every server whose ttl it skips, nor keep deadlines from coming. Each process takes the wall clock at its start, goes on
by the time since boot, and comes closer to a wall clock that has stepped by at most a tenth of the time that passes.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

_SLEW = 10  # at most 1/10 faster or slower than time passes


def _since_boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class SteadyClock:
    """Nanoseconds since the epoch that never go back. `wall` and `steady` give nanoseconds."""

    def __init__(self, wall: Callable[[], int] = time.time_ns, steady: Callable[[], int] = _since_boot_ns) -> None:
        self._wall, self._steady = wall, steady
        self._lock = threading.Lock()
        self._mine, self._at = wall(), steady()

    def __call__(self) -> int:
        with self._lock:
            at = self._steady()
            passed = max(0, at - self._at)
            error = self._wall() - (self._mine + passed)
            most = passed // _SLEW
            self._mine, self._at = self._mine + passed + max(-most, min(most, error)), at
            return self._mine


_clock: Callable[[], int] = SteadyClock()


def use_clock(clock: Callable[[], int]) -> None:
    """Virtual time, for simulations: nanoseconds since the epoch."""
    global _clock
    _clock = clock


def now_ms() -> int:
    return _clock() // 1_000_000


def iso(ms: int | None) -> str | None:
    """`2026-01-31T12:00:00.123Z`, or None for None."""
    if ms is None:
        return None
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"
