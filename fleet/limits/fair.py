"""Places that tenants share: who may take the next one. Pure but for `FairGate`, which waits.

Max-min fairness with two bounds: nobody holds more than `each`, and the last `spare` places are for those who hold
none, so that many busy tenants together still leave room for one who comes anew.
"""

import asyncio
import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from fleet.errors import TooMany

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Places:
    """`all` places; `each`: at most for one owner; `spare`: of them, only for owners that hold none."""

    all: int
    each: int
    spare: int = 0

    def may(self, held: int, free: int) -> bool:
        """Whether an owner that holds so many may take another while so many are free."""
        return held < self.each and free > (self.spare if held else 0)


def next_turns(places: Places, under_way: Mapping[str, int], waiting: Mapping[str, int]) -> list[str]:
    """Whose turn it is, one name for each place that is given now: always the one with the fewest under way, in the
    order of `waiting` among equals. `waiting`: how many places each wants."""
    free = places.all - sum(under_way.values())
    line = [(under_way.get(name, 0), order, name, count) for order, (name, count) in enumerate(waiting.items())]
    line = [one for one in line if one[3] > 0]
    heapq.heapify(line)
    turns: list[str] = []
    while line:
        held, order, name, count = heapq.heappop(line)
        if not places.may(held, free):
            if free <= 0:
                break
            continue
        turns.append(name)
        free -= 1
        if count > 1:
            heapq.heappush(line, (held + 1, order, name, count - 1))
    return turns


class FairQueue(Generic[Item]):
    """What waits, by owner: taken in turns, one of each owner at a time, and in order within an owner."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Item]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def waiting(self, owner: str) -> int:
        return len(self._lines.get(owner, ()))

    def put(self, owner: str, item: Item) -> None:
        self._lines.setdefault(owner, deque()).append(item)
        self._count += 1

    def take(self) -> Item:
        """The next; IndexError if nothing waits. Its owner goes to the end of the line."""
        if not self._lines:
            raise IndexError("nothing waits")
        owner, line = self._lines.popitem(last=False)
        item = line.popleft()
        self._count -= 1
        if line:
            self._lines[owner] = line
        return item

    def take_some(self, most: int, of_one: int) -> list[Item]:
        """Up to `most`, and while several owners wait at most `of_one` of each."""
        alone, taken, of = len(self._lines) == 1, list[Item](), Counter[str]()
        while self._lines and len(taken) < most:
            owner = next(iter(self._lines))
            if not alone and of[owner] >= of_one:
                break  # and so has everybody else who waits still: they are served in rounds
            of[owner] += 1
            taken.append(self.take())
        return taken


class FairGate:
    """Places of one process. Who finds none waits, at most `wait_s` (None: as long as the caller likes) and with at
    most `queue` others of the same owner; a place that becomes free goes to the owner that holds the fewest."""

    def __init__(self, what: str, places: Places, *, queue: int, wait_s: float | None) -> None:
        self._what = what
        self._places = places
        self._queue = queue
        self._wait_s = wait_s
        self._held = Counter[str]()
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}

    def held(self, owner: str) -> int:
        return self._held[owner]

    @property
    def free(self) -> int:
        return self._places.all - self._held.total()

    @asynccontextmanager
    async def place(self, owner: str) -> AsyncGenerator[None]:
        """A place while inside. `TooMany` where the owner's line is full, or none became free in time."""
        await self._enter(owner)
        try:
            yield
        finally:
            self._leave(owner)

    async def _enter(self, owner: str) -> None:
        if not self._lines.get(owner) and self._places.may(self._held[owner], self.free):
            self._held[owner] += 1
            return
        line = self._lines.setdefault(owner, deque())
        if len(line) >= self._queue:
            raise TooMany(f"The project has {self._held[owner]} {self._what} under way and {len(line)} waiting.")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._leave(owner)  # given in the very moment in which its waiter went away
            elif turn in line:
                line.remove(turn)
                if not line and self._lines.get(owner) is line:
                    del self._lines[owner]
            if isinstance(error, TimeoutError):
                raise TooMany(f"The project has too many {self._what} under way; none ended in time.") from None
            raise

    def _leave(self, owner: str) -> None:
        self._held[owner] -= 1
        if self._held[owner] <= 0:
            del self._held[owner]
        self._hand_out()

    def _hand_out(self) -> None:
        for owner in next_turns(self._places, self._held, {name: len(line) for name, line in self._lines.items()}):
            line = self._lines[owner]
            turn = line.popleft()
            if not line:
                del self._lines[owner]
            if not turn.done():
                self._held[owner] += 1
                turn.set_result(None)
