"""The negative binomial distribution by mean and variance, in plain floats: scipy would cost more than it saves.

A variance below the mean is that of a sure part and a Poisson part: some of the demand is known. Small cases are summed
exactly, big ones use the Cornish-Fisher expansion of the quantile, whose error there is about one server.
"""

from math import ceil, exp, lgamma, log, sqrt
from statistics import NormalDist

_NORMAL = NormalDist()
_EXACT_UP_TO = 70.0


def log_pmf(count: float, mean: float, shape: float) -> float:
    """log P(N = count), N negative binomial of that mean and shape (the number of "failures")."""
    mean = max(mean, 1e-12)
    shape = max(shape, 1e-9)
    total = mean + shape
    if count == 0:
        return shape * log(shape / total)
    ways = lgamma(count + shape) - lgamma(shape) - lgamma(count + 1)
    return ways + shape * log(shape / total) + count * log(mean / total)


def quantile(mean: float, variance: float, tail: float) -> int:
    """The smallest s with P(N > s) <= tail."""
    if mean <= 1e-9:
        return 0
    if variance < mean * 0.999:
        return ceil(mean - variance - 1e-9) + quantile(variance, variance, tail)
    spread = sqrt(max(variance, mean))
    if mean + 4 * spread <= _EXACT_UP_TO:
        return _summed(mean, variance, tail)
    return max(0, ceil(_expanded(mean, variance, -_NORMAL.inv_cdf(tail)) - 0.5))


def cdf(count: int, mean: float, variance: float) -> float:
    """P(N <= count); for big ones by Wilson and Hilferty's cube root."""
    if count < 0:
        return 0.0
    if mean <= 1e-9:
        return 1.0
    if variance < mean * 0.999:
        return cdf(count - ceil(mean - variance - 1e-9), variance, variance)
    spread = sqrt(max(variance, mean))
    if mean + 4 * spread > _EXACT_UP_TO:
        ninth = (spread / mean) ** 2 / 9
        return _NORMAL.cdf((((count + 0.5) / mean) ** (1 / 3) - 1 + ninth) / sqrt(ninth))
    chance, shape, ratio = _first(mean, variance)
    total = chance
    for k in range(count):
        chance *= (k + shape) * ratio / (k + 1) if shape else ratio / (k + 1)
        total += chance
    return min(1.0, total)


def _first(mean: float, variance: float) -> tuple[float, float, float]:
    """(P(0), shape, ratio) of the recursion; shape 0 stands for Poisson."""
    if variance <= mean * 1.000001:
        return exp(-mean), 0.0, mean
    shape = mean * mean / (variance - mean)
    return (mean / variance) ** shape, shape, 1 - mean / variance


def _summed(mean: float, variance: float, tail: float) -> int:
    chance, shape, ratio = _first(mean, variance)
    left = 1 - chance - tail
    k = 0
    if shape:
        while left > 0 and k < 5000:
            chance *= (k + shape) * ratio / (k + 1)
            k += 1
            left -= chance
    else:
        while left > 0 and k < 5000:
            k += 1
            chance *= ratio / k
            left -= chance
    return k


def _expanded(mean: float, variance: float, z: float) -> float:
    variance = max(variance, mean)
    spread = sqrt(variance)
    over = (variance - mean) / mean  # 0 for Poisson
    skew = (1 + 2 * over) / spread
    kurtosis = (1 + 6 * over + 6 * over * over) / variance
    cubic = (z**3 - 3 * z) * kurtosis / 24 - (2 * z**3 - 5 * z) * skew**2 / 36
    return mean + spread * (z + (z * z - 1) * skew / 6 + cubic)
