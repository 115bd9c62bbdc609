"""Synthetic weeks: demand of known shape, so that the true rate is known too."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GRID_S = 10.0
DAY_S = 86_400.0
# A Monday, so that weekdays are where one expects them.
EPOCH = 1_767_571_200.0

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Chance = np.random.Generator


@dataclass(frozen=True, slots=True)
class Demand:
    """Arrival times, and where known the true rate (claims per second on a grid of ten seconds from `begins`)."""

    times: Floats
    begins: float
    ends: float
    rate: Floats | None = None
    batch: float = 1.0  # mean size of what comes at one moment
    known: tuple[tuple[float, float], ...] = ()  # scheduled events, for those who look at them


def _uniform(chance: Chance, low: float, high: float) -> float:
    return float(chance.uniform(low, float(high)))


def diurnal(at: Floats, chance: Chance) -> Floats:
    return 1 + 0.75 * np.sin(2 * math.pi * (at / DAY_S - 0.3)) + 0.15 * np.sin(4 * math.pi * at / DAY_S)


def weekly(at: Floats, chance: Chance) -> Floats:
    day = np.floor(at / DAY_S) % 7
    weekend = np.where(day >= 5, 1.8, np.where(day == 4, 1.3, 0.8))
    return diurnal(at, chance) * weekend


def calm(at: Floats, chance: Chance) -> Floats:
    return np.ones_like(at)


def launch(at: Floats, chance: Chance) -> Floats:
    """Nobody, then within half an hour everybody, then fewer every day."""
    opened = 1.75 * DAY_S
    rise = np.clip((at - opened) / 1800, 0, 1)
    fade = np.exp(-np.maximum(at - opened, 0) / (1.5 * DAY_S))
    return 0.05 + rise * (0.6 + 6 * fade) * diurnal(at, chance)


def flash_crowd(at: Floats, chance: Chance) -> Floats:
    """A calm season, and a dozen sudden crowds of up to twenty times as many."""
    rate = diurnal(at, chance) * 0.7
    for _ in range(12):
        when, size, width = _uniform(chance, 0, at[-1]), _uniform(chance, 5, 20), _uniform(chance, 300, 2400)
        after = at - when
        rate = rate + size * np.clip(after / 60, 0, 1) * np.exp(-np.maximum(after, 0) / width) * (after > 0)
    return rate


def slow_decay(at: Floats, chance: Chance) -> Floats:
    return diurnal(at, chance) * np.exp(-at / (2.5 * DAY_S))


def streamer(at: Floats, chance: Chance) -> Floats:
    """Streamers go on air a few times a day: demand multiplies within minutes and falls off when they leave."""
    rate = diurnal(at, chance)
    for _ in range(int(at[-1] / DAY_S * 4)):
        when, size = _uniform(chance, 0, at[-1]), 0.5 + 1.5 * float(chance.pareto(1.6))
        length = _uniform(chance, 1200, 7200)
        ramp = np.clip((at - when) / 240, 0, 1) * np.clip((when + length - at) / 180, 0, 1)
        rate = rate + min(size, 15) * ramp
    return rate


def outage(at: Floats, chance: Chance) -> Floats:
    """Three outages of minutes; all who were thrown out come back within the minutes after."""
    rate = diurnal(at, chance)
    for _ in range(3):
        when, length = _uniform(chance, 0.2, 0.95) * float(at[-1]), _uniform(chance, 300, 2400)
        inside = (at >= when) & (at < when + length)
        after = np.maximum(at - when - length, 0)
        surge = 12 * np.exp(-after / 240) * (at >= when + length)
        rate = np.where(inside, 0.02, rate * (1 + surge))
    return rate


def timetable(at: Floats, chance: Chance) -> Floats:
    """Matches that begin at every quarter of an hour, more of them in the evening."""
    return diurnal(at, chance) * (0.3 + 5 * np.exp(-(at % 900) / 120))


def drift(at: Floats, chance: Chance) -> Floats:
    """No season at all: the logarithm of the rate wanders, and returns within hours."""
    steps: Floats = np.asarray(chance.normal(0, 1, len(at)), dtype=np.float64)
    pull, noise = GRID_S / 7200, math.sqrt(2 * GRID_S / 7200) * 0.7
    level, found = 0.0, np.empty_like(at)
    for k, step in enumerate(steps.tolist()):
        level += noise * step - pull * level
        found[k] = level
    return np.exp(found)


SHAPES: dict[str, Callable[[Floats, Chance], Floats]] = {
    "calm": calm,
    "diurnal": diurnal,
    "weekly": weekly,
    "launch": launch,
    "flash": flash_crowd,
    "decay": slow_decay,
    "streamer": streamer,
    "outage": outage,
    "batch": diurnal,
    "timetable": timetable,
    "drift": drift,
}
MEAN_BATCH = 4.0


def synthetic(shape: str, seed: int, per_minute: float = 6.0, days: float = 7.0) -> Demand:
    """A week of that shape with so many starts per minute in the mean."""
    chance = np.random.default_rng(seed)
    grid = np.arange(0, days * DAY_S, GRID_S)
    rate = np.maximum(SHAPES[shape](grid, chance), 0.0)
    rate = rate * (per_minute / 60 / rate.mean())
    batch = MEAN_BATCH if shape == "batch" else 1.0
    counts: Ints = np.asarray(chance.poisson(rate * GRID_S / batch), dtype=np.int64)
    within: Floats = np.asarray(chance.uniform(0, GRID_S, int(counts.sum())), dtype=np.float64)
    times: Floats = np.sort(np.repeat(grid, counts) + within)
    if batch > 1:
        sizes: Ints = np.asarray(chance.geometric(1 / batch, len(times)), dtype=np.int64)
        times = np.repeat(times, sizes)
    return Demand(times + EPOCH, EPOCH, EPOCH + days * DAY_S, rate, batch)


def estimated(demand: Demand, lead_s: float) -> Floats:
    """The rate behind recorded arrivals, on the grid: smoothed over both past and future.

    The width of the bell is the one, of several, that predicts each ten seconds best from all the others (leave one
    out), not below the lead time, so it is nobody's luck that is taken for the rate.
    """
    length = int((demand.ends - demand.begins) // GRID_S) + 2
    counts = np.bincount(((demand.times - demand.begins) // GRID_S).astype(int), minlength=length).astype(float)
    best, found = -math.inf, counts
    for width in (1, 2, 4, 8, 20, 60, 200):
        sigma = max(1.0, width * lead_s / GRID_S / 2)
        if sigma * 4 > length and width > 1:
            break
        smooth, own = _smoothed(counts, sigma)
        without = np.maximum(smooth - own * counts, 1e-9) / (1 - own)
        score = float((counts * np.log(without) - without).sum())
        if score > best:
            best, found = score, smooth
    return found / GRID_S


def _smoothed(counts: Floats, sigma: float) -> tuple[Floats, float]:
    """Convolution with a bell, corrected at both ends; and the weight of the middle."""
    half = min(int(4 * sigma) + 1, len(counts) - 1)
    bell = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    bell /= bell.sum()
    size = 1 << (len(counts) + 2 * half).bit_length()
    spectrum = np.fft.rfft(bell, size)

    def convolved(values: Floats) -> Floats:
        return np.fft.irfft(np.fft.rfft(values, size) * spectrum, size)[half : half + len(values)]

    return np.maximum(convolved(counts) / np.maximum(convolved(np.ones_like(counts)), 1e-9), 0), float(bell[half])
