"""Places held over several processes of a node: how many of something a tenant has at once, all replicas together.

`windows.py` counts what comes in a second; this counts what has not ended yet. Each process counts what it holds in
rows of its own in one table in shared memory, and a row of a process that is gone counts no more: a replica that is
killed gives its places back with that. A process is known by its number and the time of its start, so that another one
with the same number is another.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from fleet.limits.shared_file import SharedFile

_WORDS = 4  # tag, process, its start, held
_WAYS = 32
Process = tuple[int, int]


def started_at(pid: int) -> int:
    """When the process began (ms); 0 if it is gone."""
    try:
        return int(psutil.Process(pid).create_time() * 1000)
    except psutil.Error:
        return 0


class SharedPlaces:
    """One table. Every process that opens the same file shares it. For one thread of a process."""

    def __init__(
        self,
        file: Path,
        *,
        sets: int = 512,
        me: Process | None = None,
        started: Callable[[int], int] = started_at,
        believed_s: float = 1.0,
    ) -> None:
        """`believed_s`: that a process lives is looked up no more often, since each refusal asks it."""
        self._sets = sets
        self._file = SharedFile(file, sets * _WAYS * _WORDS * 8)
        self._ints = self._file.map.cast("Q")
        self._started = started
        self._believed_s = believed_s
        self._alive_until: dict[Process, float] = {}
        self._me = me or (os.getpid(), started(os.getpid()))
        self._mine = Counter[int]()

    def enter(self, tag: int, limit: int) -> int | None:
        """Take a place of `tag`, which may have `limit`. None if it did; else how many it has without this one."""
        with self._file.locked(tag % self._sets):
            rows = self._rows(tag)
            held = self._held(rows, tag)
            if held >= limit:
                self._bury(rows)
                held = self._held(rows, tag)
            if held >= limit:
                return held
            self._count(rows, tag, 1)
            return None

    def leave(self, tag: int) -> None:
        """Give one back."""
        if self._mine[tag] > 0:
            with self._file.locked(tag % self._sets):
                self._count(self._rows(tag), tag, -1)

    def held(self, tag: int) -> int:
        """How many are taken, by living processes as far as that is known."""
        return self._held(self._rows(tag), tag)

    def _rows(self, tag: int) -> range:
        first = tag % self._sets * _WAYS * _WORDS
        return range(first, first + _WAYS * _WORDS, _WORDS)

    def _held(self, rows: range, tag: int) -> int:
        found = sum(self._ints[at + 3] for at in rows if self._ints[at] == tag)
        return max(found, self._mine[tag])

    def _count(self, rows: range, tag: int, change: int) -> None:
        self._mine[tag] += change
        if self._mine[tag] <= 0:
            del self._mine[tag]
        at = self._row_of(rows, tag)
        if at is not None:  # else the set is full: then this process counts by itself
            held = max(0, (self._ints[at + 3] if self._ints[at] == tag else 0) + change)
            self._ints[at], self._ints[at + 1], self._ints[at + 2] = (tag, *self._me) if held else (0, 0, 0)
            self._ints[at + 3] = held

    def _row_of(self, rows: range, tag: int) -> int | None:
        """This process's row of the tag, or a free one."""
        free: int | None = None
        for at in rows:
            if self._ints[at] == tag and (self._ints[at + 1], self._ints[at + 2]) == self._me:
                return at
            if free is None and self._ints[at] == 0:
                free = at
        if free is None and self._bury(rows):
            return self._row_of(rows, tag)
        return free

    def _bury(self, rows: range) -> int:
        """Free the rows of processes that are gone; how many."""
        freed = 0
        for at in rows:
            who = self._ints[at + 1], self._ints[at + 2]
            if self._ints[at] == 0 or who == self._me:
                continue
            if not self._lives(who):
                self._ints[at] = self._ints[at + 1] = self._ints[at + 2] = self._ints[at + 3] = 0
                freed += 1
        return freed

    def _lives(self, who: Process) -> bool:
        now = time.monotonic()
        if self._alive_until.get(who, 0.0) > now:
            return True
        if self._started(who[0]) == who[1]:
            self._alive_until[who] = now + self._believed_s
            return True
        self._alive_until.pop(who, None)
        return False
