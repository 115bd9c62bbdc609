"""Modes of matchmaking as data: both spellings, defaults, and the path of each fault."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import BadRequest
from fleet.matchmaking import Member, parse_lobby_configs, parse_mode, parse_modes, ticket_of
from fleet.servers.limits import Unprocessable
from tests.unit.match_kit import FIVES, fives, lobby


def fault(mode: object) -> Unprocessable:
    with pytest.raises(Unprocessable) as caught:
        parse_mode(mode, "modes.duel")
    assert caught.value.status == 422
    return caught.value


@pytest.mark.parametrize(
    ("mode", "path"),
    [
        ("text", "modes.duel"),
        ({"teams": 0}, "modes.duel.teams"),
        ({"teams": "many"}, "modes.duel.teams"),
        ({"teams": 100, "playersPerTeam": 100}, "modes.duel"),
        ({"minPlayersPerTeam": 3}, "modes.duel"),
        ({"minTeams": 3}, "modes.duel"),
        ({"timeout": float("nan")}, "modes.duel.timeout"),
        ({"rules": [{"type": "region"}, {"type": "difference", "field": "mmr"}]}, "modes.duel.rules.1.maxDifference"),
        ({"rules": [{"type": "magic"}]}, "modes.duel.rules.0"),
        ({"rules": [7]}, "modes.duel.rules.0"),
        ({"rules": [{"type": "expression", "expression": "a.mmr >"}]}, "modes.duel.rules.0.expression"),
        ({"rules": [{"type": "expression", "expression": "c.mmr > 1"}]}, "modes.duel.rules.0.expression"),
        ({"matchmakingRules": [{"attribute": "mmr", "operator": "near"}]}, "modes.duel.rules.0"),
        ({"matchConfirmation": {"enabled": True, "timeout": 0}}, "modes.duel.matchConfirmation.timeout"),
        ({"roles": {"fill": 1}}, "modes.duel"),
        ({"teamComposition": [{"name": "boss", "roles": {"boss": 0}}]}, "modes.duel.teamComposition.0.roles.boss"),
        ({"teams": 3, "teamComposition": [{"roles": {"boss": 1}}, {"roles": {"hunter": 4}}]}, "modes.duel"),
    ],
)
def test_a_fault_is_told_with_its_path(mode: object, path: str) -> None:
    assert fault(mode).field == path


def test_faults_in_settings_tell_the_whole_path() -> None:
    configs = [{"name": "default"}, {"name": "arena", "matchmaking": {"modes": {"1v1": {"teams": -1}}}}]
    with pytest.raises(Unprocessable) as caught:
        parse_lobby_configs(configs)
    assert caught.value.field == "lobby_configs.1.matchmaking.modes.1v1.teams"
    with pytest.raises(Unprocessable, match="should be an object"):
        parse_modes({"matchmaking": []})


def test_the_three_spellings_of_rules_are_the_same() -> None:
    new = {"rules": [{"type": "difference", "field": "mmr", "maxDifference": 50}, {"type": "region"}]}
    older = {"matchmakingRules": new["rules"]}
    oldest = {
        "matchmakingRules": [
            {"attribute": "mmr", "operator": "difference", "maxDifference": 50},
            {"attribute": "regions", "operator": "intersection"},
        ]
    }
    assert parse_mode(new).digest == parse_mode(older).digest == parse_mode(oldest).digest
    assert parse_mode(new).digest != parse_mode({}).digest


def test_unknown_names_are_kept_aside() -> None:
    mode = parse_mode({"teams": 2, "flavour": "sweet"})
    assert mode.unknown == ("flavour",)


def test_shapes() -> None:
    royale = parse_mode({"teams": 50, "playersPerTeam": 2, "minTeams": 20, "minPlayersPerTeam": 1})
    assert (royale.shape.players, royale.shape.least_players, royale.party_limit) == (100, 20, 2)
    hunt = parse_mode({"teamComposition": [{"name": "boss", "roles": {"boss": 1}}, {"roles": {"hunter": 4}}]})
    assert [(team.name, team.size) for team in hunt.shape.teams] == [("boss", 1), ("team-2", 4)]
    assert not hunt.shape.alike
    assert fives().shape.teams[0].open_places == 0
    assert parse_mode(FIVES | {"playersPerTeam": 6}).shape.teams[0].open_places == 1


def test_a_window_widens_with_waiting() -> None:
    rule = parse_mode({"rules": [{"type": "difference", "field": "mmr", "maxDifference": 60}]}).first_difference
    assert rule is not None
    assert [rule.growth.grown(60, waited) for waited in (0, 30, 1000)] == [60, 120, 300]


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ({"mmr": "high"}, "Bad player state"),
        ({}, "Bad player state"),
        ({"mmr": 1, "role": "sniper"}, "Bad role"),
        ({"mmr": 1, "role": 7}, "Bad player state"),
        ({"mmr": 1, "role": "Spectator"}, "Nobody plays"),
        ({"mmr": float("inf")}, "Bad player state"),
    ],
)
def test_a_state_that_does_not_fit_the_mode_is_refused(state: dict[str, object], error: str) -> None:
    mode = fives(rules=[{"type": "difference", "field": "mmr", "maxDifference": 1}])
    with pytest.raises(BadRequest) as caught:
        lobby(mode, "one", **state)
    assert caught.value.error == error


def test_roles_of_a_state() -> None:
    mode = fives()
    assert lobby(mode, "a", role="Tank").players[0].roles == ("tank",)
    assert lobby(mode, "b", role=["healer", "dps"]).players[0].roles == ("healer", "dps")
    assert lobby(mode, "c", role="fill").players[0].roles == ()
    assert lobby(mode, "d", role=["healer", "fill"]).players[0].roles == ("healer", "tank", "dps")
    watched = ticket_of(mode, "e", 0.0, [Member("x", {}), Member("y", {"role": "Spectator"})])
    assert (watched.size, watched.spectators) == (1, ("y",))


def test_a_party_that_cannot_be_in_one_match_is_refused() -> None:
    mode = fives(rules=[{"type": "equals", "field": "version"}])
    with pytest.raises(BadRequest, match="differ in 'version'"):
        ticket_of(mode, "e", 0.0, [Member("x", {"version": "1"}), Member("y", {"version": "2"})])
    with pytest.raises(BadRequest, match="at most 5"):
        ticket_of(mode, "e", 0.0, [Member(str(number), {}) for number in range(6)])


JUNK = st.sampled_from([None, True, 0, -1, 3, 1e308, float("nan"), "", "x", [], [1], {}, {"a": 1}, [[]], [{}]])
NAMES = st.sampled_from(["teams", "playersPerTeam", "rules", "roles", "teamComposition", "timeout", "minTeams", "x"])
KINDS = st.sampled_from(["difference", "equals", "region", "skill", "expression"])
RULES = st.fixed_dictionaries({}, optional={"type": KINDS | JUNK, "field": JUNK, "relax": JUNK, "maxDifference": JUNK})


@given(st.dictionaries(NAMES, JUNK | st.lists(RULES, max_size=3)))
def test_any_json_is_a_mode_or_a_fault(mode: object) -> None:
    try:
        players = parse_mode(mode).shape.players
    except Unprocessable:
        return
    assert 1 <= players <= 200


def test_regions_that_nobody_knows_are_left_out() -> None:
    member = Member("x", {"regions": ["moon", "eu-west"], "latencies": {"eu-west": 20, "moon": 1}})
    player = ticket_of(fives(), "a", 0.0, [member], {"eu-west"}).players[0]
    assert (player.regions, player.latencies) == (("eu-west",), {"eu-west": 20.0})
    with pytest.raises(BadRequest, match="'moon' is no region here"):
        ticket_of(fives(), "a", 0.0, [Member("x", {"regions": ["moon"]})], {"eu-west"})
