"""Waiting tickets that may meet, in order of their value; and what roles they supply."""

from bisect import bisect_left, insort
from collections.abc import Iterator

from fleet.matchmaking.entry import Entry
from fleet.matchmaking.shape import Shape

Item = tuple[float, float, str, Entry]


class Shard:
    """Tickets with the same values of the strict `equals` rules."""

    def __init__(self, shape: Shape, any_role: int) -> None:
        self.items: list[Item] = []
        self.shape = shape
        self.players = 0
        self.supply = [0] * len(shape.roles)
        self._any = any_role
        needed = [sum(dict(team.roles).get(role, 0) for team in shape.teams) for role in shape.roles]
        self._needed = needed

    def add(self, entry: Entry, masks: list[int]) -> None:
        insort(self.items, (*entry.key, entry))
        self._count(entry.size, masks, 1)

    def remove(self, entry: Entry, masks: list[int]) -> None:
        place = bisect_left(self.items, entry.key)
        del self.items[place]
        self._count(entry.size, masks, -1)

    def _count(self, size: int, masks: list[int], sign: int) -> None:
        self.players += sign * size
        for bit in range(len(self.supply)):
            self.supply[bit] += sign * sum(mask >> bit & 1 for mask in masks)

    def can_fill(self) -> bool:
        """Whether there are players and roles for a whole match at all."""
        enough = all(held >= needed for held, needed in zip(self.supply, self._needed, strict=True))
        return enough and self.players >= self.shape.players

    def near(self, entry: Entry, most: int) -> Iterator[Entry]:
        """Others by distance from the entry's value; of those as far, the longer waiting first."""
        items = self.items
        value = entry.value
        right = bisect_left(items, (value,))
        left = right - 1
        end = len(items)
        while most > 0 and (left >= 0 or right < end):
            if left < 0 or (right < end and items[right][0] - value <= value - items[left][0]):
                other = items[right][3]
                right += 1
            else:
                other = items[left][3]
                left -= 1
            if other is not entry:
                most -= 1
                yield other
