"""What others do, and what the best of them would do with hindsight. Here targets do not depend on what was hit, so
they are computed as whole arrays, and their pools run in one tight loop.

`fixed`, `percentage` and `refill_5min` get their one parameter by hindsight: the smallest that reaches the slo on these
very arrivals. Nobody can do that in advance.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.pools.negbin import quantile
from fleet.simulate.replay import TICK_S, LeadOf, Outcome, outcome
from fleet.simulate.shapes import GRID_S, Demand, Floats

Targets = NDArray[np.int64]
PERIOD_S = 300.0
_WINDOW_S = 300.0
_HW_BIN_S, _HW_SEASON = 600.0, 144  # Holt and Winters: ten minutes, a season of a day
_HW_LEVEL, _HW_TREND, _HW_SEASONAL = 0.3, 0.01, 0.2


@dataclass(frozen=True, slots=True)
class Script:
    """The moments at which something may happen: claims, and a tick every ten seconds."""

    demand: Demand
    moments: Floats
    is_claim: NDArray[np.bool_]

    @staticmethod
    def of(demand: Demand) -> "Script":
        ticks = np.arange(demand.begins, demand.ends, TICK_S)
        moments = np.concatenate([demand.times, ticks])
        order = np.argsort(moments, kind="stable")
        flags = np.concatenate([np.ones(len(demand.times), bool), np.zeros(len(ticks), bool)])
        return Script(demand, moments[order], flags[order])


def run(script: Script, targets: Targets, lead_of: LeadOf, *, drops: bool = True) -> Outcome:
    """A pool that follows `targets`, one per moment. Without `drops` a target below the stock changes nothing."""
    booting: list[float] = []
    missed: list[float] = []
    begins = since = script.demand.begins
    warm = int(targets[0])
    area, idle = 0.0, -since * warm
    pop, push = heapq.heappop, heapq.heappush
    for at, claim, target in zip(script.moments.tolist(), script.is_claim.tolist(), targets.tolist(), strict=True):
        area += (warm + len(booting)) * (at - since)
        since = at
        while booting and booting[0] <= at:
            idle -= pop(booting)
            warm += 1
        if claim:
            if warm:
                warm -= 1
                idle += at
            else:
                missed.append(at)
        total = warm + len(booting)
        if total < target:
            for _ in range(target - total):
                push(booting, at + lead_of())
        elif drops and total > target and warm:
            gone = min(warm, total - target)
            warm -= gone
            idle += gone * at
    ends = script.demand.ends
    area += (warm + len(booting)) * (ends - since)
    return outcome(script.demand.times.tolist(), missed, area, idle + warm * ends, ends - begins, lead_of)


def fixed(script: Script, size: float) -> Targets:
    return np.full(len(script.moments), int(size), dtype=np.int64)


def refill_5min(script: Script, size: float) -> Targets:
    """Full at each fifth minute; in between nothing is ordered. To be run without drops."""
    period = (script.moments - script.demand.begins) // PERIOD_S
    first = np.concatenate([[True], period[1:] > period[:-1]])
    return np.where(first, int(size), 0)


def percentage(script: Script, share: float, session_s: float) -> Targets:
    """Agones' buffer in per cent: ready servers in proportion to the running games, which last `session_s`."""
    times = script.demand.times
    moments = script.moments
    running = np.searchsorted(times, moments, "right") - np.searchsorted(times, moments - session_s)
    return np.maximum(1, np.ceil(share * running)).astype(np.int64)


def reactive(script: Script, lead_s: float, slo: float) -> Targets:
    """The rate of the last five minutes, and the Poisson quantile: what one writes first."""
    times = script.demand.times
    seen = np.searchsorted(times, script.moments, "right") - np.searchsorted(times, script.moments - _WINDOW_S)
    means: Floats = seen.astype(np.float64) * (lead_s / _WINDOW_S)
    return poisson_stock(means, slo)


def poisson_stock(means: Floats, slo: float) -> Targets:
    """The base stock for Poisson demand: the smallest S with P(Poisson(mean) >= S) <= 1 - slo."""
    values, back = np.unique(np.round(means, 3), return_inverse=True)
    sizes = [1 + quantile(mean, mean, 1 - slo) for mean in values.tolist()]
    return np.array(sizes, dtype=np.int64)[back]


def oracle(script: Script, rate: Floats, lead_s: float, slo: float) -> Targets:
    """Knows the rate of the next lead time, and keeps what the Poisson formula says; of batches it knows the size."""
    demand = script.demand
    total = np.concatenate([[0.0], np.cumsum(rate) * GRID_S])
    places = np.arange(len(total)) * GRID_S
    since = script.moments - demand.begins
    means = np.interp(since + lead_s, places, total) - np.interp(since, places, total)
    if demand.batch == 1:
        return poisson_stock(means, slo)
    # Geometric batches: the variance is (2b - 1) times as big, and a claim's mean place in its batch is b.
    shift, noise = demand.batch - 1, demand.batch * (demand.batch - 1)
    values, back = np.unique(np.round(means, 3), return_inverse=True)
    sizes = [1 + quantile(m + shift, m * (2 * demand.batch - 1) + shift + noise, 1 - slo) for m in values.tolist()]
    return np.array(sizes, dtype=np.int64)[back]


def holt_winters(script: Script, lead_s: float, slo: float) -> Targets:
    """Additive Holt-Winters over ten minutes with a daily season; its own errors widen the quantile."""
    demand = script.demand
    length = int((demand.ends - demand.begins) // _HW_BIN_S) + 1
    place = ((demand.times - demand.begins) // _HW_BIN_S).astype(np.int64)
    counts = np.bincount(place, minlength=length).astype(float).tolist()
    level, trend, season, error = counts[0], 0.0, [0.0] * _HW_SEASON, 0.0
    sizes: list[int] = []
    for k, count in enumerate(counts):
        ahead = max(0.0, level + trend + season[k % _HW_SEASON])
        mean = ahead * lead_s / _HW_BIN_S
        share = lead_s / _HW_BIN_S
        sizes.append(1 + quantile(mean, mean + max(0.0, error - ahead) * share * share, 1 - slo))
        error += 0.05 * ((count - ahead) ** 2 - error)
        before = level
        level = _HW_LEVEL * (count - season[k % _HW_SEASON]) + (1 - _HW_LEVEL) * (level + trend)
        trend = _HW_TREND * (level - before) + (1 - _HW_TREND) * trend
        season[k % _HW_SEASON] += _HW_SEASONAL * (count - level - season[k % _HW_SEASON])
    spot = np.minimum(((script.moments - demand.begins) // _HW_BIN_S).astype(np.int64), length - 1)
    return np.array(sizes, dtype=np.int64)[spot]


def by_hindsight(play: Callable[[float], Outcome], slo: float, low: float, high: float, step: float) -> Outcome:
    """The outcome of the smallest parameter that reaches the slo, between `low` and `high` to within `step`."""
    best = play(high)
    while best.hit_rate < slo and high < 1e7:
        low, high = high, high * 4
        best = play(high)
    while high - low > step:
        middle = (low + high) / 2 if step < 1 else (low + high) // 2
        tried = play(middle)
        if tried.hit_rate >= slo:
            best, high = tried, middle
        else:
            low = middle
    return best
