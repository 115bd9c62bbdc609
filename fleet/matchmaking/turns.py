"""Whose queues are looked through, and for how long: projects take turns, each with an equal share of a round."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

ROUND_S = 1.0
MOST_S, LEAST_S = 0.25, 0.01  # a project's share of a round

Owner = TypeVar("Owner", bound=Hashable)
Queue = TypeVar("Queue", bound=Hashable)


class Turns(Generic[Owner, Queue]):
    """A round serves every project once. It begins with another project than the last, so that rounds which are cut off
    leave none out for ever. A project whose share ends before its last queue begins its next turn with the queue after
    the one that used the share up."""

    def __init__(self) -> None:
        self._next: dict[Owner, Queue] = {}
        self._rounds = 0

    def round(self, queues: Iterable[tuple[Owner, Queue]]) -> list[tuple[Owner, list[Queue]]]:
        """The projects with something to look through, and their queues in the order to take them."""
        mine: dict[Owner, list[Queue]] = {}
        for owner, queue in queues:
            mine.setdefault(owner, []).append(queue)
        for owner in self._next.keys() - mine.keys():
            del self._next[owner]
        self._rounds += 1
        owners = list(mine)
        first = self._rounds % len(owners) if owners else 0
        return [(owner, _from(mine[owner], self._next.get(owner))) for owner in owners[first:] + owners[:first]]

    def used_up(self, owner: Owner, order: Sequence[Queue], last: Queue) -> None:
        """The share ended with that queue of the order."""
        self._next[owner] = order[(order.index(last) + 1) % len(order)]


def share_s(owners: int) -> float:
    """Seconds for each of so many projects in one round."""
    return max(LEAST_S, min(MOST_S, ROUND_S / max(1, owners)))


def _from(queues: list[Queue], first: Queue | None) -> list[Queue]:
    at = queues.index(first) if first in queues else 0
    return queues[at:] + queues[:at]
