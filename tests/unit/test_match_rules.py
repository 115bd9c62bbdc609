"""Whatever queues, in whatever order: every match is legal, nobody is lost, the same call gives the same matches."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fleet.matchmaking import Found, Matcher, ModeConfig, OpenMatch, Player, Ticket, match, parse_mode
from fleet.matchmaking.check import check
from tests.unit.match_kit import FIVES, REGIONS, ROLES

TINY_RELAX = {"after": 2, "perSecond": 1, "max": 30}
MODES = {
    "fives": FIVES | {"allowBackfill": True},
    "partial": {
        "teams": 2,
        "playersPerTeam": 3,
        "minPlayersPerTeam": 1,
        "partialAfter": 5,
        "rules": [{"type": "skill"}],
    },
    "hunt": {"teamComposition": [{"roles": {"boss": 1}}, {"roles": {"tank": 1}, "players": 3}], "allowBackfill": True},
    "alone": {"teams": 1, "playersPerTeam": 8, "minPlayersPerTeam": 4, "partialAfter": 3},
    "crowd": {"teams": 6, "playersPerTeam": 2, "minTeams": 3, "minPlayersPerTeam": 1, "partialAfter": 3},
    "strict": {
        "playersPerTeam": 2,
        "rules": [
            {"type": "difference", "field": "mmr", "maxDifference": 5, "relax": TINY_RELAX},
            {"type": "difference", "field": "level", "maxDifference": 3},
            {"type": "equals", "field": "version", "dropAfter": 8},
            {"type": "not_equals", "field": "last"},
            {"type": "overlap", "field": "maps"},
            {"type": "region", "maxLatency": 60},
            {"type": "expression", "expression": "a.size + b.size < 4 || a.waited > 4.0"},
        ],
    },
    "split": {"rules": [{"type": "equals", "field": "version"}]},
}


def ticket(chance: random.Random, mode: ModeConfig, name: str, at: float) -> Ticket:
    """Any lobby that the mode takes."""
    size = min(mode.party_limit, chance.choice((1, 1, 1, 2, 2, 3)))
    skill = chance.choice((20.0, 25.0, chance.gauss(25, 4)))
    named = tuple(chance.sample(REGIONS, chance.choice((0, 1, 2, 3))))
    pings = {region: chance.choice((20.0, 50.0, 80.0)) for region in REGIONS} if chance.random() < 0.5 else {}
    roles = mode.shape.roles or ROLES
    players = tuple(
        Player(
            f"{name}.{one}",
            skill + chance.gauss(0, 1),
            chance.choice((1.0, 8.0)),
            tuple(chance.sample(roles, chance.randint(0, min(2, len(roles))))),
            named,
            pings,
            frozenset({f"t{chance.randrange(12)}.0"}) if chance.random() < 0.1 else frozenset(),
        )
        for one in range(size)
    )
    fields = {
        "mmr": chance.choice((1.0, 3.0, 20.0)),
        "level": chance.choice((1.0, 5.0)),
        "version": chance.choice(("1", "2", None)),
        "last": chance.choice(((), ("m1",), ("m1", "m2"))),
        "maps": chance.choice(((), ("sand",), ("sand", "snow"))),
    }
    return Ticket(name, players, at, fields)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(MODES)), st.integers(0, 2**32), st.integers(0, 60), st.floats(0, 60))
def test_every_match_of_a_snapshot_is_legal_and_always_the_same(name: str, seed: int, count: int, now: float) -> None:
    mode, chance = parse_mode(MODES[name]), random.Random(seed)
    tickets = [ticket(chance, mode, f"t{number}", chance.uniform(0, now)) for number in range(count)]
    by_id = {one.ticket_id: one for one in tickets}
    found = match(tickets, mode, now, rounds=60)
    assert [fault for one in found for fault in check(one, by_id, mode, now)] == []
    used = [one for each in found for one in each.ticket_ids]
    assert len(used) == len(set(used))
    assert match(tickets, mode, now, rounds=60) == found


class Queue(RuleBasedStateMachine):
    """A queue over time, with backfill: joins, leaves, attempts and sweeps in any order."""

    @initialize(name=st.sampled_from(sorted(MODES)), seed=st.integers(0, 2**32))
    def begin(self, name: str, seed: int) -> None:
        self.mode = parse_mode(MODES[name])
        self.chance = random.Random(seed)
        self.queue = Matcher(self.mode, seed)
        self.now = 0.0
        self.all: dict[str, Ticket] = {}
        self.waiting: set[str] = set()
        self.running: dict[str, OpenMatch] = {}

    @rule(pause=st.sampled_from([0.0, 0.1, 1.0, 7.0]))
    def join(self, pause: float) -> None:
        self.now += pause
        name = f"t{len(self.all)}"
        self.all[name] = ticket(self.chance, self.mode, name, self.now)
        self.queue.add(self.all[name])
        self.waiting.add(name)
        self.took(self.queue.attempt(name, self.now))

    @rule()
    def leave(self) -> None:
        if self.waiting:
            name = min(self.waiting)
            self.waiting.discard(name)
            assert self.queue.remove(name)
        assert not self.queue.remove("nobody")

    @rule(pause=st.sampled_from([0.0, 2.0, 20.0]), looks=st.integers(1, 80))
    def sweep(self, pause: float, looks: int) -> None:
        self.now += pause
        ticks = iter(range(1_000_000))
        for found in self.queue.sweep(self.now, looks, clock=lambda: float(next(ticks))):
            self.took(found)

    def took(self, found: Found | None) -> None:
        if found is None:
            return
        before = self.running.get(found.backfill) if found.backfill else None
        assert check(found, self.all, self.mode, self.now, before) == []
        assert set(found.ticket_ids) <= self.waiting
        self.waiting -= set(found.ticket_ids)
        added = [tuple(self.all[one] for one in team.tickets) for team in found.teams]
        roles = {player: role for team in found.teams for player, role in team.roles.items()}
        if before:
            teams = tuple((*old, *new) for old, new in zip(before.teams, added, strict=True))
            match_id, roles = before.match_id, {**before.roles, **roles}
        else:
            teams, match_id = tuple(added), f"m{len(self.running)}"
        self.running[match_id] = OpenMatch(match_id, teams, found.region, self.now, roles)
        if self.mode.allow_backfill and not before:
            # One lobby of it leaves: its place is free.
            teams = tuple(team[1:] if number == 0 else team for number, team in enumerate(teams))
            self.running[match_id] = OpenMatch(match_id, teams, found.region, self.now, roles)
            self.queue.open(self.running[match_id])

    @invariant()
    def nobody_is_lost(self) -> None:
        if hasattr(self, "queue"):
            assert {one.ticket_id for one in self.queue.snapshot()} == self.waiting
            assert self.queue.players == sum(self.all[one].size for one in self.waiting)


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["fives", "split", "crowd"]))
def test_of_two_alike_the_one_who_waits_longer_goes_first(seed: int, name: str) -> None:
    mode, chance = parse_mode(MODES[name]), random.Random(seed)
    kinds = [ticket(chance, mode, "kind", 0.0) for _ in range(3)]
    queue, all_of = Matcher(mode), dict[str, tuple[int, float]]()
    waiting: dict[str, tuple[int, float]] = {}
    for number in range(40):
        at, kind = float(number), chance.randrange(3)
        base = kinds[kind]
        players = tuple(
            Player(f"{number}.{n}", p.mu, p.sigma, p.roles, p.regions, p.latencies) for n, p in enumerate(base.players)
        )
        one = Ticket(f"t{number:02}", players, at, base.fields)
        all_of[one.ticket_id] = waiting[one.ticket_id] = (kind, at)
        queue.add(one)
        found = queue.attempt(one.ticket_id, at)
        for taken in found.ticket_ids if found else ():
            del waiting[taken]
        for taken in found.ticket_ids if found else ():
            kind, born = all_of[taken]
            assert all(other > born for same, other in waiting.values() if same == kind)


def test_a_match_is_made_when_the_last_one_arrives() -> None:
    mode = parse_mode(MODES["fives"])
    queue = Matcher(mode)
    wanted = ["tank", "healer", "dps", "dps", "dps"] * 2
    made = []
    for number, role in enumerate(wanted):
        queue.add(Ticket(f"t{number}", (Player(f"p{number}", roles=(role,)),), float(number)))
        made.append(queue.attempt(f"t{number}", float(number)))
    assert made[:-1] == [None] * 9
    assert made[-1] is not None
    assert all(sorted(team.roles.values()) == ["dps", "dps", "dps", "healer", "tank"] for team in made[-1].teams)


def test_a_ticket_handed_back_keeps_its_place() -> None:
    mode = parse_mode({})
    queue = Matcher(mode)
    old, young = (Ticket(name, (Player(name),), at) for name, at in (("old", 0.0), ("young", 5.0)))
    for one in (young, old):
        queue.add(one)
    assert queue.attempt("old", 5.0) is not None
    for one in (young, old):
        queue.add(one)
    queue.add(Ticket("new", (Player("new"),), 9.0))
    found = queue.attempt("new", 9.0)
    assert found is not None
    assert "old" in found.ticket_ids
    assert "young" in found.ticket_ids


def test_backfill_fills_the_smaller_team_with_the_missing_role() -> None:
    mode = parse_mode(MODES["fives"])
    roles = ["tank", "healer", "dps", "dps", "dps"]
    teams = [[Ticket(f"{t}{n}", (Player(f"{t}{n}", roles=(r,)),), 0.0) for n, r in enumerate(roles)] for t in "ab"]
    given_roles = {f"{t}{n}": r for t in "ab" for n, r in enumerate(roles)}
    queue = Matcher(mode)
    queue.open(OpenMatch("m", (tuple(teams[0]), tuple(teams[1][1:])), None, 0.0, given_roles))
    queue.add(Ticket("dps", (Player("x", roles=("dps",)),), 1.0))
    assert queue.attempt("dps", 1.0) is None
    queue.add(Ticket("fill", (Player("y"),), 2.0))
    found = queue.attempt("fill", 2.0)
    assert found is not None
    assert found.backfill == "m"
    assert found.teams[1].tickets == ("fill",)
    assert found.teams[1].roles == {"y": "tank"}
    queue.add(Ticket("more", (Player("z"),), 3.0))
    assert queue.attempt("more", 3.0) is None
    assert queue.close("m")


def test_a_queue_that_lacks_a_role_costs_nothing() -> None:
    mode = parse_mode(MODES["fives"])
    queue = Matcher(mode)
    for number in range(2_000):
        queue.add(Ticket(f"t{number}", (Player(f"p{number}", roles=("dps",)),), 0.0))
    looks = iter(range(1_000_000))
    assert queue.sweep(500.0, 1e6, clock=lambda: float(next(looks))) == []
    assert next(looks) < 10


@pytest.mark.parametrize("budget", [5, 50])
def test_a_sweep_goes_on_where_it_stopped(budget: int) -> None:
    mode = parse_mode({})
    queue = Matcher(mode)
    for number in range(200):
        queue.add(Ticket(f"t{number:03}", (Player(f"p{number}"),), float(number)))
    pieces = 0
    clock: Callable[[], float] = iter(map(float, range(1_000_000))).__next__
    while len(queue):
        before = len(queue)
        queue.sweep(500.0, budget, clock=clock)
        pieces += 1
        assert len(queue) < before
    assert pieces > 100 // budget - 1
