"""Can these lobbies still be placed on teams? Asked for each candidate, so answered by a table that grows by need.

A team with places for roles can hold a set of players exactly if, for every set S of roles, the players who take
nothing outside S are no more than the places of S (Hall's theorem). The counts of all S are packed into one integer,
with a guard bit each, so that adding a lobby is one addition and the test one subtraction. Which lobbies share a team
matters for parties; so a state is the set of all placements that are still possible, and states are numbered: a step
from a state by a *kind* of lobby (its size and roles) is worked out once and then looked up.
"""

from collections.abc import Sequence
from functools import lru_cache

from fleet.matchmaking.shape import Shape, TeamShape

WIDTH = 10  # bits per set of roles: counts to 511 and a guard
GUARD = 1 << (WIDTH - 1)
FEW_TEAMS = 4
KEPT_FEW, KEPT_MANY = 64, 4
MAX_STATES, MAX_KINDS = 20_000, 50_000

Placement = tuple[int, ...]
State = frozenset[Placement]
NOWHERE = -1


class Hall:
    """The packed counts for one mode's roles."""

    def __init__(self, shape: Shape) -> None:
        self.roles = shape.roles
        self.any = (1 << len(self.roles)) - 1
        self.sets = range(1, self.any + 1) if self.roles else range(1)
        self.guards = sum(GUARD << (WIDTH * one) for one in self.sets)
        self.total_shift = WIDTH * self.any
        self._adds: dict[int, int] = {}

    def mask(self, roles: Sequence[str]) -> int:
        """The roles as bits; none named is any."""
        bits = sum(1 << self.roles.index(role) for role in dict.fromkeys(roles) if role in self.roles)
        return bits or self.any

    def add(self, mask: int) -> int:
        """What one player adds to the counts."""
        known = self._adds.get(mask)
        if known is None:
            known = self._adds[mask] = sum(1 << (WIDTH * one) for one in self.sets if mask & ~one == 0)
        return known

    def capacity(self, team: TeamShape) -> int:
        """A team's places, with the guards."""
        places = dict(team.roles)
        total = 0
        for one in self.sets:
            held = sum(places.get(role, 0) for bit, role in enumerate(self.roles) if one >> bit & 1)
            total += (held + team.open_places) << (WIDTH * one)
        return total + self.guards

    def size(self, counts: int) -> int:
        """How many players the counts have: those of the set of all roles."""
        return (counts >> self.total_shift) & (GUARD - 1)


class Placer:
    """The table of states for one mode."""

    def __init__(self, shape: Shape) -> None:
        self.hall = Hall(shape)
        self.alike = shape.alike
        self.capacities = tuple(self.hall.capacity(team) for team in shape.teams)
        self._kept = KEPT_FEW if len(shape.teams) <= FEW_TEAMS else KEPT_MANY
        self.renew()

    @property
    def crowded(self) -> bool:
        """Whether so many kinds of lobbies have come that it is time to renew."""
        return len(self._adds) > MAX_KINDS

    def renew(self) -> None:
        """Forget all kinds and states: whoever has a kind must ask for it anew."""
        self._kinds: dict[tuple[int, ...], int] = {}
        self._adds: list[int] = []
        self._forget()

    def _forget(self) -> None:
        start: State = frozenset({(0,) * len(self.capacities)})
        self._states: list[State] = [start]
        self._numbers: dict[State, int] = {start: 0}
        self.steps: list[dict[int, int]] = [{}]

    def tidy(self) -> None:
        """Forget the states when there are many. Call it only between matches: numbers change."""
        if len(self._states) > MAX_STATES:
            self._forget()

    def kind(self, masks: Sequence[int]) -> int:
        """The number of a lobby's kind: who it has, in no order."""
        key = tuple(sorted(masks))
        known = self._kinds.get(key)
        if known is None:
            known = self._kinds[key] = len(self._adds)
            self._adds.append(sum(self.hall.add(mask) for mask in key))
        return known

    def step(self, state: int, kind: int) -> int:
        """The state after one more lobby of this kind, or NOWHERE. State 0 is empty teams."""
        known = self.steps[state].get(kind)
        if known is None:
            known = self.steps[state][kind] = self._work_out(state, kind)
        return known

    def placements(self, state: int) -> State:
        return self._states[state]

    def fits(self, team: int, counts: int) -> bool:
        guards = self.hall.guards
        return (self.capacities[team] - counts) & guards == guards

    def counts(self, kind: int) -> int:
        return self._adds[kind]

    def _work_out(self, state: int, kind: int) -> int:
        add = self._adds[kind]
        after: set[Placement] = set()
        for placement in self._states[state]:
            self._extend(placement, add, after)
        if not after:
            return NOWHERE
        # Too many: those with the fullest teams leave most room for parties.
        new: State = frozenset(after if len(after) <= self._kept else sorted(after, reverse=True)[: self._kept])
        number = self._numbers.get(new)
        if number is None:
            number = self._numbers[new] = len(self._states)
            self._states.append(new)
            self.steps.append({})
        return number

    def _extend(self, placement: Placement, add: int, after: set[Placement]) -> None:
        tried: set[int] = set()
        for team, counts in enumerate(placement):
            if self.alike and counts in tried:
                continue
            tried.add(counts)
            if self.fits(team, counts + add):
                teams = [*placement]
                teams[team] = counts + add
                after.add(tuple(sorted(teams, reverse=True)) if self.alike else tuple(teams))


