"""One project's costly modes delay another project's match by a bounded time, whatever they are made of."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlmodel import col, update

from fleet.lobbies.unmet import AGAIN_MS, MOST, Unmet
from fleet.matchmaking import Fault, parse_mode
from fleet.matchmaking.budget import expressions_of
from fleet.matchmaking.turns import ARRIVALS_BURST_S, LEAST_S, MOST_S, REST, Allowance, Turns
from fleet.servers.limits import Unprocessable
from fleet.store.tables import Project
from fleet.times import now_ms
from tests.unit.api_kit import Api
from tests.unit.club import Club, eventually

WINDOW = {"type": "difference", "field": "elo", "maxDifference": 10, "relax": {"after": 1, "perSecond": 50}}
APART = 60  # with the window: two seconds of waiting
SLOWER = 1.5  # than alone


def loops(count: int) -> str:
    """False, after so many rounds squared."""
    over = f"[{','.join('1' * count)}]"
    return f"{over}.all(x, {over}.all(y, x + y > 2))" if count < 2 else f"!{over}.all(x, {over}.all(y, x + y > 0))"


def mode_of(expression: str) -> dict[str, Any]:
    return {"teams": 2, "playersPerTeam": 1, "rules": [{"type": "expression", "expression": expression}]}


def costliest() -> str:
    """The largest of its kind that is accepted."""
    accepted = "false"
    for count in range(2, 60):
        try:
            parse_mode(mode_of(loops(count)))
        except Unprocessable:
            break
        accepted = loops(count)
    program = expressions_of(parse_mode(mode_of(accepted)))[0].program
    assert program is not None
    assert program.steps > 5_000
    return accepted


def hidden(depth: int, count: int) -> str:
    """What an older check took: comments hide loops, and the loop variable's name hides among the lobbies'."""
    expression = "true"
    for _ in range(depth):
        expression = f"[{','.join('1' * count)}].//\nall(b,{expression})"
    return f"!({expression})"


async def stored(api: Api, project_id: str, *configs: dict[str, Any]) -> None:
    """As an older version saved it, unchecked."""
    change = update(Project).where(col(Project.id) == project_id)
    async with api.store.write() as session:
        await session.exec(change.values(settings={"lobby_configs": list(configs)}, updated_at=now_ms()))


def config(modes: dict[str, Any]) -> dict[str, Any]:
    return {"name": "duels", "maxPlayers": 1, "matchmaking": {"modes": modes}}


async def match_s(club: Club, *players: str) -> float:
    """How long two wait whose rules only time brings together."""
    for place, player in enumerate(players):
        await club.lobby(player, max_players=1, state={"elo": 1000 + place * APART})
        await club.do("start_matchmaking", player, "duel")
    began = time.monotonic()
    await club.sees(players[0], "in_game")
    return time.monotonic() - began


async def crowd(club: Club, count: int, mode: Callable[[int], str]) -> None:
    for first in range(0, count, 50):
        some = range(first, min(count, first + 50))
        await asyncio.gather(*(club.lobby(f"c{one}", max_players=1, state={"n": one}) for one in some))
        await asyncio.gather(*(club.do("start_matchmaking", f"c{one}", mode(one)) for one in some))


async def compared(api: Api, modes: dict[str, Any], tickets: int, mode: Callable[[int], str]) -> None:
    """The other project's match takes at most so much longer than alone. Twice, since the machine is not ours alone."""
    victim, costly = Club(api), Club(api)
    victim.project = api.other.project_id
    await stored(api, victim.project, config({"duel": {"teams": 2, "playersPerTeam": 1, "rules": [WINDOW]}}))
    alone = await match_s(victim, "a1", "a2")
    await stored(api, costly.project, config(modes))
    await crowd(costly, tickets, mode)
    beside: list[float] = []
    for number in range(3):
        beside.append(await match_s(victim, f"b{number}", f"c{number}"))
        if beside[-1] <= SLOWER * alone:
            break
    print(f"a match alone {alone:.2f} s, beside {tickets} costly tickets {', '.join(f'{one:.2f}' for one in beside)} s")
    assert min(beside) <= SLOWER * alone


async def test_the_costliest_rule_that_is_taken_delays_no_other_project(api: Api) -> None:
    await compared(api, {"duel": mode_of(costliest())}, 300, lambda _: "duel")


async def test_many_queues_of_one_project_delay_no_other(api: Api) -> None:
    await compared(api, {f"m{one}": mode_of(costliest()) for one in range(50)}, 300, lambda one: f"m{one % 50}")


