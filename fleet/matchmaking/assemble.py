"""A match around one ticket: candidates are taken one by one as long as every rule still holds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fleet.matchmaking.budget import nearest
from fleet.matchmaking.entry import Entry, Terms, shared
from fleet.matchmaking.model import Found, Quality, Team
from fleet.matchmaking.objective import LATENCY, LATENCY_MS, SPREAD, gain, widest_window
from fleet.matchmaking.pairs import Pairs
from fleet.matchmaking.roles import NOWHERE, assigned
from fleet.matchmaking.teams import Split, split

FULL_ENOUGH = 1e-9
PER_MS = LATENCY / LATENCY_MS
UNREACHED_MS = 1_000.0


@dataclass(frozen=True, slots=True)
class Made:
    """A match that could be made: its teams, what it costs, what it is worth."""

    teams: Split
    quality: Quality
    worth: float
    regions: tuple[str, ...]
    players: int

    @property
    def entries(self) -> list[Entry]:
        return [entry for team in self.teams for entry in team]

    @property
    def value(self) -> float:
        return self.teams[0][0].value if self.teams[0] else self.entries[0].value


class Assembler:
    """Builds matches of one mode. Pure: what it knows are the mode's terms."""

    def __init__(self, terms: Terms, pairs: Pairs) -> None:
        self.terms = terms
        self.pairs = pairs
        self.mode = terms.mode
        self.full = terms.mode.shape.players
        self.least = terms.mode.shape.least_players
        self.may_be_partial = terms.mode.shape.may_be_partial
        self.nearest = nearest(self.full)
        self.per_value = SPREAD / widest if (widest := widest_window(terms.mode)) else 0.0

    def gather(self, anchor: Entry, candidates: Iterable[Entry], now: float) -> list[Entry]:
        """The anchor and, in the order given, each candidate that fits with all before; stops when a match is full."""
        terms, regions = self.terms, self.terms.regions
        placer, steps = terms.placer, terms.placer.steps
        room = self.full - anchor.size
        state = placer.step(0, anchor.kind)
        group = [anchor]
        if state == NOWHERE or room <= 0:
            return group
        low = high = anchor.value
        reach = terms.window(anchor, now)
        floor, ceiling = low - reach, high + reach
        mask = regions.mask(anchor, now)
        overlaps = anchor.overlaps
        careful = self.pairs.any or bool(anchor.blocked)
        for other in candidates:
            value = other.value
            if other.size > room or value < floor or value > ceiling or not other.alive:
                continue
            reach = terms.window(other, now)
            if low < value - reach or high > value + reach:
                continue
            common = mask & (other.mask if now < other.mask_until else regions.mask(other, now))
            if not common:
                continue
            after = steps[state].get(other.kind)
            if after is None:
                after = placer.step(state, other.kind)
            if after == NOWHERE:
                continue
            values = shared(overlaps, other.overlaps) if overlaps else overlaps
            if values is None:
                continue
            if (careful or other.blocked) and not self._meet(group, other, now):
                continue
            group.append(other)
            room -= other.size
            if room == 0:
                break
            careful = careful or bool(other.blocked)
            state, mask, overlaps = after, common, values
            low, high = min(low, value), max(high, value)
            floor, ceiling = max(floor, value - reach), min(ceiling, value + reach)
        return group

    def _meet(self, group: Sequence[Entry], other: Entry, now: float) -> bool:
        for one in group:
            if not one.players.isdisjoint(other.players):
                return False
            if not one.blocked.isdisjoint(other.players) or not other.blocked.isdisjoint(one.players):
                return False
            if self.pairs.any and not self.pairs.allow(one, other, now):
                return False
        return True

    def liked(self, anchor: Entry, candidates: Iterable[Entry], region: int | None, tilt: float = 1.0) -> list[Entry]:
        """Candidates in the order to try them: by what each would cost a match in that region.

        `tilt` makes distance in value count for more or less, for the search.
        """
        value, per_value = anchor.value, self.per_value * tilt
        if region is None:
            alive = [one for one in candidates if one.alive and one is not anchor]
            order = [(abs(one.value - value) * per_value + one.drag, one.id, one) for one in alive]
        else:
            base = anchor.worsts.get(region, UNREACHED_MS)
            order = [
                (
                    abs(one.value - value) * per_value
                    + (PER_MS * over if (over := one.worsts.get(region, UNREACHED_MS) - base) > 0 else 0.0)
                    + one.drag,
                    one.id,
                    one,
                )
                for one in candidates
                if one.alive and one is not anchor
            ]
        order.sort()
        return [one[2] for one in order]

    def joins(self, entry: Entry, members: Sequence[Entry], now: float) -> bool:
        """Whether a ticket fits with all who play already, roles and region aside."""
        window = self.terms.window
        reach, overlaps = window(entry, now), entry.overlaps
        for one in members:
            if abs(one.value - entry.value) > min(reach, window(one, now)):
                return False
            values = shared(overlaps, one.overlaps)
            if values is None:
                return False
            overlaps = values
        return self._meet(members, entry, now)

    def made(self, group: Sequence[Entry], now: float) -> Made | None:
        """The group on teams, if it is a match: full, or partial after enough waiting, and even enough."""
        players = sum(entry.size for entry in group)
        oldest = min(entry.born for entry in group)
        if players < self.full and not self._partial(players, now - oldest):
            return None
        found = split(self.terms, group)
        if found is None:
            return None
        teams, off = found
        if off > self._evenness(group, now):
            return None
        mask = -1
        for entry in group:
            mask &= self.terms.regions.mask(entry, now)
        ranked = self.terms.regions.vote(group, mask)
        worst, mean = ranked[0][:2] if ranked else (0.0, 0.0)
        values = [entry.value for entry in group]
        quality = Quality(
            spread=max(values) - min(values),
            imbalance=off,
            worst_latency=worst,
            mean_latency=mean,
            longest_wait=now - oldest,
            mean_wait=sum((now - entry.born) * entry.size for entry in group) / players,
        )
        names = tuple(self.terms.regions.names[bit] for _, _, bit in ranked)
        return Made(teams, quality, gain(self.mode, players, quality), names, players)

    def _partial(self, players: int, waited: float) -> bool:
        return players >= self.mode.shape.least_players and waited >= self.mode.partial_after

    def _evenness(self, group: Sequence[Entry], now: float) -> float:
        """The imbalance that all accept: the one who waits shortest accepts least."""
        skill = self.terms.skill
        if skill is None:
            return 1.0
        youngest = max(entry.born for entry in group)
        return skill.relax_imbalance.grown(skill.max_imbalance, now - youngest) + FULL_ENOUGH

    def found(self, made: Made, now: float) -> Found:
        """The match in terms of tickets and roles."""
        shapes = self.mode.shape.teams
        teams: list[Team] = []
        for shape, entries in zip(shapes, made.teams, strict=True):
            wishes = [(p.player_id, p.roles) for entry in entries for p in entry.ticket.players]
            roles = assigned(shape, wishes) if self.mode.shape.roles else {}
            teams.append(Team(shape.name, tuple(entry.ticket.ticket_id for entry in entries), roles))
        return Found(tuple(teams), made.regions, made.quality, now, partial=made.players < self.full)
