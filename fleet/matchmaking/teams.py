"""Which lobbies play on which team: two teams by trying all splits, more by filling the weakest and trading."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fleet.matchmaking.entry import Entry, Terms
from fleet.matchmaking.model import BETA
from fleet.matchmaking.objective import chance_off

EXACT = 12  # up to so many lobbies all splits of two teams are tried
MOST_STEPS = 4_000
ROUNDS = 40

Split = list[list[Entry]]


def split(terms: Terms, group: Sequence[Entry]) -> tuple[Split, float] | None:
    """The most even teams that hold the group, and how far the best is from an even chance; None if none does."""
    shape = terms.mode.shape
    if len(shape.teams) == 1:
        return [list(group)], 0.0
    ordered = sorted(group, key=lambda entry: (-entry.size, entry.key))
    few = len(shape.teams) == 2 and len(group) <= EXACT
    found = _halves(terms, ordered) if few else _filled(terms, ordered)
    return None if found is None else (found, imbalance(found, sum(entry.variance for entry in group)))


def imbalance(teams: Split, variance: float) -> float:
    """How far the strongest of the teams that play is from an even chance against the weakest."""
    skills = [sum(entry.mu for entry in team) for team in teams if team]
    # Variances of two teams count in their match; among many the mean team stands for each.
    shared = variance * 2 / max(2, len(skills))
    return chance_off(max(skills) - min(skills), 2 * BETA**2 + shared) if skills else 0.0


@lru_cache(maxsize=4096)
def _splits(sizes: tuple[int, ...], limits: tuple[tuple[int, int], ...], alike: bool) -> Any:
    """All ways to give lobbies of these sizes to two teams: rows of +1 (first team) and -1, even sizes first."""
    number = len(sizes)
    ways = np.arange(1 << (number - 1) if alike else 1 << number)
    rows = ((ways[:, None] >> np.arange(number)) & 1).astype(np.int8)
    first = rows @ np.array(sizes, dtype=np.int64)
    second = sum(sizes) - first
    (least_a, most_a), (least_b, most_b) = limits
    legal = (first >= least_a) & (first <= most_a) & (second >= least_b) & (second <= most_b)
    rows, uneven = rows[legal], np.abs(first - second)[legal]
    order = np.argsort(uneven, kind="stable")
    return (rows[order] * 2.0 - 1.0), uneven[order].astype(float)


def _halves(terms: Terms, group: Sequence[Entry]) -> Split | None:
    shape, placer = terms.mode.shape, terms.placer
    limits = tuple((team.least, team.size) for team in shape.teams)
    rows, uneven = _splits(tuple(entry.size for entry in group), limits, shape.alike)
    if not len(rows):
        return None
    skills = np.array([entry.mu for entry in group])
    off = np.abs(rows @ skills)
    if uneven[-1] > uneven[0]:
        off = off + 1e9 * uneven
    if not terms.mode.shape.roles:
        return _sides(group, rows[int(off.argmin())].tolist())
    adds = [placer.counts(entry.kind) for entry in group]
    for number in np.argsort(off, kind="stable").tolist():
        row = rows[number].tolist()
        first = sum(add for add, side in zip(adds, row, strict=True) if side > 0)
        if placer.fits(0, first) and placer.fits(1, sum(adds) - first):
            return _sides(group, row)
    return None


def _sides(group: Sequence[Entry], row: Sequence[float]) -> Split:
    sides: Split = [[], []]
    for entry, side in zip(group, row, strict=True):
        sides[side < 0].append(entry)
    return sides


def _filled(terms: Terms, group: Sequence[Entry]) -> Split | None:
    shape = terms.mode.shape
    players = sum(entry.size for entry in group)
    most = len(shape.teams)
    if players == shape.players or not shape.alike:
        counts: Sequence[int] = (most,)
    else:
        counts = range(min(most, players // shape.teams[0].least), shape.least_teams - 1, -1)
    for count in counts:
        filling = _Filling(terms, sorted(group, key=lambda entry: (-entry.size, -entry.mu, entry.key)), count)
        if filling.place(0) and filling.enough():
            filling.trade()
            return filling.teams + [[] for _ in range(most - count)]
    return None


class _Filling:
    """Teams being filled, the weakest first, with a bounded search for the case that this leads nowhere."""

    def __init__(self, terms: Terms, group: Sequence[Entry], count: int) -> None:
        self.placer = terms.placer
        self.shapes = terms.mode.shape.teams[:count]
        self.group = group
        self.teams: Split = [[] for _ in range(count)]
        self.counts = [0] * count
        self.sizes = [0] * count
        self.skills = [0.0] * count
        self.steps = 0

    def enough(self) -> bool:
        return all(size >= shape.least for size, shape in zip(self.sizes, self.shapes, strict=True))

    def place(self, number: int) -> bool:
        if number == len(self.group):
            return True
        entry = self.group[number]
        add = self.placer.counts(entry.kind)
        for team in sorted(range(len(self.teams)), key=lambda one: (self.sizes[one], self.skills[one], one)):
            self.steps += 1
            if self.steps > MOST_STEPS:
                return False
            if not self.placer.fits(team, self.counts[team] + add):
                continue
            self._move(team, entry, 1)
            if self.place(number + 1):
                return True
            self._move(team, entry, -1)
        return False

    def _move(self, team: int, entry: Entry, sign: int) -> None:
        if sign > 0:
            self.teams[team].append(entry)
        else:
            self.teams[team].remove(entry)
        self.counts[team] += sign * self.placer.counts(entry.kind)
        self.sizes[team] += sign * entry.size
        self.skills[team] += sign * entry.mu

    def trade(self) -> None:
        """The strongest and the weakest team exchange lobbies of one size as long as that evens them out."""
        for _ in range(ROUNDS):
            order = sorted(range(len(self.teams)), key=lambda one: (self.skills[one], one))
            weak, strong = order[0], order[-1]
            apart = self.skills[strong] - self.skills[weak]
            best: tuple[float, Entry, Entry] | None = None
            for a in self.teams[strong]:
                for b in self.teams[weak]:
                    after = abs(apart - 2 * (a.mu - b.mu))
                    if a.size == b.size and after < apart - 1e-9 and (best is None or after < best[0]):
                        add = self.placer.counts(a.kind) - self.placer.counts(b.kind)
                        fits = self.placer.fits(strong, self.counts[strong] - add)
                        if fits and self.placer.fits(weak, self.counts[weak] + add):
                            best = after, a, b
            if best is None:
                return
            _, a, b = best
            self._move(strong, a, -1)
            self._move(weak, b, -1)
            self._move(strong, b, 1)
            self._move(weak, a, 1)
