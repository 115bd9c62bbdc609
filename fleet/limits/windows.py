"""Sliding windows in shared memory: at most `limit` in any second, exactly, for all processes of a node together.

The algorithm is the sliding-window log: a request is let in if the one `limit` before it was let in at least a window
ago. Well-kept libraries (limits, throttled-py, pyrate-limiter) have it too, but keep it either in one process or on a
server to be asked each time; here a look costs microseconds and holds for every process that maps the file.

The times are the kernel's monotonic clock, which is one for all processes, and which nobody sets. A slot whose newest
time lies ahead of the clock (the machine was started anew) is moved back as a whole: nothing is granted or lost.

The file is a table of slots: tag, number let in, number of those that have left the window, what is left of the
newest cell, and a ring of times. A limit above CELLS is counted in cells of several requests (exact to 0.4 %). Slots
are found by tag in a set of eight; the one that was used least lately makes room for a new tag.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fleet.limits.shared_file import SharedFile

CELLS = 256
_HEADER = 4  # tag, head, tail, left
_WORDS = _HEADER + CELLS
_WAYS = 8
_KNOWN = 20_000
_MEMORY = Path("/dev/shm")


def counts_folder(home: Path) -> Path:
    """In memory where the machine has such a folder: on a disk, writing a page back can hold up who counts in it."""
    if not _MEMORY.is_dir():
        return home / "limits"
    return _MEMORY / f"fleet-{hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]}"


class Taken(NamedTuple):
    """`granted` of what was asked; how many more could be had now; seconds until all can, and until one can."""

    granted: int
    remaining: int
    reset_s: float
    retry_s: float


class SharedWindows:
    """One table. Every process that opens the same file shares it."""

    def __init__(
        self,
        file: Path,
        *,
        window_s: float = 1.0,
        slots: int = 8192,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._window = window_s
        self._clock = clock
        self._sets = slots // _WAYS
        self._file = SharedFile(file, slots * _WORDS * 8)
        self._map = self._file.map
        self._ints = self._map.cast("Q")
        self._times = self._map.cast("d")
        self._where: dict[int, int] = {}

    def try_take(self, tag: int, limit: int) -> Taken:
        """One request of `tag`, which may have `limit` in a window."""
        return self.take(tag, limit)

    async def fetch(self, tag: int, limit: int) -> Taken:
        return self.take(tag, limit)

    def take(self, tag: int, limit: int, most: int = 1) -> Taken:
        """Up to `most` at once; 0 only looks."""
        which = tag % self._sets
        with self._file.locked(which):
            return self._take(self._slot(tag, which), limit, most, self._clock())

    def _slot(self, tag: int, which: int) -> int:
        """Where the slot of the tag begins, made if there is none."""
        ints = self._ints
        at = self._where.get(tag, -1)
        if at >= 0 and ints[at] == tag:
            return at
        first = which * _WAYS * _WORDS
        places = range(first, first + _WAYS * _WORDS, _WORDS)
        found = next((at for at in places if ints[at] == tag), None)
        if found is None:
            found = min(places, key=self._newest)
            ints[found], ints[found + 1], ints[found + 2], ints[found + 3] = tag, 0, 0, 0
        if len(self._where) >= _KNOWN:
            self._where.clear()
        self._where[tag] = found
        return found

    def _newest(self, at: int) -> float:
        head = self._ints[at + 1]
        return self._times[at + _HEADER + (head - 1) % CELLS] if head else -1.0

    def _take(self, at: int, limit: int, most: int, now: float) -> Taken:
        ints, times, window = self._ints, self._times, self._window
        head, tail, left = ints[at + 1], ints[at + 2], ints[at + 3]
        ring = at + _HEADER
        if head > tail:
            ahead = times[ring + (head - 1) % CELLS] - now
            if ahead > 0:
                self._move_back(ring, tail, head, ahead)
            if ahead <= -window:
                tail, left = head, 0
            else:
                while tail < head and times[ring + tail % CELLS] <= now - window:
                    tail += 1
        cell = -(-limit // CELLS)
        room = max(1, limit // cell)
        granted = 0
        while granted < most:
            if left:
                left -= 1
                granted += 1
            elif head - tail < room:
                times[ring + head % CELLS] = now
                head += 1
                left = cell
            else:
                break
        ints[at + 1], ints[at + 2], ints[at + 3] = head, tail, left
        remaining = max(0, room - (head - tail)) * cell + left
        if head == tail:
            return Taken(granted, remaining, 0.0, 0.0)
        reset = times[ring + (head - 1) % CELLS] + window - now
        retry = 0.0 if remaining else times[ring + max(tail, head - room) % CELLS] + window - now
        return Taken(granted, remaining, reset, retry)

    def _move_back(self, ring: int, tail: int, head: int, seconds: float) -> None:
        for number in range(max(tail, head - CELLS), head):
            self._times[ring + number % CELLS] -= seconds
