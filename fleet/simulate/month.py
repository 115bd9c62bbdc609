"""A month of a project: matches, pools, worlds that never sleep, crashes, restarts, lost nodes, managers that die.

`play` has it written down as production would; `recount` works out the bill from what ran, without the journal and
without any function that makes bills. Both must agree to the millisecond.
"""

import heapq
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import count

from fleet.simulate.life import Life, Ran

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
REGIONS = ("us-east", "eu-west")
SIZES = ("small", "medium", "dedicated-small")
_SKEW_MS = 40  # between a node's clock and its manager's


class Month:
    """What happens, in the order of its time; what happens makes more happen."""

    def __init__(self, life: Life, start: int, end: int, seed: int) -> None:
        self._life = life
        self._start = start
        self._end = end
        self._chance = random.Random(seed)
        self._order = count()
        self._todo: list[tuple[int, int, Callable[[int], None]]] = []

    def _later(self, at: float, what: Callable[[int], None]) -> None:
        heapq.heappush(self._todo, (int(at), next(self._order), what))

    async def play(
        self, matches: int, entries: int, worlds: int, now_and_then: Callable[[], Awaitable[None]] | None = None
    ) -> int:
        """So many servers of each kind; how many things happened. The life goes on a little beyond the month."""
        chance = self._chance
        for region in REGIONS:
            await self._life.manager_starts(region)
        span = self._end - self._start
        for number, (amount, kind) in enumerate(
            ((matches, self._match), (entries, self._entry), (worlds, self._world))
        ):
            for _ in range(amount):
                self._later(self._start + span * (chance.random() * 1.1 - 0.1) - number * HOUR_MS, kind)
        done = 0
        while self._todo and self._todo[0][0] < self._end + DAY_MS:
            at, _, what = heapq.heappop(self._todo)
            what(at)
            done += 1
            if done % 15 == 0:
                await self._life.commit()
            if chance.random() < 0.02:
                await self._life.manager_starts(chance.choice(REGIONS))
            if now_and_then is not None and chance.random() < 0.02:
                await self._life.commit()
                await now_and_then()
        await self._life.commit()
        return done

    # Kinds of servers --------------------------------------------------------------------------------------------

    def _match(self, at: int) -> None:
        """A match of some minutes, now and then with a crash in it."""
        name = self._start_one(at, auto_restart=True)
        self._boot(name, at, lambda ready: self._run(name, ready, mean_ms=40 * 60_000))

    def _world(self, at: int) -> None:
        """A persistent world: restarted every few days, crashing now and then, for weeks."""
        name = self._start_one(at, auto_restart=True)
        self._boot(name, at, lambda ready: self._run(name, ready, mean_ms=4 * DAY_MS, lives=12))

    def _entry(self, at: int) -> None:
        """A pool server: idle for a while, then somebody's, or given up."""
        name = self._start_one(at, pool=True)

        def idle(ready: int) -> None:
            until = ready + self._chance.expovariate(1 / (2 * HOUR_MS))
            self._later(until, self._claim(name) if self._chance.random() < 0.8 else self._end_of(name))

        self._boot(name, at, idle)

    # Steps of a life ---------------------------------------------------------------------------------------------

    def _start_one(self, at: int, *, pool: bool = False, auto_restart: bool = False) -> str:
        region, size = self._chance.choice(REGIONS), self._chance.choice(SIZES)
        return self._life.starts(region, size, at, pool=pool, auto_restart=auto_restart)

    def _boot(self, name: str, at: float, then: Callable[[int], None]) -> None:
        def ready(at: int) -> None:
            told = at + self._chance.randint(-_SKEW_MS, _SKEW_MS)
            self._life.is_ready(name, told)
            then(at)

        self._later(at + self._chance.uniform(2_000, 40_000), ready)

    def _claim(self, name: str) -> Callable[[int], None]:
        def claimed(at: int) -> None:
            self._life.is_claimed(name, at)
            self._run(name, at, mean_ms=30 * 60_000)

        return claimed

    def _run(self, name: str, at: int, mean_ms: float, lives: int = 3) -> None:
        """It runs for a while, then something happens; after some lives it ends."""

        def over(at: int) -> None:
            luck = self._chance.random() if lives > 0 else 1.0
            again: Callable[[int], None] = lambda ready: self._run(name, ready, mean_ms, lives - 1)  # noqa: E731
            if luck < 0.2:
                self._life.crashes(name, at + self._chance.randint(-_SKEW_MS, _SKEW_MS))
            elif luck < 0.25:
                self._life.crashes(name, at, "node_lost")
            elif luck < 0.4:
                self._life.restarts(name, at)
            else:
                self._end_of(name)(at)
                return
            self._boot(name, at + 1000, again)

        self._later(at + self._chance.expovariate(1 / mean_ms), over)

    def _end_of(self, name: str) -> Callable[[int], None]:
        def ended(at: int) -> None:
            gone = self._chance.random() < 0.5
            self._life.ends(name, at, gone=gone)
            if not gone:
                self._later(at + 500, lambda later: self._life.is_gone(name, later))

        return ended


def recount(
    ran: Iterable[Ran], start: int, end: int, prices: dict[str, Decimal]
) -> dict[tuple[str, str, str], tuple[int, Decimal]]:
    """(region, size, kind) -> milliseconds and money within [start, end), from the stretches alone."""
    ends: defaultdict[tuple[str, str, str], int] = defaultdict(int)
    for one in ran:
        key = (one.region, one.size, one.kind)
        ends[key] += min(max(one.end, start), end) - min(max(one.start, start), end)
    return {
        key: (ms, (Decimal(ms) / HOUR_MS * prices[key[1]]).quantize(Decimal("0.000001"), ROUND_HALF_EVEN))
        for key, ms in ends.items()
        if ms
    }
