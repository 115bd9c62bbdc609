"""Waiting tickets that may meet, in order of their value; and what roles they supply."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import count

from fleet.matchmaking.entry import Entry
from fleet.matchmaking.shape import Shape

Item = tuple[float, float, str, int, Entry]
TWINS = 64


class Shard:
    """Tickets with the same values of the strict `equals` rules.

    Those held stay among the items, passed over, until `tidy`: taking many out one by one would cost their square.
    """

    def __init__(self, shape: Shape) -> None:
        self.items: list[Item] = []
        self.shape = shape
        self.tickets = 0
        self._held = 0
        self._serial = count()
        self.players = 0
        self.supply = [0] * len(shape.roles)
        self.needed = [sum(dict(team.roles).get(role, 0) for team in shape.teams) for role in shape.roles]

    def __len__(self) -> int:
        return len(self.items) - self._held

    def add(self, entry: Entry) -> None:
        self.tickets += 1
        self._count(entry, 1)
        self._list(entry)

    def remove(self, entry: Entry) -> None:
        """The entry leaves the queue, whether it is held or not."""
        self.tickets -= 1
        if entry.alive:
            entry.alive = False
            self._count(entry, -1)
            del self.items[bisect_left(self.items, entry.key)]

    def hold(self, entry: Entry) -> None:
        """The entry is part of a match that is being made."""
        entry.alive = False
        self._count(entry, -1)
        self._held += 1

    def release(self, entry: Entry) -> None:
        """The entry waits on after all."""
        entry.alive = True
        self._count(entry, 1)
        if entry.listed:
            self._held -= 1
        else:
            self._list(entry)

    def tidy(self) -> None:
        """Take out those held, after a sweep."""
        if self._held:
            self._keep_alive(0, len(self.items))

    def _list(self, entry: Entry) -> None:
        entry.listed = True
        insort(self.items, (*entry.key, next(self._serial), entry))

    def _keep_alive(self, first: int, last: int) -> None:
        kept: list[Item] = []
        for item in self.items[first:last]:
            if item[4].alive:
                kept.append(item)
            else:
                item[4].listed = False
        self._held -= last - first - len(kept)
        self.items[first:last] = kept

    def _count(self, entry: Entry, sign: int) -> None:
        self.players += sign * entry.size
        for bit in range(len(self.supply)):
            for mask in entry.masks:
                self.supply[bit] += sign * (mask >> bit & 1)

    def can_fill(self) -> bool:
        """Whether there are players and roles for a whole match at all."""
        if self.players < self.shape.players:
            return False
        return all(held >= needed for held, needed in zip(self.supply, self.needed, strict=True))

    def plenty(self, entry: Entry) -> float:
        """How well supplied the scarcest wish of a ticket is: the lower, the rarer the ticket."""
        if not self.supply:
            return 0.0
        share = [held / needed for held, needed in zip(self.supply, self.needed, strict=True)]
        return min(max(share[bit] for bit in range(len(share)) if mask >> bit & 1) for mask in entry.masks)

    def near(self, value: float, most: int, beyond: int = 0) -> list[Entry]:
        """About `most` tickets around a value, half of them below; without the nearest `beyond`."""
        while True:
            place = bisect_left(self.items, (value,))
            first, last = self._around(place, most)
            if not beyond:
                found = [item[4] for item in self.items[first:last] if item[4].alive]
                if len(found) * 2 >= last - first:
                    return found
                self._keep_alive(first, last)
                continue
            inner, outer = self._around(place, beyond)
            below = [item[4] for item in self.items[first:inner]]
            return below[::-1] + [item[4] for item in self.items[outer:last]]

    def _around(self, place: int, most: int) -> tuple[int, int]:
        """From where to where `most` items reach around a place; at an end, more on the other side."""
        first, last = max(0, place - most // 2), min(len(self.items), place + (most + 1) // 2)
        return max(0, min(first, last - most)), min(len(self.items), max(last, first + most))

    def eldest_twin(self, entry: Entry) -> Entry:
        """Who has waited longest among those who differ from the entry in nothing but that."""
        items = self.items
        place = bisect_left(items, (entry.value,))
        for value, born, _, _, other in items[place : place + TWINS]:
            if value != entry.value or born >= entry.born:
                break
            if other.alive and alike(other, entry):
                return other
        return entry


def alike(a: Entry, b: Entry) -> bool:
    """Whether two tickets are the same to every rule but for their players' names and their waiting."""
    if a.kind != b.kind or a.ticket.fields != b.ticket.fields or a.blocked or b.blocked:
        return False
    return _wishes(a) == _wishes(b)


def _wishes(entry: Entry) -> Sequence[tuple[object, ...]]:
    return [(one.mu, one.sigma, one.roles, one.regions, one.latencies) for one in entry.ticket.players]
