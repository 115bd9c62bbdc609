"""The production policy in the simulator's clothes."""

from bisect import bisect_right
from collections.abc import Sequence

from fleet.pools.lead import LeadState, booted, lead_seconds
from fleet.pools.season import Season
from fleet.pools.stock import StockPolicy, arrived, decide, new_state
from fleet.simulate.replay import Levels

MINUTE_S = 60.0
_DECIDE_PER_LEAD = 60  # asked again after a sixtieth of the lead time, or at a miss; in between stock is only refilled


class Ours:
    """`fleet.pools.stock` with a season learned on the way. `announced_s`: claims are known that long ahead."""

    def __init__(
        self,
        lead_s: float,
        policy: StockPolicy,
        *,
        learn_lead: bool = False,
        season: bool = True,
        announced_s: float = 0.0,
        times: Sequence[float] = (),
    ) -> None:
        self._policy = policy
        self._fixed_lead = None if learn_lead else lead_s
        self._lead = LeadState(lead_s)
        self._season = Season() if season else None
        self._minute = 0.0
        self._count = 0
        self._announced_s = announced_s
        self._times = times

    def start(self, at: float) -> Levels:
        self._state = new_state(at)
        self._minute, self._next = at, at
        return self._decide(at)

    def claimed(self, at: float, count: int, misses: int) -> Levels:
        self._state = arrived(self._state, at, count, misses, self._lead_s, self._policy)
        self._count += count
        if at >= self._next or misses or self._announced_s:
            return self._decide(at)
        return self._levels

    def tick(self, at: float) -> Levels:
        if at - self._minute >= MINUTE_S and self._season is not None:
            self._season.observe(self._minute, self._count, at - self._minute)
            self._minute, self._count = at, 0
        return self._decide(at)

    def booted(self, seconds: float) -> None:
        if self._fixed_lead is None:
            self._lead = booted(self._lead, seconds)

    @property
    def _lead_s(self) -> float:
        return self._fixed_lead or lead_seconds(self._lead)

    def _decide(self, at: float) -> Levels:
        lead_s = self._lead_s
        known = self._known(at, lead_s) if self._announced_s else ()
        self._state, decision = decide(self._state, at, lead_s, known, self._policy, self._season)
        self._next = at + lead_s / _DECIDE_PER_LEAD
        self._levels = Levels(decision.target, decision.keep)
        return self._levels

    def _known(self, at: float, lead_s: float) -> list[tuple[float, float]]:
        first = bisect_right(self._times, at)
        last = bisect_right(self._times, at + min(self._announced_s, lead_s), lo=first)
        return [(when, 1.0) for when in self._times[first:last]]
