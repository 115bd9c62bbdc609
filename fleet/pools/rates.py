"""How many claims to expect soon: a few memories of different length, each trusted as far as it has predicted well.

A memory of length tau is a rate that fades by exp(-dt / tau) and rises by 1 / tau at each claim. It predicts the count
of the next H seconds as a negative binomial, whose mean leans on the next slower memory by half a claim. Every bin of a
third of a lead time the memories are scored by the likelihood of what came. A season, if one is known, is one more of
them: the usual rate times how today compares with it.
"""

from dataclasses import dataclass, field
from math import exp, sqrt
from typing import Any

from fleet.pools.negbin import log_pmf

LENGTHS = (1.0, 2.5, 6.0, 30.0, 200.0)  # of the memories, in multiples of the shortest
SHORTEST_S = 90.0
SEASON_S = 5400.0  # how long the season's level is remembered
_BINS_PER_LEAD, _LEAST_BIN_S = 3, 3.0
_FORGET = 0.99  # of the scores, per bin
_LEAST_WEIGHT = 0.001
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
    level: float = 0.0
    usual: float = 0.0
    season_now: float | None = None
    season_ahead: float | None = None
    season_age_s: float = 1e9

    def to_json(self) -> dict[str, Any]:
        return {
            "rates": [float(f"{x:.6g}") for x in self.rates],
            "scores": [float(f"{x:.5g}") for x in self.scores],
            "bin": [self.bin_s, self.bin_count],
            "bin_rates": [float(f"{x:.6g}") for x in self.bin_rates],
            "bin_sizes": [float(f"{x:.5g}") for x in self.bin_sizes],
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
        found.level, found.usual = (float(x) for x in stored["season"])
        return found


@dataclass(frozen=True, slots=True)
class Expected:
    """The demand of the next lead time."""

    mean: float
    variance: float
    weights: list[float]
    means: list[float]


def advance(state: Rates, seconds: float, lead_s: float) -> None:
    """Let time pass: the memories fade, and a full bin is scored."""
    shortest = max(SHORTEST_S, lead_s)
    rates = state.rates
    for i, length in enumerate(LENGTHS):
        rates[i] *= exp(-seconds / (shortest * length))
    if state.season_now is not None:
        fade = exp(-seconds / SEASON_S)
        state.level *= fade
        state.usual = state.usual * fade + state.season_now * seconds
        state.season_age_s += seconds
    state.bin_s += seconds
    if state.bin_s >= max(_LEAST_BIN_S, lead_s / _BINS_PER_LEAD):
        _score(state, lead_s)


def add(state: Rates, count: int, lead_s: float) -> None:
    """`count` claims came now."""
    shortest = max(SHORTEST_S, lead_s)
    for i, length in enumerate(LENGTHS):
        state.rates[i] += count / (shortest * length)
    if state.season_now is not None:
        state.level += count
    state.bin_count += count


def expected(state: Rates, lead_s: float) -> Expected:
    """The mixture over the next `lead_s`."""
    shortest = max(SHORTEST_S, lead_s)
    weights = _weights(state)
    mean = square = extra = 0.0
    means: list[float] = []
    for i, (rate, size, width) in enumerate(_predictions(state, shortest)):
        mu = (state.season_ahead or 0.0) * _level(state) * lead_s if i == len(LENGTHS) else rate * lead_s
        shape = size / (1 + lead_s / (3 * width))
        weight = weights[i]
        mean += weight * mu
        extra += weight * mu * mu / shape
        square += weight * mu * mu
        means.append(mu)
    over = extra + max(0.0, square - mean * mean)
    return Expected(mean, mean + over, weights, means)


def _predictions(state: Rates, shortest: float) -> list[tuple[float, float, float]]:
    """Per expert: its rate, the claims behind it, the seconds behind it."""
    found: list[tuple[float, float, float]] = []
    last = len(LENGTHS) - 1
    for i, length in enumerate(LENGTHS):
        width = shortest * length
        own = state.rates[i]
        slower = state.rates[i + 1] if i < last else own
        count = own * width
        lent = 0.5 * min(1.0, slower * width)
        rate = (count + lent) / (width + lent / slower) if slower > 1e-12 else 0.0
        found.append((rate, count + 0.5, width))
    if state.season_now is not None:
        found.append((state.season_now * _level(state), state.level + 0.5, SEASON_S))
    return found


def _level(state: Rates) -> float:
    return (state.level + _SEASON_PRIOR) / (state.usual + _SEASON_PRIOR)


def _weights(state: Rates) -> list[float]:
    """By the scores; in the middle of a bin that is full of surprise, by what it has shown so far too."""
    scores = state.scores
    known = _EXPERTS if state.season_now is not None else _EXPERTS - 1
    scores = scores[:known]
    if state.bin_count > 1:
        likely = max(state.bin_rates[:known]) * state.bin_s
        if state.bin_count > likely + 2 * sqrt(likely) or state.bin_count < likely - 3 * sqrt(likely):
            scores = [one + _likelihood(state, i) for i, one in enumerate(scores)]
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
    for i in range(known):
        state.scores[i] = _FORGET * state.scores[i] + _likelihood(state, i)
    if known < _EXPERTS:  # a season that becomes known later begins as an average one
        state.scores[-1] = sum(state.scores[:known]) / known
    best = max(state.scores)
    state.scores = [max(score - best, -50.0) for score in state.scores]
    for i, (rate, size, _) in enumerate(_predictions(state, max(SHORTEST_S, lead_s))):
        state.bin_rates[i], state.bin_sizes[i] = rate, size
    state.bin_s = state.bin_count = 0.0
