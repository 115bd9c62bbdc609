"""How many servers a pool keeps ready or booting: a base stock, refilled one for one.

A server ordered now is warm one lead time from now, so the stock must outlast the claims of one lead time. The target
is the smallest S that the claims of the next lead time stay below in all but a share alpha of the cases. `rates.py`
says what claims to expect, and how unsurely; alpha follows the misses that really happened (adaptive conformal
inference), so the hit rate wanted is reached although no model is right. Orders are made at once; stock is
dropped only above the largest target of the last `hold_s`. docs/pool-policy.md has the maths and the figures.

Everything is a function of what is passed in. States are changed in place and returned; use what is returned. `decide`
is meant to be asked at every claim and every few seconds: a longer silence than fifteen minutes is taken for a clock
that jumped or a manager that was down, and nothing is forgotten over it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, exp
from typing import Any, Literal

from fleet.pools.announced import Announced, Coverage, combine, learn, thirds
from fleet.pools.negbin import cdf, quantile
from fleet.pools.rates import Expected, Rates, add, advance, expected, repeated_peak, widths
from fleet.pools.season import Season

Explanation = dict[str, "float | list[float]"]

UNSEEN_S = 900.0  # longer silences are not demand of zero: nobody was looking
JITTER_S = 1.0  # claims may be told slightly out of order
_CAREFUL, _BOLD = 0.8, 0.97  # share of the allowed misses that is spent on purpose
_RESERVE, _RESERVE_OF_WORST = 10.0, 2.0  # misses kept back: so many, and so many times the worst unusual debt of late
_USUAL_DEBT = 12.0  # chance alone brings this much
_COUNTED_CLAIMS = 50_000.0
_STEADY = 12.0  # misses that are owed until alpha reaches zero
_PATIENCE = 24.0  # misses owed beyond that until the stock is that of the last bursts
_CREDIT = 40.0  # misses that can be saved up
_DEBT_S = 14 * 86_400.0  # debts are forgiven, so that one disaster is not paid for by weeks of idle servers
_LEAST_ALPHA, _MOST_ALPHA = 1e-5, 0.5
_WIDEN = 1.5  # of the variance beyond Poisson: what drifts, drifts on
_BATCH_GAP_S = 0.25
_BATCH_GAIN = 0.02
_PEAKS = 12
_SEASON_FRESH_S = 15.0
_OBSERVED_CLAIMS = 2000.0


@dataclass(frozen=True, slots=True)
class StockPolicy:
    """What the pool's owner wants. Both costs given: the share of misses follows from them instead of `slo`."""

    slo: float = 0.99
    floor: int = 1
    ceiling: int | None = None
    hold_s: float = 600
    miss_cost: float | None = None
    idle_cost_per_hour: float | None = None
    mode: Literal["auto", "fixed", "shadow"] = "auto"


