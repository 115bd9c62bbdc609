"""The loop that runs a mode's queue: kept over sweeps, checked against who waits now, fair between projects."""

from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.matchmaking import Found, MatchLoop, OpenMatch, Ticket, parse_mode
from fleet.matchmaking.turns import LEAST_S, MOST_S, ROUND_S, Turns, share_s
from tests.unit.match_kit import duel, lobby

FOREVER = 1e9
OPEN = {"teams": 2, "playersPerTeam": 2, "minPlayersPerTeam": 1, "allowBackfill": True, "partialAfter": 0}


class Steps:
    """A clock that moves by one at each look."""

    def __init__(self) -> None:
        self._at = count()

    def __call__(self) -> float:
        return float(next(self._at))


def stuck(number: int) -> Iterator[Ticket]:
    """Nobody fits them."""
    mode = duel(timeout=600)
    return (lobby(mode, f"odd{one}", at=one / 1000, mmr=1_000_000 + 100_000 * one) for one in range(number))


def names(found: list[Found]) -> list[list[str]]:
    return [sorted(one.ticket_ids) for one in found]


def test_sweeps_that_are_cut_off_reach_the_end_of_a_long_queue() -> None:
    """Each goes on where the last was cut off, so two who fit are found however many stuck ones are before them."""
    mode = duel(timeout=600)
    loop = MatchLoop(mode)
    for ticket in [*stuck(400), lobby(mode, "a", at=5.0, mmr=1000), lobby(mode, "b", at=5.1, mmr=1050)]:
        loop.add(ticket)
    budget = 100
    for number in range(1, 8):  # taking 402 in, then 402 looks, in pieces of 100
        if found := loop.taken(loop.sweep(10.0 + number, budget, Steps())):
            assert names(found) == [["a", "b"]]
            return
    raise AssertionError("the two were not reached")


def test_a_lobby_that_left_and_queues_anew_is_in_no_old_match_and_is_tried_again() -> None:
    mode = duel()
    loop = MatchLoop(mode)
    for name in ("a", "b"):
        loop.add(lobby(mode, name, mmr=1000))
    sweep = loop.begin()
    sweep.run(1.0, FOREVER, Steps())  # in the thread
    loop.add(lobby(mode, "a", 0.5, mmr=5000))  # meanwhile
    assert names(sweep.found) == [["a", "b"]]
    assert list(loop.settle(sweep)) == []
    assert loop.untried() == ["b"]
    assert list(loop.sweep(2.0, FOREVER, Steps())) == []
    loop.add(lobby(mode, "c", 2.0, mmr=1010))
    assert names(loop.taken(loop.sweep(3.0, FOREVER, Steps()))) == [["b", "c"]]


def test_what_is_not_carried_out_waits_on() -> None:
    """The keeper may refuse a match, or break while it forms it: the tickets are found again by either way."""
    mode = duel()
    loop = MatchLoop(mode)
    for name in ("a", "b", "c", "d"):
        loop.add(lobby(mode, name, mmr=1000))
    assert len(list(loop.sweep(1.0, FOREVER, Steps()))) == 2
    assert sorted(loop.untried()) == ["a", "b", "c", "d"]
    with pytest.raises(ZeroDivisionError):
        break_in(loop)
    assert len(loop.taken(loop.attempt("a", 2.0))) == 1
    assert len(loop.taken(loop.sweep(3.0, FOREVER, Steps()))) == 1
    assert len(loop) == 0


def break_in(loop: MatchLoop) -> None:
    for _ in loop.sweep(1.5, FOREVER, Steps()):
        raise ZeroDivisionError


def test_a_running_match_is_not_filled_twice() -> None:
    """A place that an arriving ticket took while the sweep gave it to another is not given again."""
    mode = parse_mode(OPEN)
    loop = MatchLoop(mode)
    three = OpenMatch("m", ((lobby(mode, "x"), lobby(mode, "y")), (lobby(mode, "z"),)), None, 0.0)
    loop.open(three)
    loop.add(lobby(mode, "d", 1.0))
    sweep = loop.begin()
    sweep.run(2.0, FOREVER, Steps())
    assert [one.backfill for one in sweep.found] == ["m"]
    loop.close("m")  # meanwhile `e` has come and filled it
    assert list(loop.settle(sweep)) == []
    assert "d" in loop
    assert list(loop.sweep(3.0, FOREVER, Steps())) == []


def test_several_places_of_a_running_match_are_filled_in_one_sweep() -> None:
    mode = parse_mode({**OPEN, "playersPerTeam": 3})
    loop = MatchLoop(mode)
    loop.open(OpenMatch("m", ((lobby(mode, "x"),), (lobby(mode, "z"),)), None, 0.0))
    teams = [[lobby(mode, "x")], [lobby(mode, "z")]]
    for name in "abcd":
        loop.add(lobby(mode, name, 1.0))
    filled = 0
    for found in loop.sweep(2.0, FOREVER, Steps()):
        filled += 1
        for team, more in zip(teams, found.teams, strict=True):
            team.extend(lobby(mode, name) for name in more.tickets)
        for name in found.ticket_ids:
            loop.remove(name)
        loop.open(OpenMatch("m", tuple(map(tuple, teams)), None, 0.0))  # as the keeper does
    assert filled == 4
    assert [len(team) for team in teams] == [3, 3]


