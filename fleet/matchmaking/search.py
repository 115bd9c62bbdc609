"""Better matches from the same tickets: undo a few that lie near each other and make them anew, again and again.

Used by the sweep with the time that is left over; chance comes from a generator that is passed in.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import nsmallest

from fleet.matchmaking.assemble import Assembler, Made
from fleet.matchmaking.entry import Entry

NEIGHBOURS = 8  # matches near a place, of which some are undone
MOST_UNDONE = 4
FREE_NEAR = 24  # tickets without a match that join in
PATIENCE = 500  # rounds without a gain after which, with some more for each match, it is good enough
TAKEN = 0.7  # the share of candidates that half of the tries see, so that the nearest is not always the one
SLACK = 1e-9


class Search:
    """Keeps a set of disjoint matches and the tickets that are in none; both of one shard."""

    def __init__(self, assembler: Assembler, chance: random.Random, now: float) -> None:
        self.assembler = assembler
        self.chance = chance
        self.now = now

    def improve(self, plans: list[Made], free: Iterable[Entry], going: Callable[[], bool]) -> list[Made]:
        """The matches after as many rounds as `going` allows; their total worth never falls."""
        plans = list(plans)
        loose = {entry.id: entry for entry in free}
        patience = most = PATIENCE + 4 * len(plans)
        while patience and going() and (plans or loose):
            patience -= 1
            self.assembler.pairs.begin()
            centre = self._centre(plans, loose)
            undone = self._undone(plans, centre)
            pool = [entry for number in undone for entry in plans[number].entries]
            pool += _nearest(loose.values(), centre)
            before: float = sum(plans[number].worth for number in undone)
            for entry in pool:
                entry.alive = True
            made = self._anew(pool)
            better = sum(one.worth for one in made) - before
            if better > SLACK:
                patience = most
            if better < -SLACK:
                self._restore(pool, plans, undone)
                continue
            for number in sorted(undone, reverse=True):
                plans[number] = plans[-1]
                plans.pop()
            plans += made
            for entry in pool:
                if entry.alive:
                    loose[entry.id] = entry
                else:
                    loose.pop(entry.id, None)
        return plans

    def _centre(self, plans: Sequence[Made], loose: Mapping[str, Entry]) -> float:
        if loose and (not plans or self.chance.random() < 0.5):
            return self.chance.choice(list(loose.values())).value
        return self.chance.choice(plans).value

    def _undone(self, plans: Sequence[Made], centre: float) -> list[int]:
        near = nsmallest(NEIGHBOURS, range(len(plans)), key=lambda number: (abs(plans[number].value - centre), number))
        return self.chance.sample(near, min(len(near), self.chance.randint(1, MOST_UNDONE)))

    def _anew(self, pool: Sequence[Entry]) -> list[Made]:
        """Matches of the pool, its tickets taken as anchors in an order by chance."""
        anchors = list(pool)
        self.chance.shuffle(anchors)
        made: list[Made] = []
        for anchor in anchors:
            if not anchor.alive:
                continue
            region, tilt = self._region(anchor), self.chance.choice((0.25, 1.0, 1.0, 4.0))
            some = pool if self.chance.random() < 0.5 else [one for one in pool if self.chance.random() < TAKEN]
            liked = self.assembler.liked(anchor, some, region, tilt)
            one = self.assembler.made(self.assembler.gather(anchor, liked, self.now), self.now)
            if one is not None:
                made.append(one)
                for entry in one.entries:
                    entry.alive = False
        return made

    def _region(self, anchor: Entry) -> int | None:
        if anchor.best is None or self.chance.random() < 0.6:
            return anchor.best
        return self.chance.choice(sorted(anchor.worsts))

    def _restore(self, pool: Sequence[Entry], plans: Sequence[Made], undone: Iterable[int]) -> None:
        for entry in pool:
            entry.alive = True
        for number in undone:
            for entry in plans[number].entries:
                entry.alive = False


def _nearest(entries: Iterable[Entry], value: float) -> list[Entry]:
    return nsmallest(FREE_NEAR, entries, key=lambda one: (abs(one.value - value), one.id))
