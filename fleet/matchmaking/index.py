"""Waiting tickets that may meet, in order of their value; and what roles they supply."""

from bisect import bisect_left, insort
from collections.abc import Sequence

from fleet.matchmaking.entry import Entry
from fleet.matchmaking.shape import Shape

Item = tuple[float, float, str, Entry]
TWINS = 64


class Shard:
    """Tickets with the same values of the strict `equals` rules."""

    def __init__(self, shape: Shape) -> None:
        self.items: list[Item] = []
        self.shape = shape
        self.tickets = 0
        self.players = 0
        self.supply = [0] * len(shape.roles)
        self.needed = [sum(dict(team.roles).get(role, 0) for team in shape.teams) for role in shape.roles]

    def __len__(self) -> int:
        return len(self.items)

    def add(self, entry: Entry) -> None:
        self.tickets += 1
        self.release(entry)

    def remove(self, entry: Entry) -> None:
        """The entry leaves the queue, whether it is held or not."""
        self.tickets -= 1
        if entry.alive:
            self.hold(entry)

    def hold(self, entry: Entry) -> None:
        """The entry is part of a match that is being made."""
        entry.alive = False
        self._count(entry, -1)
        del self.items[bisect_left(self.items, entry.key)]

    def release(self, entry: Entry) -> None:
        """The entry waits on after all."""
        entry.alive = True
        self._count(entry, 1)
        insort(self.items, (*entry.key, entry))

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
        items = self.items
        place = bisect_left(items, (value,))
        first, last = max(0, place - most // 2), place + (most + 1) // 2
        first, last = max(0, first - max(0, last - len(items))), last + max(0, most // 2 - place)
        if not beyond:
            return [item[3] for item in items[first:last]]
        inner, outer = max(first, place - beyond // 2), place + (beyond + 1) // 2
        below = [item[3] for item in items[first:inner]]
        return below[::-1] + [item[3] for item in items[outer:last]]

    def eldest_twin(self, entry: Entry) -> Entry:
        """Who has waited longest among those who differ from the entry in nothing but that."""
        items = self.items
        place = bisect_left(items, (entry.value,))
        for value, born, _, other in items[place : place + TWINS]:
            if value != entry.value or born >= entry.born:
                break
            if alike(other, entry):
                return other
        return entry


def alike(a: Entry, b: Entry) -> bool:
    """Whether two tickets are the same to every rule but for their players' names and their waiting."""
    if a.kind != b.kind or a.ticket.fields != b.ticket.fields or a.blocked or b.blocked:
        return False
    return _wishes(a) == _wishes(b)


def _wishes(entry: Entry) -> Sequence[tuple[object, ...]]:
    return [(one.mu, one.sigma, one.roles, one.regions, one.latencies) for one in entry.ticket.players]
