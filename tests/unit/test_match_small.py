"""The matcher on small queues: each rule does what it says."""

import random

from fleet.matchmaking import Matcher, Player, Rating, Ticket, chances, match, parse_mode, rated
from fleet.matchmaking.check import check
from tests.unit.match_kit import duel, fives, lobby, some


def test_two_near_players_meet_at_once_and_far_ones_after_a_wait() -> None:
    mode = duel()
    queue = Matcher(mode)
    queue.add(lobby(mode, "a", 0.0, mmr=1000))
    assert queue.attempt("a", 0.0) is None
    queue.add(lobby(mode, "b", 10.0, mmr=1250))
    assert queue.attempt("b", 10.0) is None
    found = queue.attempt("b", 10.0 + 45.0)
    assert found is not None
    assert sorted(found.ticket_ids) == ["a", "b"]
    assert len(queue) == 0


def test_consent_is_mutual() -> None:
    mode = duel()
    waited_long, new = lobby(mode, "a", 0.0, mmr=1000), lobby(mode, "b", 100.0, mmr=1300)
    assert match([waited_long, new], mode, 100.0) == []


def test_equal_and_unequal_fields() -> None:
    mode = parse_mode({"rules": [{"type": "equals", "field": "version"}, {"type": "not_equals", "field": "last"}]})
    same, other = lobby(mode, "a", version=1, last="m1"), lobby(mode, "b", version=2, last="m2")
    rematch, fresh = lobby(mode, "c", version=1, last="m1"), lobby(mode, "d", 1.0, version=1)
    assert match([same, other, rematch], mode, 5.0) == []
    assert [sorted(found.ticket_ids) for found in match([same, other, rematch, fresh], mode, 5.0)] == [["a", "d"]]


def test_an_expression_decides_over_pairs() -> None:
    rule = {"type": "expression", "expression": "a.mmr - b.mmr < 100.0 || a.waited > 20.0"}
    mode = duel(rules=[{"type": "difference", "field": "mmr", "maxDifference": 900}, rule])
    pair = [lobby(mode, "a", mmr=1500), lobby(mode, "b", 1.0, mmr=1300)]
    assert match(pair, mode, 2.0) == []
    assert len(match(pair, mode, 21.0)) == 1


def test_blocked_players_never_meet() -> None:
    mode = parse_mode({})
    a = Ticket("a", (Player("x", blocked=frozenset({"y"})),), 0.0)
    b, c = Ticket("b", (Player("y"),), 1.0), Ticket("c", (Player("z"),), 2.0)
    assert match([a, b], mode, 5.0) == []
    assert [sorted(found.ticket_ids) for found in match([a, b, c], mode, 5.0)] == [["a", "c"]]


def test_the_region_with_the_least_worst_latency_wins() -> None:
    mode = parse_mode({"rules": [{"type": "region", "maxLatency": 200}]})
    a = Ticket("a", (Player("x", regions=("eu", "us"), latencies={"eu": 20.0, "us": 90.0}),), 0.0)
    b = Ticket("b", (Player("y", regions=("us", "eu"), latencies={"eu": 150.0, "us": 60.0}),), 0.0)
    found = match([a, b], mode, 1.0)[0]
    assert found.regions == ("us", "eu")
    assert found.quality.worst_latency == 90.0


def test_without_a_common_region_nobody_plays() -> None:
    mode = parse_mode({"rules": [{"type": "region"}]})
    assert match([lobby(mode, "a", regions=["eu"]), lobby(mode, "b", regions=["us"])], mode, 99.0) == []


def test_too_great_a_latency_is_accepted_after_a_wait() -> None:
    mode = parse_mode({"rules": [{"type": "region", "maxLatency": 60, "relax": {"perSecond": 2, "max": 100}}]})
    far = {"regions": ["eu"], "latencies": {"eu": 90}}
    pair = [lobby(mode, "a", 0.0, **far), lobby(mode, "b", 0.0, **far)]
    assert match(pair, mode, 14.0) == []
    assert len(match(pair, mode, 15.0)) == 1


def test_boss_against_hunters() -> None:
    mode = parse_mode({"teamComposition": [{"name": "boss", "roles": {"boss": 1}}, {"roles": {"hunter": 3}}]})
    hunters = [lobby(mode, f"h{number}", role="hunter") for number in range(3)]
    assert match([*hunters, lobby(mode, "h3", role="hunter")], mode, 0.0) == []
    found = match([*hunters, lobby(mode, "any", role="fill")], mode, 0.0)[0]
    assert found.teams[0].tickets == ("any",)
    assert found.teams[0].roles == {"p-any": "boss"}
    assert set(found.teams[1].roles.values()) == {"hunter"}


def test_fewer_will_do_after_a_while() -> None:
    mode = parse_mode({"teams": 2, "playersPerTeam": 3, "minPlayersPerTeam": 1, "partialAfter": 30})
    waiting = [lobby(mode, name) for name in "abcd"]
    assert match(waiting, mode, 29.0) == []
    found = match(waiting, mode, 30.0)[0]
    assert found.partial
    assert [len(team.tickets) for team in found.teams] == [2, 2]


def test_a_free_for_all_and_a_battle_royale() -> None:
    alone = parse_mode({"teams": 1, "playersPerTeam": 100})
    assert len(match([lobby(alone, str(number)) for number in range(100)], alone, 1.0)) == 1
    pairs = parse_mode({"teams": 50, "playersPerTeam": 2})
    tickets = [Ticket(f"t{n}", tuple(Player(f"{n}.{m}") for m in range(1 + n % 2)), 0.0) for n in range(70)]
    found = match(tickets, pairs, 1.0)
    assert len(found) == 1
    assert check(found[0], {ticket.ticket_id: ticket for ticket in tickets}, pairs, 1.0) == []


def test_every_match_of_a_crowd_is_legal() -> None:
    mode, chance = fives(), random.Random(7)
    tickets = some(chance, 300)
    by_id = {ticket.ticket_id: ticket for ticket in tickets}
    found = match(tickets, mode, 60.0)
    assert len(found) > 20
    assert [fault for one in found for fault in check(one, by_id, mode, 60.0)] == []


def test_time_in_the_queue_ends() -> None:
    mode = parse_mode({"timeout": 30})
    queue = Matcher(mode)
    queue.add(lobby(mode, "a", 0.0))
    queue.add(lobby(mode, "b", 10.0))
    assert (queue.expired(29.0), queue.expired(30.0), queue.expired(30.0)) == ([], ["a"], ["a"])
    queue.remove("a")
    assert queue.expired(41.0) == ["b"]


def test_winners_rise_and_losers_fall() -> None:
    after = rated([{"a": Rating()}, {"b": Rating()}], [1, 2])
    assert after["a"].mu > 25 > after["b"].mu
    assert after["a"].sigma < Rating().sigma
    assert chances([[after["a"]], [after["b"]]])[0] > 0.5
