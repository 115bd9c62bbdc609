"""Who may boot next: the region's few boot slots, shared between projects, then between a project's pools.

Pure. Max-min fairness: each free slot goes to the project that has the fewest, and in it to the pool that has the
fewest, so that one project's pools, however many they want and however long they take, leave the others their share.
"""

import heapq
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)

STUCK_S = 60.0
_LEADS = 3.0


class Asks(NamedTuple, Generic[Key]):
    """What a pool has and wants: `booting` hold a slot now, `wanted` more are to be ordered, at most `most` of them."""

    key: Key
    project_id: str
    booting: int
    wanted: int


def share_slots(slots: int, asks: Sequence[Asks[Key]]) -> dict[Key, int]:
    """How many each pool may order now. Among equals, who comes first in `asks` is served first."""
    free = slots - sum(ask.booting for ask in asks)
    given: dict[Key, int] = defaultdict(int)
    pools: dict[str, list[tuple[int, int, int]]] = defaultdict(list)  # project -> (held, place in asks, still wanted)
    held: dict[str, int] = defaultdict(int)
    for place, ask in enumerate(asks):
        held[ask.project_id] += ask.booting
        if ask.wanted > 0:
            pools[ask.project_id].append((ask.booting, place, ask.wanted))
    projects = [(held[name], min(place for _, place, _ in mine), name) for name, mine in pools.items()]
    heapq.heapify(projects)
    for mine in pools.values():
        heapq.heapify(mine)
    while free > 0 and projects:
        has, order, name = heapq.heappop(projects)
        mine = pools[name]
        booting, place, wanted = heapq.heappop(mine)
        given[asks[place].key] += 1
        free -= 1
        if wanted > 1:
            heapq.heappush(mine, (booting + 1, place, wanted - 1))
        if mine:
            heapq.heappush(projects, (has + 1, order, name))
    return dict(given)


def slot_ms(lead_s: float) -> int:
    """How long a booting entry holds its slot: longer than its like usually take, then it is stuck and gives it back.

    It stays ordered: its own deadline ends it, not its slot.
    """
    return int(max(STUCK_S, _LEADS * lead_s) * 1000)
