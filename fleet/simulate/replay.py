"""One simulated pool: claims, boots, orders and drops in virtual time.

A claim that finds a warm server takes it (hit); one that does not goes its own cold way and takes nothing from the pool
(miss), as in the region manager. The policy is asked at claims and every ten seconds.
"""

import heapq
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

TICK_S = 10.0
LeadOf = Callable[[], float]


@dataclass(slots=True)
class Levels:
    """Order up to `target`, drop warm ones above `keep`."""

    target: int
    keep: int


class Policy(Protocol):
    """What the simulated pool asks. `claimed` and `tick` return the levels from now on."""

    def start(self, at: float) -> Levels: ...
    def claimed(self, at: float, count: int, misses: int) -> Levels: ...
    def tick(self, at: float) -> Levels: ...
    def booted(self, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy made of the arrivals."""

    hit_rate: float
    mean_pool: float
    idle_server_hours: float
    p99_wait: float
    claims: int
    misses: int
    worst_hour_hit_rate: float

    def as_json(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.__slots__}


class _Pool:
    """Warm and booting servers, and the integrals over them."""

    def __init__(self, at: float, levels: Levels, lead_of: LeadOf, told: Callable[[float], None]) -> None:
        self.warm = max(0, levels.target)
        self.booting: list[tuple[float, float]] = []  # (ready at, lead)
        self.lead_of = lead_of
        self.told = told
        self.area = 0.0  # of warm + booting
        self.idle = -at * self.warm  # of warm: leaving times minus coming times
        self.since = at

    def pass_to(self, at: float) -> None:
        booting = self.booting
        self.area += (self.warm + len(booting)) * (at - self.since)
        self.since = at
        while booting and booting[0][0] <= at:
            ready, lead = heapq.heappop(booting)
            self.warm += 1
            self.idle -= ready
            self.told(lead)

    def take(self, at: float, count: int) -> int:
        """Claim; returns how many missed."""
        hits = min(count, self.warm)
        self.warm -= hits
        self.idle += hits * at
        return count - hits

    def follow(self, at: float, levels: Levels) -> None:
        total = self.warm + len(self.booting)
        for _ in range(levels.target - total):
            lead = self.lead_of()
            heapq.heappush(self.booting, (at + lead, lead))
        surplus = min(self.warm, total - max(levels.keep, levels.target))
        if surplus > 0:
            self.warm -= surplus
            self.idle += surplus * at

    def finish(self, at: float) -> None:
        self.pass_to(at)
        self.idle += self.warm * at


def replay(
    times: Sequence[float], policy: Policy, lead_of: LeadOf, begins: float | None = None, ends: float | None = None
) -> Outcome:
    """Run the claims at `times` (ascending) through the policy."""
    begins = times[0] if begins is None else begins
    ends = times[-1] if ends is None else ends
    pool = _Pool(begins, policy.start(begins), lead_of, policy.booted)
    missed: list[float] = []
    next_tick, place, number = begins + TICK_S, 0, len(times)
    while place < number:
        at = times[place]
        while next_tick < at:
            pool.pass_to(next_tick)
            pool.follow(next_tick, policy.tick(next_tick))
            next_tick += TICK_S
        last = place + 1
        while last < number and times[last] == at:
            last += 1
        pool.pass_to(at)
        misses = pool.take(at, last - place)
        if misses:
            missed += [at] * misses
        pool.follow(at, policy.claimed(at, last - place, misses))
        place = last
    pool.finish(max(ends, times[-1]))
    return outcome(times, missed, pool.area, pool.idle, max(ends, times[-1]) - begins, lead_of)


def outcome(
    times: Sequence[float], missed: Sequence[float], area: float, idle: float, seconds: float, lead_of: LeadOf
) -> Outcome:
    """Sum up. A miss waits for one cold start, a hit for nothing."""
    share = len(missed) / len(times)
    waits = sorted(lead_of() for _ in range(min(len(missed), 10_000)))
    p99 = waits[min(len(waits) - 1, int((1 - 0.01 / share) * len(waits)))] if share > 0.01 else 0.0
    return Outcome(
        hit_rate=1 - share,
        mean_pool=area / max(seconds, 1e-9),
        idle_server_hours=idle / 3600,
        p99_wait=p99,
        claims=len(times),
        misses=len(missed),
        worst_hour_hit_rate=_worst_hour(times, missed),
    )


def _worst_hour(times: Sequence[float], missed: Sequence[float]) -> float:
    """The lowest share of hits in any hour that has at least fifty claims, or of all if none has."""
    worst, at = 1 - len(missed) / len(times), times[0]
    while at < times[-1]:
        claims = bisect_right(times, at + 3600) - bisect_right(times, at)
        if claims >= 50:
            worst = min(worst, 1 - (bisect_right(missed, at + 3600) - bisect_right(missed, at)) / claims)
        at += 3600
    return worst