Wishes = Sequence[Sequence[str]]


def assigned(team: TeamShape, wishes: Sequence[tuple[str, Sequence[str]]]) -> dict[str, str]:
    """A role for each player of a team, by augmenting paths; the pickiest choose first, then wishes are traded.

    `wishes` are (player, roles from dearest on; none: any). Players on open places get their dearest role, or none.
    """
    ordered = sorted(wishes, key=lambda wish: (len(wish[1]) or 1_000, wish[1]))
    roles = _roles_for(team, tuple(tuple(liked) for _, liked in ordered))
    return {player: role for (player, _), role in zip(ordered, roles, strict=True) if role is not None}


@lru_cache(maxsize=50_000)
def _roles_for(team: TeamShape, wishes: tuple[tuple[str, ...], ...]) -> tuple[str | None, ...]:
    places: list[str | None] = [role for role, count in team.roles for _ in range(count)]
    places += [None] * team.open_places
    holder: list[int | None] = [None] * len(places)
    for who in range(len(wishes)):
        _seat(who, wishes, places, holder, set())
    _trade(wishes, places, holder)
    roles: list[str | None] = [None] * len(wishes)
    for place, who in enumerate(holder):
        if who is not None:
            roles[who] = places[place] or (wishes[who][0] if wishes[who] else None)
    return tuple(roles)


def _cost(liked: Sequence[str], role: str | None) -> int | None:
    if role is None or not liked:
        return 0
    return liked.index(role) if role in liked else None


def _seat(
    who: int,
    wishes: Wishes,
    places: Sequence[str | None],
    holder: list[int | None],
    seen: set[int],
) -> bool:
    liked = wishes[who]
    open_to = [(cost, place) for place, role in enumerate(places) if (cost := _cost(liked, role)) is not None]
    for _, place in sorted(open_to):
        if place in seen:
            continue
        seen.add(place)
        other = holder[place]
        if other is None or _seat(other, wishes, places, holder, seen):
            holder[place] = who
            return True
    return False


def _trade(wishes: Wishes, places: Sequence[str | None], holder: list[int | None]) -> None:
    """Two players who both, taken together, like it better trade places."""

    def cost(who: int | None, place: int) -> int:
        found = 0 if who is None else _cost(wishes[who], places[place])
        return 1_000 if found is None else found

    for first in range(len(places)):
        for second in range(first + 1, len(places)):
            a, b = holder[first], holder[second]
            if cost(a, second) + cost(b, first) < cost(a, first) + cost(b, second):
                holder[first], holder[second] = b, a