async def test_a_stored_rule_that_is_not_taken_any_more_is_not_run_and_told_once(api: Api) -> None:
    """10^11 steps for one pair; the keeper goes on, the other project's match comes, and this one hears why."""
    await compared(api, {"duel": mode_of(hidden(5, 20))}, 20, lambda _: "duel")
    club = Club(api)
    told = await eventually(lambda: club.told("rule_not_met"))
    assert len(told) == 1
    assert (told[0].subject, told[0].data["mode"], told[0].data["rule"]) == ("duels", "duel", 0)
    assert "may cost" in told[0].data["why"]
    core = await api.keepers.core()
    counts = [s.value for one in core.metrics.collect() for s in one.samples if s.name == "fleet_rules_not_met_total"]
    assert sum(counts) > 1
    assert (await club.do("mine", "c0")).status == "in_queue"


async def test_such_a_rule_is_refused_when_it_is_saved(api: Api) -> None:
    modes = {"duel": mode_of(hidden(5, 20))}
    answer = await api.call("POST", "/api/v3/projects/settings", json={"lobby_configs": [config(modes)]})
    assert 400 <= answer.status_code < 500
    text = str(answer.json())
    assert "may cost" in text
    assert "the limit is 10,000" in text


@pytest.mark.parametrize(
    ("rule", "state"),
    [
        ({"type": "not_equals", "field": "last"}, {"last": ["x"] * 65}),
        ({"type": "overlap", "field": "maps"}, {"maps": ["x" * 201]}),
        ({"type": "equals", "field": "version"}, {"version": "1" * 201}),
        ({"type": "equals", "field": "version"}, {"version": {"much": ["more"] * 60}}),
        ({"type": "region"}, {"regions": ["x" * 65]}),
    ],
)
async def test_values_that_rules_compare_are_bounded_at_the_door(
    api: Api, rule: dict[str, Any], state: dict[str, Any]
) -> None:
    club = Club(api)
    modes = {"duel": {"teams": 2, "playersPerTeam": 1, "rules": [rule]}}
    await stored(api, club.project, config(modes))
    await club.lobby("a", max_players=1, state=state)
    refusal: Awaitable[Any] = club.do("start_matchmaking", "a", "duel")
    with pytest.raises(Exception, match="at most") as caught:
        await refusal
    assert getattr(caught.value, "status", 500) == 400


# Turns --------------------------------------------------------------------------------------------------------------


def test_who_takes_long_rests_and_comes_last() -> None:
    turns: Turns[str, int] = Turns()
    queues = [("costly", 1), ("cheap", 2), ("also", 3)]
    assert len(turns.round(queues, 0.0)) == 3
    turns.ended({"costly": 0.3, "cheap": 0.001, "also": 0.002}, 0.0)
    for number in range(1, 3):
        now = 0.5 * number
        assert {owner for owner, _ in turns.round(queues, now)} == {"cheap", "also"}
        turns.ended({"cheap": 0.001, "also": 0.002}, now)
    later = REST * 0.303 + 0.01
    for _ in range(3):
        assert [owner for owner, _ in turns.round(queues, later)][-1] == "costly"


def test_all_together_use_a_bounded_part_of_the_time() -> None:
    """However many costly projects there are, and cheap ones are in every round."""
    turns: Turns[int, int] = Turns()
    now, worked, cheap = 0.0, 0.0, 0
    for rounds in range(1, 401):
        order = turns.round(((owner, owner) for owner in range(21)), now)
        took = {owner: LEAST_S / 10 if owner == 0 else MOST_S / 2 for owner, _ in order}
        cheap += 0 in took
        worked += sum(took.values())
        now += sum(took.values())
        turns.ended(took, now)
        now += 0.5
        assert cheap == rounds
    assert worked / now < 0.25


def test_arrivals_of_one_project_have_a_share_of_the_keepers_time() -> None:
    now, work = [0.0], [0.0]
    allowance: Allowance[str] = Allowance(lambda: now[0], lambda: work[0])

    def attempt(owner: str, seconds: float) -> bool:
        if not allowance.begin(owner):
            return False
        work[0] += seconds
        allowance.end(owner)
        return True

    assert all(attempt("a", ARRIVALS_BURST_S / 4) for _ in range(4))
    assert not attempt("a", 0.01)
    assert attempt("b", 0.01), "its neighbour has its own"
    now[0] += 1.0
    assert attempt("a", 0.0)


def test_a_project_is_told_now_and_then_and_not_of_everything() -> None:
    now, notes, counts = [AGAIN_MS], list[str](), list[str]()
    unmet = Unmet(lambda project, _s, _w, _at, **data: notes.append(f"{project} {data}"), counts.append, lambda: now[0])
    faults = {0: Fault("refused", "why")}
    for _ in range(5):
        for mode in range(MOST + 5):
            unmet.heard(("p", "c", f"m{mode}"), faults)
    assert len(notes) == MOST
    assert len(counts) == 5 * (MOST + 5)
    unmet.heard(("q", "c", "m"), faults)
    assert len(notes) == MOST + 1
    now[0] += AGAIN_MS
    unmet.heard(("p", "c", "m0"), faults)
    assert len(notes) == MOST + 2
