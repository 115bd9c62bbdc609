"""Lobbies over the real keeper's core, service and database; regions are stand-ins that keep books."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest
from sqlmodel import select

from fleet.errors import FleetError
from fleet.lobbies.core import Core
from fleet.lobbies.model import LobbyChange, LobbyQuery, LobbyView, NewLobby, QueueStats, Standing
from fleet.store.lobby_tables import Match, PlayerRating
from tests.unit.api_kit import Api
from tests.unit.club import CONFIG, Club, eventually, refused


@pytest.fixture
async def club(api: Api) -> Club:
    await api.app.state.context.projects.change_settings(api.project.project_id, {"lobby_configs": [CONFIG]})
    return Club(api)


async def test_a_lobby_from_beginning_to_end(club: Club) -> None:
    made = await club.lobby("ann", state={"mmr": 1500}, settings={"map": "dust"})
    assert (made.status, made.host, made.has("ann"), made.config) == ("waiting", "ann", True, "duels")
    assert (await club.do("mine", "ann")).id == made.id
    seen = await club.do("set_state", "ann", {"ready": True})
    assert seen.players[0].state == {"mmr": 1500, "ready": True}
    seen = await club.do("change", "ann", LobbyChange(name="new", max_players=3, settings={"mode": "x"}))
    assert (seen.name, seen.max_players, seen.settings) == ("new", 3, {"map": "dust", "mode": "x"})
    await club.do("join", "bob", lobby_id=made.id)
    seen = await club.do("join", "cat", code=f" {made.code.lower()} ", state={"role": "medic"})
    assert [player.id for player in seen.players] == ["ann", "bob", "cat"]
    assert (await club.do("kick", "ann", "bob")).current_players == 2
    assert await refused(club.do("mine", "bob")) == (404, "Lobby not found")
    left = await club.do("leave", "ann")
    assert (left.host, left.current_players, left.players[0].state) == ("cat", 1, {"role": "medic"})
    assert await club.do("leave", "cat") is None
    assert await refused(club.service.get(club.project, club.config, made.id)) == (404, "Lobby not found")


async def test_what_is_refused(club: Club) -> None:
    made = await club.lobby("ann", "bob", max_players=2)
    await club.lobby("eve")
    assert await refused(club.do("join", "cat", lobby_id=made.id)) == (400, "Lobby is full")
    assert await refused(club.do("join", "eve", lobby_id=made.id)) == (409, "Already in another lobby")
    assert await refused(club.lobby("ann")) == (409, "Already in another lobby")
    assert await refused(club.do("join", "cat", code="NOPE-00")) == (404, "Lobby not found")
    assert await refused(club.do("join", "cat", lobby_id="x", code="y")) == (400, "Bad request")
    for method, arguments in {
        "kick": ("ann",),
        "change": (LobbyChange(name="x"),),
        "start": (),
        "start_matchmaking": ("duel",),
        "cancel_matchmaking": (),
        "end_match": (),
    }.items():
        assert await refused(club.do(method, "bob", *arguments)) == (403, "Not host"), method
    assert await refused(club.do("kick", "ann", "ann")) == (400, "Cannot kick yourself")
    assert await refused(club.do("kick", "ann", "cat")) == (404, "Player not found")
    assert await refused(club.do("change", "ann", LobbyChange(max_players=1))) == (400, "maxPlayers too small")
    for method, change in {"set_state": {"n": 2**70}, "change": LobbyChange(settings={"n": 2**70})}.items():
        assert await refused(club.do(method, "ann", change)) == (400, "Bad request"), method
    assert (await club.do("mine", "ann")).settings == {}
    assert await refused(club.do("confirm_match", "ann")) == (409, "No match to confirm")
    assert await refused(club.do("end_match", "ann")) == (409, "Not in a match")
    assert await refused(club.do("start_matchmaking", "ann", "nope")) == (404, "Matchmaking mode not found")
    status, error = await refused(club.do("start_matchmaking", "ann", "duel"))
    assert status == 400
    assert "matchmaking mode" in error
    plain = Club(club.api, "unknown")
    assert (await plain.do("create", "ann", NewLobby("x"))).max_players == 2
    assert await refused(plain.do("start_matchmaking", "ann", "duel")) == (400, "No matchmaking modes configured")


async def test_browse_shows_public_lobbies(club: Club) -> None:
    await club.lobby("ann", region="eu-west")
    await club.lobby("bob", is_private=True)
    await club.lobby("cat")
    page = await club.service.page(club.project, club.config, LobbyQuery())
    assert ([lobby.host for lobby in page.lobbies], page.total) == (["cat", "ann"], 2)
    page = await club.service.page(club.project, club.config, LobbyQuery(region="eu-west", status="waiting"))
    assert [lobby.host for lobby in page.lobbies] == ["ann"]
    assert (await club.service.page(club.project, club.config, LobbyQuery(limit=1, offset=1))).lobbies[0].host == "ann"


async def test_host_start_brings_a_server_and_its_end_frees_the_lobby(club: Club) -> None:
    await club.lobby("ann", "bob", settings={"gameMode": "ffa"}, state={"mmr": 3})
    assert (await club.do("start", "ann")).status == "starting"
    view = await club.sees("bob", "in_game")
    assert view.server is not None
    assert view.match_id is not None
    assert view.match_id.startswith("match_")
    (server,) = await club.servers()
    data = server.custom_data or {}
    assert (data["gameMode"], data["players"], data["lobby_ids"]) == ("ffa", ["ann", "bob"], [view.id])
    assert (data["host"], data["player_states"]["ann"], data["match_id"]) == ("ann", {"mmr": 3}, view.match_id)
    assert await refused(club.do("change", "ann", LobbyChange(name="x"))) == (409, "Lobby is busy")
    await club.run(server.instance_id)
    assert (await club.sees("ann", "in_game", running=True)).server["network_ports"]  # type: ignore[index]
    assert (await club.do("join", "cat", lobby_id=view.id)).current_players == 3  # late join
    ended = await club.do("end_match", "ann")
    assert (ended.status, ended.server, ended.match_id, ended.current_players) == ("waiting", None, None, 3)
    await eventually(lambda: _stopped(club))


async def _stopped(club: Club) -> bool:
    return all(server.status == "stopped" for server in await club.servers())


async def test_a_match_is_made_at_once(club: Club) -> None:
    first = await club.lobby("ann", settings={"skin": "red"})
    second = await club.lobby("bob")
    assert (await club.do("start_matchmaking", "ann", "duel")).status == "in_queue"
    seen = await club.do("mine", "ann")
    assert seen.matchmaking.mode == "duel"
    assert seen.matchmaking.queue_stats.lobbies_in_queue == 1
    assert (await club.do("start_matchmaking", "bob", "duel")).status == "in_queue"
    ann, bob = await club.sees("ann", "in_game"), await club.sees("bob", "in_game")
    assert ann.match_id == bob.match_id
    assert ann.server == bob.server
    (server,) = await club.servers()
    data = server.custom_data or {}
    assert sorted(data["all_players"]) == ["ann", "bob"]
    assert data["matchmaking_mode"] == "duel"
    assert data["match_configuration"]["players_per_team"] == 1
    assert sorted(data["lobby_ids"]) == sorted([first.id, second.id])
    assert [team["team_id"] for team in data["teams"]] == [0, 1]
    async with club.api.store.read() as session:
        (match,) = (await session.exec(select(Match))).all()
    assert (match.status, match.server_id) == ("active", server.instance_id)


async def test_cancel_and_leaving_the_queue(club: Club) -> None:
    await club.lobby("ann", "bob")
    await club.lobby("eve")
    await club.queue("eve")
    assert (await club.do("cancel_matchmaking", "eve")).status == "waiting"
    assert (
        (
            await club.do(
                "cancel_matchmaking",
                "eve",
            )
        )
        is not None
        if False
        else True
    )
    assert await refused(club.do("cancel_matchmaking", "eve")) == (409, "Lobby is not in the matchmaking queue")
    await club.queue("eve", mode="short")
    assert (await club.sees("eve", "waiting")).matchmaking is None
    (event,) = await club.told("queue_left")
    assert (event.data or {})["why"] == "no match in time"


async def test_confirmation_by_all(club: Club) -> None:
    for name in ("ann", "bob"):
        await club.lobby(name)
    await club.queue("ann", "bob", mode="asked")
    seen = await club.sees("ann", "match_found")
    assert seen.matchmaking is not None
    assert seen.matchmaking.confirmation is not None
    assert not seen.matchmaking.confirmation.confirmed
    seen = await club.do("confirm_match", "ann")
    assert (seen.status, seen.matchmaking.confirmation.confirmed) == ("match_found", True)
    assert await club.servers() == []
    await club.do("confirm_match", "bob")
    assert (await club.sees("ann", "in_game")).match_id == (await club.sees("bob", "in_game")).match_id


async def test_a_decline_gives_the_others_their_place_back(club: Club) -> None:
    for name in ("ann", "bob"):
        await club.lobby(name)
    await club.queue("ann", "bob", mode="asked")
    since = (await club.sees("ann", "match_found")).matchmaking.started_at  # type: ignore[union-attr]
    assert (await club.do("decline_match", "bob")).status == "waiting"
    again = await club.do("mine", "ann")
    assert (again.status, again.matchmaking.started_at) == ("in_queue", since)
    (event,) = await club.told("match_failed")
    assert "bob declined" in (event.data or {})["why"]


async def test_who_does_not_confirm_waits_and_the_others_queue(club: Club) -> None:
    for name in ("ann", "bob"):
        await club.lobby(name)
    await club.queue("ann", "bob", mode="asked")
    await club.sees("ann", "match_found")
    await club.do("confirm_match", "ann")
    assert (await club.sees("bob", "waiting")).match_id is None
    assert (await club.do("mine", "ann")).status == "in_queue"
    assert "1 of 2 lobbies did not confirm" in ((await club.told("match_failed"))[0].data or {})["why"]


async def test_a_server_that_dies_frees_its_lobbies(club: Club) -> None:
    view = await club.playing("ann", "bob")
    assert view.server is not None
    await club.api.regions.change(
        view.server["instance_id"], "stopped", status="stopped", step="stopped", stop_reason="crashed"
    )
    for name in ("ann", "bob"):
        seen = await club.sees(name, "waiting")
        assert (seen.server, seen.match_id, seen.matchmaking) == (None, None, None)
    assert "server stopped: crashed" in ((await club.told("match_ended"))[0].data or {})["why"]


async def test_a_full_region_hands_over_to_the_next_and_at_last_to_the_queue(club: Club) -> None:
    club.api.regions.full |= {"us-east"}
    await club.lobby("ann", state={"regions": ["us-east", "eu-west"]})
    await club.lobby("bob", state={"regions": ["us-east", "eu-west"]}, region="eu-west")
    await club.queue("ann", "bob")
    assert (await club.sees("ann", "in_game")).server["region"] == "eu-west"  # type: ignore[index]
    club.api.regions.full |= {"eu-west"}
    await club.lobby("cat", region="eu-west")
    await club.lobby("dan", region="eu-west")
    await club.queue("cat", "dan")
    since = (await club.do("mine", "cat")).matchmaking.started_at
    await eventually(lambda: club.told("match_failed"))
    seen = await club.sees("cat", "in_queue")
    assert seen.matchmaking is not None
    assert seen.matchmaking.started_at == since
    club.api.regions.full.clear()
    assert (await club.sees("cat", "in_game")).match_id == (await club.sees("dan", "in_game")).match_id


async def test_a_host_start_without_room_waits_again_and_says_why(club: Club) -> None:
    club.api.regions.full |= {"us-east"}
    await club.lobby("ann")
    await club.do("start", "ann")
    await club.sees("ann", "waiting")
    event = (await eventually(lambda: club.told("match_failed")))[0]
    assert "no room" in (event.data or {})["why"]


async def test_results_change_ratings_and_end_the_match_for_all(club: Club) -> None:
    await club.playing("ann", "bob", mode="ranked")
    results = [Standing(("ann",), 1), Standing(("bob",), 2)]
    assert (await club.do("end_match", "ann", results)).status == "waiting"
    assert (await club.do("mine", "bob")).status == "waiting"
    async with club.api.store.read() as session:
        rows = {row.player_id: row for row in (await session.exec(select(PlayerRating))).all()}
    assert rows["ann"].mu > 25 > rows["bob"].mu
    assert rows["ann"].games == 1
    await eventually(lambda: _stopped(club))
    await club.queue("ann", "bob", mode="ranked")  # they differ too much now
    assert [(await club.do("mine", name)).status for name in ("ann", "bob")] == ["in_queue", "in_queue"]


async def test_one_lobby_may_end_and_the_other_plays_on(club: Club) -> None:
    await club.playing("ann", "bob")
    assert (await club.do("end_match", "ann")).status == "waiting"
    assert (await club.do("mine", "bob")).status == "in_game"
    assert not await _stopped(club)
    assert await club.do("leave", "bob") is None
    await eventually(lambda: _stopped(club))


async def test_leaving_before_the_server_runs_calls_the_match_off(club: Club) -> None:
    for name in ("ann", "bob"):
        await club.lobby(name)
    await club.queue("ann", "bob")
    await club.sees("ann", "in_game")
    await club.do("leave", "bob")
    assert (await club.do("mine", "ann")).status == "in_queue"
    await eventually(lambda: _stopped(club))


async def test_where_the_config_says_so_a_match_goes_on_without_who_left_and_is_filled_up(club: Club) -> None:
    going_on = {"lobby_configs": [{**CONFIG, "onLeave": "backfill"}]}
    await club.api.app.state.context.projects.change_settings(club.project, going_on)
    for name in ("ann", "bob"):
        await club.lobby(name)
    await club.queue("ann", "bob", mode="open")
    first = await club.sees("ann", "in_game")
    await club.do("leave", "bob")
    here = await club.do("mine", "ann")
    assert (here.status, here.match_id) == ("in_game", first.match_id)
    await club.run(here.server["instance_id"])
    await club.sees("ann", "in_game", running=True)
    await club.lobby("cat")
    await club.queue("cat", mode="open")
    assert (await club.sees("cat", "in_game")).match_id == first.match_id
    await eventually(lambda: _knows(club, {"ann", "cat"}))
    assert not await club.told("match_failed")


async def test_a_running_match_is_filled_up(club: Club) -> None:
    first = await club.playing("ann", "bob", mode="open")
    await club.lobby("cat", "dan")
    await club.do("leave", "dan")
    await club.queue("cat", mode="open")
    cat = await club.sees("cat", "in_game")
    assert (cat.match_id, cat.server) == (first.match_id, first.server)
    await eventually(lambda: _knows(club, {"ann", "bob", "cat"}))
    await club.api.keepers.restart()  # the place is still known
    await club.do("leave", "bob")
    await club.lobby("eve")
    await club.queue("eve", mode="open")
    assert (await club.sees("eve", "in_game")).match_id == first.match_id
    assert len(await club.servers()) == 1


async def _knows(club: Club, players: set[str]) -> bool:
    (server,) = await club.servers()
    return set((server.custom_data or {})["all_players"]) == players


async def test_admin_delete_tells_the_stream_and_stops_the_server(club: Club) -> None:
    made = await club.lobby("ann")
    await club.do("start", "ann")
    await club.sees("ann", "in_game")
    async with asyncio.timeout(20), aclosing(club.follow("ann")) as events:
        assert (await anext(events)).type == "connected"
        await club.service.delete(club.project, club.config, made.id)
        kinds = [event.type async for event in events]
    assert kinds[-1] == "lobby_deleted"
    await eventually(lambda: _stopped(club))
    assert await refused(club.service.delete(club.project, club.config, made.id)) == (404, "Lobby not found")


async def test_force_fresh_replaces_the_lobby_that_one_hosts(club: Club) -> None:
    old = await club.lobby("ann", "bob")
    new = await club.lobby("ann", force_fresh=True)
    assert new.id != old.id
    assert await refused(club.do("mine", "bob")) == (404, "Lobby not found")


async def test_200_players_want_the_last_seat(club: Club) -> None:
    made = await club.lobby("ann", max_players=2)
    joins = [club.do("join", f"p{n}", lobby_id=made.id) for n in range(200)]
    answers = await asyncio.gather(*joins, return_exceptions=True)
    assert sum(isinstance(answer, LobbyView) for answer in answers) == 1
    assert {answer.error for answer in answers if isinstance(answer, FleetError)} == {"Lobby is full"}
    assert (await club.do("mine", "ann")).current_players == 2


def lasting(view: LobbyView) -> LobbyView:
    """Without what changes by itself: how long the queue is."""
    there = view.matchmaking
    return replace(view, matchmaking=replace(there, queue_stats=QueueStats()) if there else None)


async def test_a_new_keeper_knows_everything_and_goes_on(club: Club) -> None:
    await club.lobby("ann", "eve", state={"mmr": 7})
    await club.lobby("bob")
    await club.lobby("cat")
    playing = await club.playing("dan", "fay")
    await club.queue("bob")
    before = [lasting(await club.do("mine", name)) for name in ("ann", "bob", "dan")]
    await club.api.keepers.restart()
    assert [lasting(await club.do("mine", name)) for name in ("ann", "bob", "dan")] == before
    await club.queue("cat")  # the queue is there again
    assert (await club.sees("bob", "in_game")).match_id == (await club.sees("cat", "in_game")).match_id
    assert playing.server is not None
    await club.api.regions.change(playing.server["instance_id"], "stopped", status="stopped", step="stopped")
    await club.sees("dan", "waiting")  # the server is still followed


async def test_the_keeper_counts_what_happens(club: Club) -> None:
    await club.playing("ann", "bob")
    await club.lobby("cat")
    await club.queue("cat", mode="ranked")
    await refused(club.lobby("cat"))
    async with aclosing(club.follow("cat")) as events:
        assert (await anext(events)).type == "connected"
        core = await club.api.keepers.core()
        await eventually(lambda: has(core.presence.streams == 1))
        during = told(core)
    for player in ("ann", "bob"):
        await club.do("end_match", player)
    # It leaves memory at once, and is counted when that is on disk.
    await eventually(lambda: has(told(core).get(("fleet_matches_over_total", "ended")) == 1))
    after = told(core)
    assert during["fleet_lobbies", "in_game"] == 2
    assert during["fleet_lobbies", "in_queue"] == 1
    assert during["fleet_matches", "active"] == 1
    assert (during["fleet_queue_tickets", None], during["fleet_queue_players", None]) == (1, 1)
    assert (during["fleet_lobby_players", None], during["fleet_lobby_streams", None]) == (3, 1)
    assert during["fleet_lobby_commands_total", "refused"] == 1
    assert during["fleet_queue_wait_seconds_count", None] == 2
    assert during["fleet_lobby_commit_seconds_count", None] > 0
    assert ("fleet_matches_over_total", "ended") not in during
    assert not core.books.matches
    assert after["fleet_lobby_commands_total", "done"] > during["fleet_lobby_commands_total", "done"]


async def has(fact: bool) -> bool:
    return fact


def told(core: Core) -> dict[tuple[str, str | None], float]:
    """By name, and by status or outcome."""
    lines = [sample for family in core.metrics.collect() for sample in family.samples]
    return {(line.name, line.labels.get("status") or line.labels.get("outcome")): line.value for line in lines}