@dataclass(slots=True)
class StockState:
    """What a pool has learned; below 2 KB as JSON. `debt`: misses beyond what the slo allows (negative: saved)."""

    at: float
    rates: Rates = field(default_factory=Rates)
    coverage: Coverage = field(default_factory=Coverage)
    debt: float = 0.0
    claims: float = 0.0  # of about the last two thousand
    missed: float = 0.0
    counted: float = 0.0  # claims of about the last fifty thousand
    worst: float = 0.0  # the largest debt of late
    batch: float = 0.0  # claims of the batch under way
    batch_at: float = -1e18
    place: float = 1.0  # mean place of a claim in its batch
    place_square: float = 1.0
    peaks: list[list[float]] = field(default_factory=list[list[float]])  # [from when, largest target since]
    told_at: float = 0.0  # when `decide` was last asked
    told: float = 0.0  # claims since

    def to_json(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "rates": self.rates.to_json(),
            "coverage": self.coverage.to_json(),
            "misses": [self.debt, self.claims, self.missed, self.counted, self.worst],
            "batch": [self.batch, self.batch_at, self.place, self.place_square],
            "peaks": self.peaks,
            "told": [self.told_at, self.told],
        }

    @staticmethod
    def from_json(stored: dict[str, Any]) -> "StockState":
        """The state again; one of another version of this policy begins anew at its time."""
        state = StockState(float(stored["at"]), told_at=float(stored["at"]))
        try:
            rates, coverage = Rates.from_json(stored["rates"]), Coverage.from_json(stored["coverage"])
            debt, claims, missed, counted, worst = (float(x) for x in stored["misses"])
            batch, batch_at, place, place_square = (float(x) for x in stored["batch"])
            peaks = [[float(x) for x in peak] for peak in stored["peaks"]]
            told_at, told = (float(x) for x in stored["told"])
        except (KeyError, TypeError, ValueError):
            return state
        found = (debt, claims, missed, counted, worst, batch, batch_at, place, place_square, peaks, told_at, told)
        return StockState(state.at, rates, coverage, *found)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a decision was made of."""

    found: Expected
    mean: float
    variance: float
    alpha: float
    lead_s: float
    announced: Sequence[float]
    debt: float
    hit_rate: float
    rates: Sequence[float]
    season: float
    batch: float

    def explain(self) -> Explanation:
        return {
            "mean": self.mean,
            "variance": self.variance,
            "lead_seconds": self.lead_s,
            "alpha": self.alpha,
            "debt": self.debt,
            "observed_hit_rate": self.hit_rate,
            "rates_per_minute": [60 * rate for rate in self.rates],
            "memories_seconds": list(widths(self.lead_s)),
            "means": list(self.found.means),
            "weights": list(self.found.weights),
            "season_per_minute": 60 * self.season,
            "announced": list(self.announced),
            "batch": self.batch,
        }


@dataclass(frozen=True, slots=True)
class StockDecision:
    """Order max(0, target - warm - booting). Never cancel a booting server; drop warm ones only above `keep`."""

    target: int
    keep: int
    auto_target: int
    expected_hit_rate: float
    expected_claims: float  # in the next lead time
    inputs: "Inputs"

    @property
    def explanation(self) -> Explanation:
        """Why, in numbers. Made when it is asked for: decisions are many, questions few."""
        return self.inputs.explain()


def new_state(at: float) -> StockState:
    """A pool that nobody has asked yet."""
    return StockState(at, told_at=at)


def arrived(state: StockState, at: float, count: int, misses: int, lead_s: float, policy: StockPolicy) -> StockState:
    """`count` claims came at that moment, `misses` of them found nothing warm."""
    if count <= 0:
        return state
    lead_s = max(lead_s, 0.1)
    _pass_time(state, at, lead_s)
    add(state.rates, count, lead_s)
    state.told += count
    allowed = _allowed(state, policy)
    state.debt = max(-_CREDIT * min(1.0, 100 * allowed), state.debt + misses - allowed * count)
    if state.debt > state.worst:
        state.worst = state.debt
    state.counted += count - count * min(1.0, state.counted / _COUNTED_CLAIMS)
    fade = exp(-count / _OBSERVED_CLAIMS)
    state.claims = state.claims * fade + count
    state.missed = state.missed * fade + misses
    _batch(state, state.at, count)
    return state


def decide(
    state: StockState,
    at: float,
    lead_s: float,
    announced: Announced,
    policy: StockPolicy,
    season: Season | None = None,
) -> tuple[StockState, StockDecision]:
    """The stock to hold now. `announced`: (time, expected count) pairs known ahead; `season`: what is usual when."""
    lead_s = max(lead_s, 0.1)
    _pass_time(state, at, lead_s)
    _look_up(state.rates, season, state.at, lead_s)
    mean, variance, known, found = _demand(state, lead_s, announced)
    alpha = _alpha(state, policy, mean, lead_s)
    shift = max(0.0, state.place - 1)
    wide = mean + _WIDEN * (variance - mean) if variance > mean else variance
    spread = wide + max(0.0, state.place_square - state.place**2)
    auto = max(1, 1 + quantile(mean + shift, spread, alpha), _repeated(state, policy))
    bounded = max(policy.floor, auto if policy.ceiling is None else min(auto, policy.ceiling))
    target = bounded if policy.mode == "auto" else policy.floor
    keep = max(target, _keep(state, target, policy.hold_s))
    keep = keep if policy.ceiling is None else max(target, min(keep, policy.ceiling))
    inputs = _inputs(state, found, mean, spread, alpha, lead_s, known)
    hit_rate = 1 - alpha if target == auto else cdf(target - 1, mean + shift, spread)
    return state, StockDecision(target, keep, auto, hit_rate, mean, inputs)


def _pass_time(state: StockState, at: float, lead_s: float) -> None:
    """Let the state be of the moment `at`. After a jump of the clock everything remembered moves with it."""
    seconds = at - state.at
    if -JITTER_S <= seconds < 0:
        return
    if seconds < 0 or seconds > UNSEEN_S:
        state.at = at
        state.told_at += seconds
        state.batch_at += seconds
        state.peaks = [[when + seconds, size] for when, size in state.peaks]
        return
    if seconds > 0:
        state.at = at
        advance(state.rates, seconds, lead_s)
        if state.worst > 0:
            fade = exp(-seconds / _DEBT_S)
            state.worst *= fade
            state.debt *= fade if state.debt > 0 else 1.0


def _look_up(rates: Rates, season: Season | None, at: float, lead_s: float) -> None:
    if season is None:
        rates.season_now = rates.season_ahead = None
    elif rates.season_now is None or rates.season_age_s >= _SEASON_FRESH_S:
        rates.season_age_s = 0.0
        rates.season_now, rates.season_ahead = season.rate(at), season.ahead(at, lead_s)
        if rates.season_ahead is None:
            rates.season_now = None


def _demand(state: StockState, lead_s: float, announced: Announced) -> tuple[float, float, Sequence[float], Expected]:
    """Mean and variance of the claims of the next lead time; what is announced, and what would be expected without."""
    found = expected(state.rates, lead_s)
    if not announced and not state.coverage.active:
        state.told_at, state.told = state.at, 0.0
        return found.mean, found.variance, (), found
    known = thirds(announced, state.at, lead_s)
    learn(state.coverage, max(0.0, state.at - state.told_at), state.told, known, lead_s / 3)
    state.told_at, state.told = state.at, 0.0
    mean, variance = combine(state.coverage, known, found.mean, found.variance)
    return mean, variance, known, found


def _alpha(state: StockState, policy: StockPolicy, mean: float, lead_s: float) -> float:
    """The share of claims that may miss, now."""
    if policy.miss_cost is not None and policy.idle_cost_per_hour is not None:
        per_hour = max(
            mean / lead_s * 3600, 1e-6
        )  # one server more is worth it while it saves more misses than it costs
        return min(_MOST_ALPHA, max(_LEAST_ALPHA, policy.idle_cost_per_hour / (per_hour * policy.miss_cost)))
    allowed = _allowed(state, policy)
    return min(_MOST_ALPHA, 6.25 * allowed, max(_LEAST_ALPHA, allowed * (1 - state.debt / _STEADY)))


def _allowed(state: StockState, policy: StockPolicy) -> float:
    """The share of misses that is spent on purpose. After many claims without a bad surprise less is kept back."""
    share = 1 - policy.slo
    surprise = state.worst - _USUAL_DEBT
    kept = (_RESERVE + (_RESERVE_OF_WORST * surprise if surprise > 0 else 0.0)) / (share * state.counted + 1e-9)
    return share * min(_BOLD, max(_CAREFUL, 1 - kept))


def _repeated(state: StockState, policy: StockPolicy) -> int:
    """What is owed for bursts that nothing foretells is met by being ready for the last ones again."""
    if policy.miss_cost is not None:
        return 1
    owed = (state.debt - _STEADY) / _PATIENCE
    return ceil(repeated_peak(state.rates) * min(1.0, owed)) if owed > 0 else 1


def _batch(state: StockState, at: float, count: int) -> None:
    """Learn a claim's place among those that come at the same moment, as one match does that starts many servers."""
    gap = at - state.batch_at
    before = state.batch if gap <= _BATCH_GAP_S else 0.0
    state.batch, state.batch_at = before + count, at
    mean = before + (count + 1) / 2
    square = before * before + before * (count + 1) + (count + 1) * (2 * count + 1) / 6
    gain = _BATCH_GAIN if count == 1 else 1 - (1 - _BATCH_GAIN) ** min(count, 200)
    state.place += gain * (mean - state.place)
    state.place_square += gain * (square - state.place_square)


def _keep(state: StockState, target: int, hold_s: float) -> int:
    """The largest target of the last `hold_s`, in at most a dozen pieces."""
    at, peaks = state.at, state.peaks
    step = hold_s / _PEAKS
    if peaks and at - peaks[-1][0] < step:
        peaks[-1][1] = max(peaks[-1][1], target)
    else:
        peaks.append([at, float(target)])
    while (peaks and at - peaks[0][0] > hold_s) or len(peaks) > _PEAKS + 1:
        del peaks[0]
    return int(max([size for _, size in peaks], default=target))


def _inputs(
    state: StockState,
    found: Expected,
    mean: float,
    variance: float,
    alpha: float,
    lead_s: float,
    announced: Sequence[float],
) -> Inputs:
    rates = state.rates  # its lists are replaced, never changed
    hit_rate = 1 - state.missed / state.claims if state.claims else 1.0
    season = rates.season_now or 0.0
    return Inputs(
        found, mean, variance, alpha, lead_s, announced, state.debt, hit_rate, rates.rates, season, state.place
    )
