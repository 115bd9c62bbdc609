"""When which fault hits what: a function of the seed alone, so that a run can be had again."""

import random
from dataclasses import dataclass
from itertools import count

from tests.chaos.storm.kinds import KINDS, Kind

WAVE_S = 20.0  # within which the faults of a wave begin
OVER_S = 32.0  # and by when all are over: those that last begin early enough
# Faults of a wave, and how often: many at once mostly; one alone sometimes, whose recovery is its own.
SIZES = {1: 8, 12: 12, 20: 40, 30: 40}
HEAD_LATE, HEAD_FROM = 0.75, 0.7  # so often a fault of the head comes after that share of a wave
TOGETHER = 0.25  # of a wave's faults begin at the same moment as the one before


@dataclass(frozen=True, slots=True)
class Fault:
    """`at`: seconds from its wave's beginning. `target`: whoever it hits is chosen by it among those that there are."""

    number: int
    wave: int
    kind: str
    at: float
    lasts_s: float
    target: int


def schedule(seed: int, faults: int, kinds: dict[str, Kind], *, alone: bool = False) -> list[list[Fault]]:
    """`faults` faults of these kinds, wave by wave; `alone`: one a wave, so that each recovery is its own."""
    rng = random.Random(seed)
    numbers = count()
    waves: list[list[Fault]] = []
    deck: list[str] = []
    left = faults
    while left:
        size = 1 if alone else min(left, rng.choices(list(SIZES), list(SIZES.values()))[0])
        left -= size
        waves.append(_wave(rng, len(waves), size, numbers, deck, kinds))
    return waves


def _wave(
    rng: random.Random, wave: int, size: int, numbers: "count[int]", deck: list[str], kinds: dict[str, Kind]
) -> list[Fault]:
    faults: list[Fault] = []
    taken: set[str] = set()
    at = 0.0
    for place in range(size):
        name = _draw(rng, deck, kinds, taken)
        kind = kinds[name]
        if kind.once_a_wave:
            taken.add(name)
        lasts_s = rng.choice(kind.lasts_s)
        latest = max(0.0, min(WAVE_S, OVER_S - lasts_s))
        earliest = latest * HEAD_FROM if kind.head and size > 1 and rng.random() < HEAD_LATE else 0.0
        together = place > 0 and rng.random() < TOGETHER and at >= earliest
        at = min(at, latest) if together else rng.uniform(earliest, latest)
        faults.append(Fault(next(numbers), wave, name, round(at, 2), lasts_s, rng.randrange(1 << 20)))
    return sorted(faults, key=lambda fault: fault.at)


def _draw(rng: random.Random, deck: list[str], kinds: dict[str, Kind], taken: set[str]) -> str:
    """From a deck with each kind as often as its weight, so that each comes in every run; not what is under way."""
    for _ in range(2):
        for place, name in enumerate(deck):
            if name not in taken:
                return deck.pop(place)
        fresh = [name for name, kind in kinds.items() for _ in range(kind.weight)]
        rng.shuffle(fresh)
        deck.extend(fresh)
    raise AssertionError("every kind is under way")


def kinds_for(database: str, machines: int, *, clock: bool, only: list[str] | None = None) -> dict[str, Kind]:
    """Those that can be done there."""
    return {
        name: kind
        for name, kind in KINDS.items()
        if database in kind.databases
        and machines >= kind.machines
        and (clock or not kind.clock)
        and (only is None or name in only)
    }
