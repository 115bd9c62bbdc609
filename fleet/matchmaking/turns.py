"""Whose queues are looked through, and for how long: projects take turns, each with an equal share of a round.

Who takes long waits long: after a round a project rests for four times what it and those cheaper than it took. So cheap
ones come in each round, beside however many costly ones, and all together use little of the machine. In a round the
costly ones come last.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from time import monotonic, thread_time
from typing import Generic, TypeVar

ROUND_S = 1.0
MOST_S, LEAST_S = 0.1, 0.01  # a project's share of a round
REST = 4

ARRIVALS_SHARE = 0.1  # of the keeper's own time, that one project's arriving tickets may take
ARRIVALS_BURST_S = 0.25

Owner = TypeVar("Owner", bound=Hashable)
Queue = TypeVar("Queue", bound=Hashable)


class Turns(Generic[Owner, Queue]):
    """A round serves every project once that does not rest. It begins with another project than the last, so that
    rounds which are cut off leave none out for ever. A project whose share ends before its last queue begins its next
    turn with the queue after the one that used the share up. Times are seconds."""

    def __init__(self) -> None:
        self._next: dict[Owner, Queue] = {}
        self._rests: dict[Owner, float] = {}
        self._costly: set[Owner] = set()
        self._rounds = 0

    def round(self, queues: Iterable[tuple[Owner, Queue]], now: float = 0.0) -> list[tuple[Owner, list[Queue]]]:
        """The projects with something to look through, and their queues in the order to take them."""
        mine: dict[Owner, list[Queue]] = {}
        for owner, queue in queues:
            mine.setdefault(owner, []).append(queue)
        for owner in self._next.keys() - mine.keys():
            del self._next[owner]
        self._rests = {owner: until for owner, until in self._rests.items() if owner in mine and until > now}
        self._costly &= mine.keys()
        self._rounds += 1
        owners = [owner for owner in mine if owner not in self._rests]
        first = self._rounds % len(owners) if owners else 0
        order = sorted(owners[first:] + owners[:first], key=self._costly.__contains__)
        return [(owner, _from(mine[owner], self._next.get(owner))) for owner in order]

    def used_up(self, owner: Owner, order: Sequence[Queue], last: Queue) -> None:
        """The share ended with that queue of the order."""
        self._next[owner] = order[(order.index(last) + 1) % len(order)]

    def ended(self, took: Mapping[Owner, float], now: float) -> None:
        """The round is over, and this is how long each project took."""
        so_far = 0.0
        groups: dict[float, list[Owner]] = {}
        for owner, seconds in took.items():
            groups.setdefault(seconds, []).append(owner)
        for seconds in sorted(groups):
            so_far += seconds * len(groups[seconds])
            for owner in groups[seconds]:
                self._rests[owner] = now + REST * so_far
        self._costly -= took.keys()
        self._costly |= {owner for owner, seconds in took.items() if seconds > LEAST_S}


class Allowance(Generic[Owner]):
    """How much of the keeper's own time each project's arriving tickets may take: a share of it, and a burst. What is
    beyond waits for the sweeps, which run beside it. CPU time counts, not the time that others had the machine."""

    def __init__(self, clock: Callable[[], float] = monotonic, work: Callable[[], float] = thread_time) -> None:
        self._clock = clock
        self._work = work
        self._used: dict[Owner, tuple[float, float]] = {}  # when, and how much of the burst was used then
        self._began = 0.0

    def begin(self, owner: Owner) -> bool:
        """Whether the project has some left; `end` tells that its work is done."""
        self._began = self._work()
        return self._now(owner) < ARRIVALS_BURST_S

    def end(self, owner: Owner) -> None:
        used = self._now(owner) + max(0.0, self._work() - self._began)
        self._used[owner] = (self._clock(), used)
        if len(self._used) > 1_000:
            self._used = {one: self._used[one] for one in self._used if self._now(one) > 0.0}

    def _now(self, owner: Owner) -> float:
        at, used = self._used.get(owner, (0.0, 0.0))
        return max(0.0, used - ARRIVALS_SHARE * (self._clock() - at)) if used else 0.0


def share_s(owners: int) -> float:
    """Seconds for each of so many projects in one round."""
    return max(LEAST_S, min(MOST_S, ROUND_S / max(1, owners)))


def _from(queues: list[Queue], first: Queue | None) -> list[Queue]:
    at = queues.index(first) if first in queues else 0
    return queues[at:] + queues[:at]
