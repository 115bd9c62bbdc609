"""One pass over who waits, in pieces that fit a budget: first matches around the rarest, then a search for better ones.

A pass that the budget cuts off is gone on with at the next call. A ticket that found nothing is asked again only after
a while: what comes in between makes its own attempt, and windows widen slowly.
"""

import random
from collections.abc import Callable, Iterable, Sequence

from fleet.matchmaking.assemble import Assembler, Made
from fleet.matchmaking.entry import Entry
from fleet.matchmaking.index import Shard
from fleet.matchmaking.search import Search

FIRST_S, MOST_S, SHARE = 0.5, 15.0, 0.25
SEARCHABLE = 2_000  # with more tickets around, the budget goes to passing over them all


class Sweeper:
    """The agenda of a pass over several shards."""

    def __init__(self, assembler: Assembler, chance: random.Random) -> None:
        self.assembler = assembler
        self.chance = chance
        self._agenda: list[tuple[Entry, Shard]] = []
        self.cut_off = False  # whether a look's steps were used up, so that a match may have been overlooked

    def run(self, shards: Sequence[Shard], now: float, going: Callable[[], bool], *, search: bool) -> list[Made]:
        """Disjoint matches; their entries are held, and for the caller to take out."""
        self._agenda = [(entry, shard) for entry, shard in self._agenda if entry.alive]
        if not self._agenda:
            self._agenda = [(entry, shard) for shard in shards for entry in self._due(shard, now)][::-1]
        plans: dict[int, list[Made]] = {}
        while self._agenda:
            entry, shard = self._agenda[-1]
            if entry.alive and not going():
                break
            self._agenda.pop()
            if not entry.alive:
                continue
            self.assembler.pairs.begin()
            made = self.around(entry, shard, now)
            self.cut_off = self.cut_off or self.assembler.pairs.exhausted
            if made is None:
                postpone(entry, now, self.assembler)
            else:
                hold(made, shard)
                plans.setdefault(id(shard), []).append(made)
        for shard in shards:
            made_here = plans.get(id(shard), [])
            if search and going() and made_here and len(shard) <= SEARCHABLE:
                plans[id(shard)] = self._searched(shard, made_here, now, going)
        return [made for several in plans.values() for made in several]

    def around(self, entry: Entry, shard: Shard, now: float, beyond: int = 0) -> Made | None:
        """A match around a ticket. With `beyond`, if those near are not enough, some farther ones are looked at too."""
        assembler = self.assembler
        if not (shard.can_fill() or (assembler.may_be_partial and shard.players >= assembler.least)):
            return None
        most = assembler.nearest
        liked = assembler.liked(entry, shard.near(entry.value, most), entry.best)
        group = assembler.gather(entry, liked, now)
        if beyond > most and sum(one.size for one in group) < assembler.full:
            group = assembler.gather(entry, liked + shard.near(entry.value, beyond, most), now)
        return assembler.made(group, now)

    def _due(self, shard: Shard, now: float) -> Iterable[Entry]:
        """Whom to make a match around: who can fill the scarcest role, which no full match lacks; the rarest first."""
        partial = self.assembler.may_be_partial
        if not partial and not shard.can_fill():
            return ()
        share = [held / needed for held, needed in zip(shard.supply, shard.needed, strict=True)]
        scarce = 0 if partial or not share else 1 << share.index(min(share))
        due = [
            item[4]
            for item in shard.items
            if (entry := item[4]).alive
            and entry.next_try <= now
            and (not scarce or any(mask & scarce for mask in entry.masks))
        ]
        return sorted(due, key=lambda entry: (shard.plenty(entry), -entry.size, entry.born, entry.id))

    def _searched(self, shard: Shard, plans: list[Made], now: float, going: Callable[[], bool]) -> list[Made]:
        before = {entry.id: entry for made in plans for entry in made.entries}
        free = [item[4] for item in shard.items if item[4].alive]
        search = Search(self.assembler, self.chance, now)
        after = search.improve(plans, free, going)
        held = {entry.id: entry for made in after for entry in made.entries}
        for entry in before.values():
            if entry.id not in held:
                shard.release(entry)
        for entry in held.values():
            if entry.id not in before:
                shard.hold(entry)
        return after


def hold(made: Made, shard: Shard) -> None:
    for entry in made.entries:
        shard.hold(entry)


def postpone(entry: Entry, now: float, assembler: Assembler) -> None:
    """Ask a ticket again later, ever more rarely; but when fewer players will do, at once."""
    entry.tries += 1
    pause = min(FIRST_S * 2**entry.tries, max(MOST_S, SHARE * (now - entry.born)))
    entry.next_try = now + pause
    fewer = entry.born + assembler.mode.partial_after
    if assembler.may_be_partial and now < fewer < entry.next_try:
        entry.next_try = fewer
