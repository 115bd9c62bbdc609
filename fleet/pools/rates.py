"""How many claims to expect soon: a few memories of different length, each trusted as far as it has predicted well.

A memory of length tau is a rate that fades by exp(-dt / tau) and rises by 1 / tau at each claim. It predicts the count
of the next H seconds as a negative binomial, whose mean leans on the next slower memory by half a claim. Every bin of a
third of a lead time the memories are scored by the likelihood of what came. A season, if one is known, is one more of
them: the usual rate times how today compares with it.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from math import exp, sqrt
from typing import Any

from fleet.pools.negbin import log_pmf

LENGTHS = (1.0, 2.5, 6.0, 30.0, 200.0)  # of the memories, in multiples of the shortest
SHORTEST_S = 60.0
_PEAK_S, _PEAKS, _REPEATS = 1200.0, 12, 4
SEASON_S = 5400.0  # how long the season's level is remembered
_BINS_PER_LEAD, _LEAST_BIN_S = 3, 3.0
_FORGET = 0.99  # of the scores, per bin
_LEAST_WEIGHT = 0.001
_LEAST_SCORE = -20.0
_SEASON_PRIOR = 4.0  # claims that stand for "as usual"
_EXPERTS = len(LENGTHS) + 1


@dataclass(slots=True)
class Rates:
    """Changed in place. `level` and `usual`: claims that came and that the season expected, both fading."""

    rates: list[float] = field(default_factory=lambda: [0.0] * len(LENGTHS))
    scores: list[float] = field(default_factory=lambda: [0.0] * _EXPERTS)
    bin_s: float = 0.0  # how long the bin is open
    bin_count: float = 0.0
    bin_rates: list[float] = field(default_factory=lambda: [0.0] * _EXPERTS)  # as predicted when it was opened
    bin_sizes: list[float] = field(default_factory=lambda: [0.5] * _EXPERTS)  # claims behind the prediction
    recent: list[float] = field(default_factory=lambda: [0.0] * _BINS_PER_LEAD)  # counts of the last bins
    peaks: list[float] = field(default_factory=list[float])  # the most within one lead time, per third of an hour
    peak_s: float = 0.0  # how long the last of them lasts
    level: float = 0.0
    usual: float = 0.0
    season_now: float | None = None
    season_ahead: float | None = None
    season_age_s: float = 1e9
    weights: list[float] = field(default_factory=list[float])  # as of the last bin; empty: to be computed

    def to_json(self) -> dict[str, Any]:
        return {
            "rates": [float(f"{x:.6g}") for x in self.rates],
            "scores": [float(f"{x:.5g}") for x in self.scores],
            "bin": [self.bin_s, self.bin_count],
            "bin_rates": [float(f"{x:.6g}") for x in self.bin_rates],
            "bin_sizes": [float(f"{x:.5g}") for x in self.bin_sizes],
            "recent": [*self.recent, self.peak_s],
            "peaks": self.peaks,
            "season": [self.level, self.usual],
        }

    @staticmethod
    def from_json(stored: dict[str, Any]) -> "Rates":
        found = Rates()
        for name, length in (("rates", len(LENGTHS)), ("scores", _EXPERTS)):
            values = [float(x) for x in stored[name]]
            if len(values) == length:
                setattr(found, name, values)
        found.bin_s, found.bin_count = (float(x) for x in stored["bin"])
        found.bin_rates = [float(x) for x in stored["bin_rates"]]
        found.bin_sizes = [float(x) for x in stored["bin_sizes"]]
        *found.recent, found.peak_s = (float(x) for x in stored["recent"])
        found.peaks = [float(x) for x in stored["peaks"]]
        found.level, found.usual = (float(x) for x in stored["season"])
        return found


@dataclass(frozen=True, slots=True)
class Expected:
    """The demand of the next lead time."""

    mean: float
    variance: float
    weights: list[float]
    means: list[float]


@lru_cache(maxsize=256)
def widths(lead_s: float) -> tuple[float, ...]:
    """The lengths of the memories, in seconds."""
    return tuple(max(SHORTEST_S, lead_s) * length for length in LENGTHS)


def advance(state: Rates, seconds: float, lead_s: float) -> None:
    """Let time pass: the memories fade, and a full bin is scored."""
    state.rates = [rate * exp(-seconds / width) for rate, width in zip(state.rates, widths(lead_s), strict=True)]
    state.peak_s += seconds
    if state.peak_s >= _PEAK_S or not state.peaks:
        state.peaks = [*state.peaks[-_PEAKS + 1 :], 0.0]
        state.peak_s = 0.0
    if state.season_now is not None:
        fade = exp(-seconds / SEASON_S)
        state.level *= fade
        state.usual = state.usual * fade + state.season_now * seconds
        state.season_age_s += seconds
    state.bin_s += seconds
    if state.bin_s >= _LEAST_BIN_S and state.bin_s >= lead_s / _BINS_PER_LEAD:
        _score(state, lead_s)


def add(state: Rates, count: int, lead_s: float) -> None:
    """`count` claims came now."""
    state.rates = [rate + count / width for rate, width in zip(state.rates, widths(lead_s), strict=True)]
    if state.season_now is not None:
        state.level += count
    state.bin_count += count
    if state.peaks:
        state.peaks[-1] = max(state.peaks[-1], sum(state.recent) + state.bin_count)


def expected(state: Rates, lead_s: float) -> Expected:
    """The mixture over the next `lead_s`."""
    weights = _weights(state)
    mean = square = extra = 0.0
    means: list[float] = []
    for weight, (rate, size, width) in zip(weights, _predictions(state, lead_s, state.season_ahead), strict=True):
        mu = rate * lead_s
        means.append(mu)
        one = weight * mu
        mean += one
        square += one * mu
        extra += one * mu * (1 + lead_s / (3 * width)) / size
    over = square - mean * mean
    return Expected(mean, mean + extra + (over if over > 0 else 0.0), weights, means)


def repeated_peak(state: Rates) -> float:
    """What came within one lead time again and again in the last four hours: a single crowd is no habit."""
    return sorted(state.peaks)[-_REPEATS] if len(state.peaks) >= _REPEATS else 0.0


def _predictions(state: Rates, lead_s: float, season: float | None) -> list[tuple[float, float, float]]:
    """Per expert: its rate, the claims behind it, the seconds behind it. A memory leans on the next slower one."""
    rates = state.rates
    found: list[tuple[float, float, float]] = []
    for own, slower, width in zip(rates, [*rates[1:], rates[-1]], widths(lead_s), strict=True):
        count = own * width
        others = slower * width
        if others > 1:
            found.append(((count + 0.5) / (width + 0.5 / slower), count + 0.5, width))
        else:
            found.append(((count + 0.5 * others) / (1.5 * width), count + 0.5, width))
    if season is not None and state.season_now is not None:
        found.append((season * _level(state), state.level + 0.5, SEASON_S))
    return found


def _level(state: Rates) -> float:
    return (state.level + _SEASON_PRIOR) / (state.usual + _SEASON_PRIOR)


def _weights(state: Rates) -> list[float]:
    """By the scores; in the middle of a bin that is full of surprise, by what it has shown so far too."""
    known = _EXPERTS if state.season_now is not None else _EXPERTS - 1
    if state.bin_count > 1:
        likely = max(state.bin_rates[:known]) * state.bin_s
        if state.bin_count > likely + 2 * sqrt(likely) or state.bin_count < likely - 3 * sqrt(likely):
            return _normal([one + _likelihood(state, i) for i, one in enumerate(state.scores[:known])])
    if len(state.weights) != known:
        state.weights = _normal(state.scores[:known])
    return state.weights


def _normal(scores: list[float]) -> list[float]:
    best = max(scores)
    weights = [exp(score - best) + _LEAST_WEIGHT for score in scores]
    total = sum(weights)
    return [weight / total for weight in weights]


def _likelihood(state: Rates, i: int) -> float:
    """How well expert i predicted the bin so far."""
    shortest = state.bin_s if i == len(LENGTHS) else max(SHORTEST_S, state.bin_s) * LENGTHS[i]
    shape = state.bin_sizes[i] / (1 + state.bin_s / (3 * shortest))
    return log_pmf(state.bin_count, max(state.bin_rates[i] * state.bin_s, 1e-4), shape)


def _score(state: Rates, lead_s: float) -> None:
    """Close the bin, and open the next one with the predictions of now."""
    known = _EXPERTS if state.season_now is not None else _EXPERTS - 1
    # A bin in which little could be learned makes little be forgotten: a few claims an hour teach as well, in days.
    told = min(1.0, state.bin_count + max(state.bin_rates[1:known]) * state.bin_s)
    forget = 1 - (1 - _FORGET) * told
    for i in range(known):
        state.scores[i] = forget * state.scores[i] + _likelihood(state, i)
    if known < _EXPERTS:  # a season that becomes known later begins as an average one
        state.scores[-1] = sum(state.scores[:known]) / known
    best = max(state.scores)
    state.scores = [max(score - best, _LEAST_SCORE) for score in state.scores]
    state.weights = []
    for i, (rate, size, _) in enumerate(_predictions(state, lead_s, state.season_now)):
        state.bin_rates[i], state.bin_sizes[i] = rate, size
    state.recent = [*state.recent[1:], state.bin_count]
    state.bin_s = state.bin_count = 0.0
