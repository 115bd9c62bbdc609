"""What stands ready in one pool, indexed so that a claim never walks a list.

An entry is *booting* (ordered, not ready), *warm* (ready, healthy, unclaimed), *ailing* (its ports closed, or its
beat is missed) or *unsure* (its node does not answer now). Warm ones wait in a heap per spec, best first: hot before
frozen, on staying nodes before draining ones, oldest first. A claim pops one in O(log n); tickets of entries that
have changed since are skipped, and the heap is rebuilt when they are many.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["booting", "warm", "ailing", "unsure"]
Ticket = tuple[bool, bool, int, str]  # frozen, leaving, since, instance id

_SLACK = 64


@dataclass(slots=True)
class Entry:
    """One unclaimed pool server. `since`: when it entered its state (ms). `leaving`: it will be replaced."""

    instance_id: str
    spec: str
    state: State
    since: int
    node_id: str | None = None
    frozen: bool = False
    leaving: bool = False

    @property
    def ticket(self) -> Ticket:
        return self.frozen, self.leaving, self.since, self.instance_id


class Shelf:
    """The unclaimed entries of one pool, whatever their spec."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._ready: defaultdict[str, list[Ticket]] = defaultdict(list)
        self._counts: Counter[tuple[str, State]] = Counter()
        self._leaving: Counter[str] = Counter()
        self._passing: dict[str, Entry] = {}  # booting and unsure: few, and asked for by age

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, instance_id: str) -> bool:
        return instance_id in self._entries

    def entries(self) -> Iterable[Entry]:
        return self._entries.values()

    def get(self, instance_id: str) -> Entry | None:
        return self._entries.get(instance_id)

    def put(self, entry: Entry) -> None:
        """Add an entry, or replace what is known of it."""
        old = self._entries.get(entry.instance_id)
        if old is not None:
            self._uncount(old)
        self._entries[entry.instance_id] = entry
        self._counts[entry.spec, entry.state] += 1
        if entry.state in ("booting", "unsure"):
            self._passing[entry.instance_id] = entry
        if entry.state == "warm":
            self._leaving[entry.spec] += entry.leaving
            self._offer(entry)

    def drop(self, instance_id: str) -> Entry | None:
        """Take an entry off the shelf: claimed, stopped, or gone."""
        entry = self._entries.pop(instance_id, None)
        if entry is not None:
            self._uncount(entry)
        return entry

    def claim(self, spec: str) -> Entry | None:
        """The best warm entry of that spec, off the shelf; None if there is none."""
        heap = self._ready.get(spec)
        while heap:
            ticket = heapq.heappop(heap)
            entry = self._entries.get(ticket[3])
            if entry is not None and (entry.state, entry.spec, entry.ticket) == ("warm", spec, ticket):
                self.drop(entry.instance_id)
                return entry
        self._ready.pop(spec, None)
        return None

    def count(self, spec: str, state: State) -> int:
        return self._counts[spec, state]

    def staying(self, spec: str) -> int:
        """Warm entries of that spec that need no replacement."""
        return self._counts[spec, "warm"] - self._leaving[spec]

    def total(self, state: State) -> int:
        return sum(number for (_, kind), number in self._counts.items() if kind == state)

    def younger(self, state: State, than_ms: int, now: int, spec: str | None = None) -> int:
        """Entries (of that spec) that have been booting, or unsure, for less than so many milliseconds."""
        return sum(
            entry.state == state and spec in (None, entry.spec) and now - entry.since < than_ms
            for entry in self._passing.values()
        )

    def _offer(self, entry: Entry) -> None:
        heap = self._ready[entry.spec]
        heapq.heappush(heap, entry.ticket)
        if len(heap) > 2 * self._counts[entry.spec, "warm"] + _SLACK:
            fresh = [e.ticket for e in self._entries.values() if e.spec == entry.spec and e.state == "warm"]
            heapq.heapify(fresh)
            self._ready[entry.spec] = fresh

    def _uncount(self, entry: Entry) -> None:
        self._counts[entry.spec, entry.state] -= 1
        self._passing.pop(entry.instance_id, None)
        if not self._counts[entry.spec, entry.state]:
            del self._counts[entry.spec, entry.state]
        if entry.state == "warm" and entry.leaving:
            self._leaving[entry.spec] -= 1
