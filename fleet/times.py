"""Times are integer milliseconds since the epoch, UTC; ISO 8601 at the API's edge only.

`now_ms` does not jump with the machine's clock: a step of the clock (by an operator, by NTP after a pause) must not end
every server whose ttl it skips, nor keep deadlines from coming. Each process takes the wall clock at its start, goes on
by the time since boot, and comes closer to a wall clock that has stepped by at most a tenth of the time that passes.

Processes that start while the clock is wrong must not differ from the others, who read the times that they write: so
those who watch over a machine's processes keep their own reading in a file of its home (`keep_clock`), every few
seconds, and whoever starts there goes on from it.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_SLEW = 10  # at most 1/10 faster or slower than time passes


def _since_boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class SteadyClock:
    """Nanoseconds since the epoch that never go back. `wall` and `steady` give nanoseconds.

    `reading`: an earlier one of this machine, as `reading` gives it, to go on from.
    """

    def __init__(
        self,
        wall: Callable[[], int] = time.time_ns,
        steady: Callable[[], int] = _since_boot_ns,
        reading: tuple[int, int] | None = None,
    ) -> None:
        self._wall, self._steady = wall, steady
        self._lock = threading.Lock()
        self._mine, self._at = reading or (wall(), steady())

    def reading(self) -> tuple[int, int]:
        """What it shows now, and the time since boot."""
        self()
        return self._mine, self._at

    def __call__(self) -> int:
        with self._lock:
            at = self._steady()
            passed = max(0, at - self._at)
            error = self._wall() - (self._mine + passed)
            most = passed // _SLEW
            self._mine, self._at = self._mine + passed + max(-most, min(most, error)), at
            return self._mine


_KEPT = "clock.json"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def kept_reading(home: Path, steady_ns: int) -> tuple[int, int] | None:
    """The reading that is kept in that home; None if there is none of this boot."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept: dict[str, Any] = json.loads((home / _KEPT).read_text())
        mine, at = int(kept["mine_ns"]), int(kept["at_ns"])
        if kept["boot"] == _boot_id() and 0 <= at <= steady_ns:
            return mine, at
    return None


def _own_clock() -> SteadyClock:
    home = os.environ.get("FLEET_HOME")
    return SteadyClock(reading=kept_reading(Path(home), _since_boot_ns()) if home else None)


_steady_clock = _own_clock()
_clock: Callable[[], int] = _steady_clock


def keep_clock(home: Path) -> None:
    """Keep this process's reading for those that start later. Without it (a full disk) they go by the wall clock."""
    mine, at = _steady_clock.reading()
    draft = home / f".{_KEPT}.{os.getpid()}"
    with suppress(OSError):
        draft.write_text(json.dumps({"boot": _boot_id(), "mine_ns": mine, "at_ns": at}))
        draft.replace(home / _KEPT)


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