def test_after_a_sweep_that_never_came_back_the_next_begins_with_all_who_wait() -> None:
    mode = duel()
    loop = MatchLoop(mode)
    loop.add(lobby(mode, "a", mmr=1000))
    lost = loop.begin()
    loop.add(lobby(mode, "b", mmr=1000))
    lost.give_up()
    loop.abandon()
    lost.run(1.0, FOREVER, Steps())  # the thread that hung
    assert names(loop.taken(loop.sweep(2.0, FOREVER, Steps()))) == [["a", "b"]]


actions = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "remove", "attempt", "begin", "run", "settle", "abandon"]),
        st.integers(0, 9),
        st.integers(0, 3),
    ),
    max_size=80,
)


@settings(max_examples=200, deadline=None)
@given(actions=actions)
def test_a_match_has_only_tickets_as_they_are_now_and_nobody_who_fits_is_forgotten(
    actions: list[tuple[str, int, int]],
) -> None:
    mode = parse_mode({"rules": [{"type": "equals", "field": "map"}]})
    loop = MatchLoop(mode)
    present: dict[str, Ticket] = {}
    sweep, ran = None, False
    now = 0.0

    def carry_out(found: Iterator[Found]) -> None:
        for one in found:
            maps = {present.pop(name).fields["map"] for name in one.ticket_ids}  # each is there, and once
            assert len(maps) == 1
            for name in one.ticket_ids:
                assert loop.remove(name)

    for what, number, value in actions:
        now += 1.0
        name = f"t{number}"
        if what == "add":
            present[name] = lobby(mode, name, now, map=value)
            loop.add(present[name])
        elif what == "remove":
            assert loop.remove(name) == (present.pop(name, None) is not None)
        elif what == "attempt":
            carry_out(loop.attempt(name, now))
        elif what == "begin" and sweep is None:
            sweep, ran = loop.begin(), False
        elif what == "run" and sweep is not None and not ran:
            sweep.run(now, value * 10, Steps())
            ran = True
        elif what == "settle" and sweep is not None and ran:
            carry_out(loop.settle(sweep))
            sweep = None
        elif what == "abandon" and sweep is not None:
            sweep.give_up()
            loop.abandon()
            sweep = None
    if sweep is not None and ran:
        carry_out(loop.settle(sweep))
    elif sweep is not None:
        loop.abandon()
    for _ in range(3):
        now += 100.0
        carry_out(loop.sweep(now, FOREVER, Steps()))
    waiting = [ticket.fields["map"] for ticket in present.values()]
    assert sorted(loop.tickets, key=lambda one: one.ticket_id) == [present[name] for name in sorted(present)]
    assert len(set(waiting)) == len(waiting), "two who fit wait on"


# Fairness -----------------------------------------------------------------------------------------------------------


def test_one_projects_endless_queue_delays_another_by_no_more_than_its_share() -> None:
    """Time is counted in looks: a project with a queue that never ends has its share of each round, and those beside it
    are looked through in the same round."""
    mode = duel(timeout=600)
    turns: Turns[str, str] = Turns()
    loops = {"big": MatchLoop(mode), "also": MatchLoop(mode), "small": MatchLoop(mode)}
    owners = {"big": "A", "also": "A", "small": "B"}
    for ticket in stuck(3_000):
        loops["big"].add(ticket)
    for name in ("also", "small"):
        loops[name].add(lobby(mode, "x", 0.0, mmr=1000))
    clock, served = Steps(), dict.fromkeys(loops, 0)
    for number in range(30):
        began = clock()
        for owner, queues in turns.round((owners[name], name) for name in loops):
            left = 1_000 * share_s(2)
            for name in queues:
                before = clock()
                list(loops[name].sweep(1.0 + number, left, clock))
                served[name] += 1
                left -= clock() - before
                if left <= 0:
                    turns.used_up(owner, queues, name)
                    break
        assert clock() - began <= 2 * (1_000 * share_s(2) + 64)
    assert served["small"] == 30
    assert served["also"] >= 10  # the other queue of the same project is not left out either


def test_shares_are_equal_and_bounded() -> None:
    assert share_s(1) == share_s(4) == MOST_S
    assert share_s(10) == ROUND_S / 10
    assert share_s(10_000) == LEAST_S


@given(cut=st.integers(1, 4), owners=st.integers(2, 6))
def test_rounds_that_are_cut_off_leave_no_project_out(cut: int, owners: int) -> None:
    turns: Turns[int, int] = Turns()
    served = {owner for _ in range(owners) for owner, _ in turns.round((o, o) for o in range(owners))[:cut]}
    assert served == set(range(owners))
