"""The lobby calls of the API over a real keeper in this process: statuses, bodies, bad input, who may do what."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from fleet.settings import RateLimits
from serve_app.v3.lobby_schemas import lobby_view
from tests.clients.unity_v3 import verify
from tests.live_api import live
from tests.unit.api_kit import Api, by_proxy, open_api

PATH = "/api/v3/lobbies/default"
MODES = {"duel": {"teams": 2, "playersPerTeam": 1, "timeout": 60}}
MODES["asked"] = {**MODES["duel"], "matchConfirmation": {"enabled": True, "timeout": 30}}
KEEPS = {
    "id", "code", "config", "name", "status", "host", "maxPlayers", "currentPlayers", "region", "isPrivate",
    "allowLateJoin", "settings", "players", "server", "matchmaking", "matchId", "createdAt", "updatedAt",
    "version",
}  # fmt: skip
WAIT_S = 20


async def call(api: Api, method: str, path: str, player: str | None, body: Any = None, **more: Any) -> httpx.Response:
    """A player's call, with the client key."""
    headers = more.pop("headers", {}) | ({} if player is None else {"x-player-id": player})
    key = more.pop("key", api.project.client_key)
    if body is not None:
        more["json"] = body
    return await api.call(method, more.pop("base", PATH) + path, key=key, headers=headers, **more)


async def lobby(api: Api, method: str, path: str, player: str, body: Any = None, status: int = 200) -> dict[str, Any]:
    answer = await call(api, method, path, player, body)
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert set(found) == KEEPS
    return found


async def create(api: Api, player: str, **body: Any) -> dict[str, Any]:
    return await lobby(api, "POST", "", player, {"name": "Friends", **body}, 201)


async def refused(api: Api, status: int, error: str, method: str, path: str, player: str, body: Any = None) -> None:
    answer = await call(api, method, path, player, body)
    assert answer.status_code == status, answer.text
    assert error in answer.json()["error"]
    assert answer.json()["status"] == status


async def until(
    api: Api, player: str, so: Callable[[dict[str, Any]], bool] = lambda _: True, config: str = "default", **wanted: Any
) -> dict[str, Any]:
    """The player's lobby, once it is so; its stream tells."""
    project = api.project.project_id
    following = api.app.state.context.lobby_feed.follow(project, config, player)
    async with asyncio.timeout(WAIT_S), aclosing(following) as coming:
        async for event in coming:
            found = lobby_view(event.lobby) if event.lobby else {}
            if found and so(found) and all(found[name] == value for name, value in wanted.items()):
                return found
    raise AssertionError(f"the lobby of {player} is gone")


async def configure(api: Api, **settings: Any) -> None:
    answer = await api.call("POST", "/api/v3/projects/settings", json=settings)
    assert answer.status_code == 200, answer.text


# What each call does ----------------------------------------------------------------------------------------------


async def test_a_lobby_from_its_making_to_its_end(api: Api) -> None:
    made = await create(api, "anna", settings={"map": "dust"}, state={"mmr": 7})
    assert made["maxPlayers"] == 2
    assert made["region"] == "us-east"
    assert made["allowLateJoin"] is True
    assert made["isPrivate"] is False
    assert made["players"] == [{"id": "anna", "state": {"mmr": 7}, "isHost": True}]
    assert made["server"] is made["matchmaking"] is made["matchId"] is None
    await refused(api, 409, "in another lobby", "POST", "", "anna", {"name": "Second"})
    fresh = await create(api, "anna", forceFresh=True)
    assert fresh["id"] != made["id"]
    joined = await lobby(api, "POST", "/join", "berta", {"code": fresh["code"].lower(), "state": {"role": "medic"}})
    assert joined["players"][1] == {"id": "berta", "state": {"role": "medic"}, "isHost": False}
    await refused(api, 409, "in another lobby", "POST", "/join", "berta", {"lobbyId": fresh["id"]})
    await refused(api, 400, "full", "POST", "/join", "carla", {"lobbyId": fresh["id"]})
    await refused(api, 404, "not found", "POST", "/join", "carla", {"code": "NOPE-1"})
    await refused(api, 404, "not found", "POST", "/join", "carla", {"lobbyId": "none"})
    await refused(api, 403, "Not host", "PATCH", "/me/settings", "berta", {"name": "Mine now"})
    await refused(api, 403, "Not host", "DELETE", "/me/players/anna", "berta")
    await refused(api, 400, "yourself", "DELETE", "/me/players/anna", "anna")
    assert (await call(api, "POST", "/me/heartbeat", "berta")).json() == {"status": "ok"}
    kicked = await lobby(api, "DELETE", "/me/players/berta", "anna")
    assert kicked["currentPlayers"] == 1
    await refused(api, 404, "not found", "GET", "/me", "berta")
    await refused(api, 404, "not found", "POST", "/me/heartbeat", "berta")
    await lobby(api, "POST", "/join", "berta", {"lobbyId": fresh["id"]})
    assert (await lobby(api, "DELETE", "/me", "anna"))["host"] == "berta"
    assert (await call(api, "DELETE", "/me", "berta")).json() == {"status": "lobby_deleted"}


async def test_settings_and_states_are_merged(api: Api) -> None:
    await create(api, "anna", settings={"map": "dust", "rounds": 3}, state={"ready": False, "mmr": 1})
    changed = await lobby(
        api, "PATCH", "/me/settings", "anna",
        {"name": "Renamed", "maxPlayers": 9, "isPrivate": True, "allowLateJoin": False, "region": "eu-west",
         "settings": {"rounds": 5}},
    )  # fmt: skip
    assert changed["settings"] == {"map": "dust", "rounds": 5}
    assert (changed["name"], changed["maxPlayers"], changed["region"]) == ("Renamed", 9, "eu-west")
    assert (changed["isPrivate"], changed["allowLateJoin"]) == (True, False)
    nothing = await lobby(api, "PATCH", "/me/settings", "anna", dict.fromkeys(("name", "maxPlayers", "settings")))
    assert nothing["name"] == "Renamed"
    patched = await lobby(api, "PATCH", "/me", "anna", {"state": {"ready": True}})
    assert patched["players"][0]["state"] == {"ready": True, "mmr": 1}


async def test_what_is_merged_does_not_grow_for_ever(api: Api) -> None:
    await create(api, "anna", settings={"a": "x" * 60_000}, state={"a": "x" * 10_000})
    for path, body in (("/me", {"state": {"b": "x" * 10_000}}), ("/me/settings", {"settings": {"b": "x" * 10_000}})):
        answer = await call(api, "PATCH", path, "anna", body)
        assert (answer.status_code, answer.json()["error"]) == (413, "Payload too large")
    mine = await lobby(api, "GET", "/me", "anna")
    assert (list(mine["settings"]), list(mine["players"][0]["state"])) == (["a"], ["a"])


async def test_public_lobbies_are_listed_in_pages(api: Api) -> None:
    made = [await create(api, f"p{number}", region="eu-west" if number % 2 else "us-east") for number in range(5)]
    hidden = await create(api, "shy", isPrivate=True)
    page = (await call(api, "GET", "", None, params={"limit": 2})).json()
    assert [one["id"] for one in page["lobbies"]] == [made[4]["id"], made[3]["id"]]
    assert (page["total"], page["limit"], page["offset"], page["hasMore"]) == (5, 2, 0, True)
    rest = (await call(api, "GET", "", None, params={"limit": 2, "offset": 4})).json()
    assert [one["id"] for one in rest["lobbies"]] == [made[0]["id"]]
    assert rest["hasMore"] is False
    west = (await call(api, "GET", "", None, params={"region": "eu-west", "status": "waiting"})).json()
    assert west["total"] == 2
    assert (await call(api, "GET", "", None, params={"status": "in_game"})).json()["total"] == 0
    assert (await call(api, "GET", "", None, base="/api/v3/lobbies/other")).json()["total"] == 0
    for params in ({"limit": 0}, {"limit": 101}, {"offset": -1}, {"status": "finished"}, {"region": ""}):
        assert (await call(api, "GET", "", None, params=params)).status_code == 422
    assert (await call(api, "POST", "/join", "berta", {"code": hidden["code"]})).status_code == 200


async def test_the_back_end_sees_and_deletes_any_lobby(api: Api) -> None:
    made = await create(api, "anna", isPrivate=True)
    one = f"/{made['id']}"
    assert (await call(api, "GET", one, None)).status_code == 403
    assert (await call(api, "DELETE", one, None)).status_code == 403
    seen = await call(api, "GET", one, None, key="")
    assert seen.json()["id"] == made["id"]
    other = api.other.server_key
    assert (await call(api, "GET", one, None, key=other)).status_code == 404
    assert (await call(api, "DELETE", one, None, key=other)).status_code == 404
    assert (await call(api, "DELETE", one, None, key="")).json() == {"status": "lobby_deleted"}
    assert (await call(api, "DELETE", one, None, key="")).status_code == 404
    await refused(api, 404, "not found", "GET", "/me", "anna")


async def test_the_host_starts_and_ends_a_game_without_bodies(api: Api) -> None:
    await create(api, "anna", maxPlayers=3, settings={"map": "dust"})
    await lobby(api, "POST", "/join", "berta", {"code": (await lobby(api, "GET", "/me", "anna"))["code"]})
    await refused(api, 403, "Not host", "POST", "/me/start", "berta")
    await refused(api, 409, "Not in a match", "POST", "/me/end-match", "anna")
    starting = await lobby(api, "POST", "/me/start", "anna")
    assert starting["status"] == "starting"
    playing = await until(api, "berta", status="in_game")
    server = playing["server"]
    assert server["instanceId"] == server["instance_id"]
    port = server["network_ports"][0]
    assert server["ports"] == [
        {"name": "game_udp", "host": port["host"], "port": port["external_port"], "protocol": "udp"}
    ]
    assert playing["matchId"] == server["match_id"]
    await refused(api, 409, "busy", "PATCH", "/me/settings", "anna", {"name": "Late"})
    await api.regions.change(server["instance_id"], "running", status="running", started_at=1_795_000_000_000)
    await until(api, "anna", lambda now: now["server"]["status"] == "running")
    late = await lobby(api, "POST", "/join", "carla", {"lobbyId": playing["id"]})
    assert late["currentPlayers"] == 3
    ended = await lobby(api, "POST", "/me/end-match", "anna")
    assert (ended["status"], ended["server"], ended["matchId"]) == ("waiting", None, None)
    assert ended["currentPlayers"] == 3
    assert ended["code"] == playing["code"]


async def test_two_lobbies_find_each_other_confirm_and_play(api: Api) -> None:
    await configure(api, lobby_configs=[{"name": "default", "matchmaking": {"modes": MODES}}])
    for player in ("anna", "berta"):
        await create(api, player)
    await refused(api, 404, "mode", "POST", "/me/matchmaking", "anna", {"mode": "unheard-of"})
    await refused(api, 409, "No match", "POST", "/me/confirm-match", "anna")
    queued = await lobby(api, "POST", "/me/matchmaking", "anna", {"mode": "asked"})
    assert queued["status"] == "in_queue"
    assert set(queued["matchmaking"]) == {"mode", "startedAt", "queueStats"}
    assert queued["matchmaking"]["queueStats"]["lobbiesInQueue"] == 1
    assert (await lobby(api, "DELETE", "/me/matchmaking", "anna"))["status"] == "waiting"
    for player in ("anna", "berta"):
        await lobby(api, "POST", "/me/matchmaking", player, {"mode": "asked"})
    found = await until(api, "anna", status="match_found")
    assert found["matchmaking"]["confirmation"]["confirmed"] is False
    assert found["matchmaking"]["confirmation"]["deadline"].endswith("Z")
    confirmed = await lobby(api, "POST", "/me/confirm-match", "anna", {})
    assert confirmed["status"] == "match_found"
    assert confirmed["matchmaking"]["confirmation"]["confirmed"] is True
    await lobby(api, "POST", "/me/confirm-match", "berta")
    mine, theirs = [await until(api, player, status="in_game") for player in ("anna", "berta")]
    assert mine["matchId"] == theirs["matchId"]
    assert mine["server"] == theirs["server"]


async def test_declining_calls_the_match_off(api: Api) -> None:
    await configure(api, lobby_configs=[{"name": "default", "matchmaking": {"modes": MODES}}])
    for player in ("anna", "berta"):
        await create(api, player)
        await lobby(api, "POST", "/me/matchmaking", player, {"mode": "asked"})
    await until(api, "anna", status="match_found")
    declined = await lobby(api, "DELETE", "/me/confirm-match", "berta")
    assert declined["status"] == "waiting"
    assert declined["matchId"] is None
    await refused(api, 409, "No match", "DELETE", "/me/confirm-match", "berta")


async def test_results_come_from_the_games_server(api: Api) -> None:
    await configure(api, lobby_configs=[{"name": "default", "matchmaking": {"modes": MODES}}])
    for player in ("anna", "berta"):
        await create(api, player)
        await lobby(api, "POST", "/me/matchmaking", player, {"mode": "duel"})
    await until(api, "anna", status="in_game")
    results = {"results": [{"players": ["berta"], "rank": 1}, {"players": ["anna"], "rank": 2}]}
    assert (await call(api, "POST", "/me/end-match", "anna", results)).status_code == 403
    wrong = {"results": [{"players": ["nobody"], "rank": 1}]}
    assert (await call(api, "POST", "/me/end-match", "anna", wrong, key="")).status_code == 400
    ended = await call(api, "POST", "/me/end-match", "anna", results, key="")
    assert ended.json()["status"] == "waiting"


async def test_without_modes_there_is_no_matchmaking(api: Api) -> None:
    await create(api, "anna")
    await refused(api, 400, "matchmaking modes", "POST", "/me/matchmaking", "anna", {"mode": "duel"})


# Bad input --------------------------------------------------------------------------------------------------------

BAD: list[tuple[str, str, Any, list[Any]]] = [
    ("POST", "", {}, ["body", "name"]),
    ("POST", "", {"name": ""}, ["body", "name"]),
    ("POST", "", {"name": "x" * 101}, ["body", "name"]),
    ("POST", "", {"name": "x\x00"}, ["body", "name"]),
    ("POST", "", {"name": "x", "maxPlayers": 0}, ["body", "maxPlayers"]),
    ("POST", "", {"name": "x", "maxPlayers": 101}, ["body", "maxPlayers"]),
    ("POST", "", {"name": "x", "maxPlayers": 2.5}, ["body", "maxPlayers"]),
    ("POST", "", {"name": "x", "settings": []}, ["body", "settings"]),
    ("POST", "", {"name": "x", "state": "ready"}, ["body", "state"]),
    ("POST", "", {"name": "x", "region": ""}, ["body", "region"]),
    ("POST", "", {"name": "x", "isPrivate": "maybe"}, ["body", "isPrivate"]),
    ("POST", "", [], ["body"]),
    ("POST", "/join", {}, ["body"]),
    ("POST", "/join", {"lobbyId": "a", "code": "b"}, ["body"]),
    ("POST", "/join", {"code": ""}, ["body", "code"]),
    ("POST", "/join", None, ["body"]),
    ("PATCH", "/me", {}, ["body", "state"]),
    ("PATCH", "/me", {"state": None}, ["body", "state"]),
    ("PATCH", "/me/settings", {"maxPlayers": "many"}, ["body", "maxPlayers"]),
    ("PATCH", "/me/settings", None, ["body"]),
    ("POST", "/me/matchmaking", {"mode": ""}, ["body", "mode"]),
    ("POST", "/me/matchmaking", None, ["body"]),
    ("POST", "/me/end-match", {"results": [{"players": [], "rank": 1}]}, ["body", "results", 0, "players"]),
    ("POST", "/me/start", [], ["body"]),
    ("DELETE", "/me/players/%20", None, ["path", "playerId"]),
]


async def test_bad_input_is_told_with_its_place(api: Api) -> None:
    for method, path, body, where in BAD:
        answer = await call(api, method, path, "anna", body)
        assert answer.status_code == 422, answer.text
        assert answer.json()["detail"][0]["loc"] == where
        assert set(answer.json()) == {"error", "detail", "status"}


async def test_ids_of_players_are_bounded(api: Api) -> None:
    for player in (b"", b" anna", b"x" * 129, b"an\tna", "änna".encode()):
        headers = {b"api-key": api.project.client_key.encode(), b"x-player-id": player}
        answer = await api.client.get(f"{PATH}/me", headers=headers)
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["header", "x-player-id"]


async def test_other_bad_requests(api: Api) -> None:
    assert (await call(api, "GET", "/me", None)).status_code == 422
    assert (await call(api, "GET", "/me", "anna", key=None)).status_code == 401
    assert (await call(api, "POST", "", "anna", key="pfclient_of_nobody")).status_code == 401
    garbled = await call(api, "POST", "", "anna", content=b'{"name":', headers={"content-type": "application/json"})
    assert garbled.status_code == 400
    for path in ("x" * 101, "%00"):
        assert (await call(api, "GET", "", None, base=f"/api/v3/lobbies/{path}")).status_code == 422
    large = {"x": "y" * 20_000}
    assert (await call(api, "POST", "", "anna", {"name": "x", "state": large})).status_code == 413
    assert (await call(api, "POST", "", "anna", {"name": "x", "settings": {"x": "y" * 70_000}})).status_code == 413
    await create(api, "anna")
    assert (await call(api, "PATCH", "/me", "anna", {"state": large})).status_code == 413
    assert (await call(api, "POST", "/join", "berta", {"code": "a", "state": large})).status_code == 413


# Who is who -------------------------------------------------------------------------------------------------------

SECRET = "a-secret-of-the-studio-that-is-long-enough"


def token(player: str, **claims: Any) -> dict[str, str]:
    return {"x-player-token": jwt.encode({"sub": player, "exp": int(time.time()) + 600, **claims}, SECRET, "HS256")}


async def test_one_player_cannot_act_as_another(api: Api) -> None:
    await configure(api, auth_config={"provider": "custom_jwt", "secret": SECRET})
    assert (await call(api, "POST", "", "anna", {"name": "Mine"})).status_code == 401
    assert (await call(api, "POST", "", "anna", {"name": "Mine"}, headers=token("anna"))).status_code == 201
    for method, path, body in (
        ("DELETE", "/me", None),
        ("PATCH", "/me", {"state": {}}),
        ("POST", "/me/start", None),
        ("GET", "/me/events", None),
        ("POST", "/me/events-token", None),
    ):
        for headers, status in ((token("berta"), 403), (token("anna", exp=1), 401), ({"x-player-token": "guess"}, 401)):
            answer = await call(api, method, path, "anna", body, headers=headers)
            assert answer.status_code == status, answer.text
            assert "player" in answer.json()["error"].lower()
    assert (await call(api, "GET", "/me", "anna", key="")).status_code == 200  # the studio's own back end
    assert (await call(api, "GET", "", None)).status_code == 200


# How often --------------------------------------------------------------------------------------------------------


async def test_players_of_one_key_are_counted_apart_and_together(tmp_path: Path) -> None:
    limits = RateLimits(
        reads_per_s=4, writes_per_s=3, lobby_reads_per_s=10, lobby_writes_per_s=8, lobby_writes_per_address_per_s=7
    )
    api = await open_api(tmp_path, limits=limits)
    beat = ("POST", "/me/heartbeat")

    async def statuses(*players: str) -> list[int]:
        """All within a fraction of a second."""
        found = await asyncio.gather(*(call(api, *beat, player) for player in players))
        return [answer.status_code for answer in found]

    assert sorted(await statuses(*["anna"] * 5)) == [404] * 3 + [429] * 2
    await asyncio.sleep(1.1)
    many = await asyncio.gather(*(call(api, *beat, f"p{number}") for number in range(9)))
    assert sorted(answer.status_code for answer in many) == [404] * 7 + [429] * 2
    told = next(answer for answer in many if answer.status_code == 429)
    assert "one address together" in told.json()["detail"]
    assert told.headers["retry-after"]
    assert told.headers["x-ratelimit-limit"] == "3"
    await asyncio.sleep(1.1)
    far = [by_proxy(client=f"203.0.113.{number}") for number in range(10)]
    spread = await asyncio.gather(*(call(api, *beat, f"p{n}", headers=far[n]) for n in range(10)))
    assert sorted(answer.status_code for answer in spread) == [404] * 8 + [429] * 2
    assert (await call(api, "GET", "", None)).status_code == 200  # reads are counted apart
    await api.close()


async def test_an_idempotency_key_is_its_players(api: Api) -> None:
    headers = {"idempotency-key": "same"}
    first = await call(api, "POST", "", "anna", {"name": "Mine"}, headers=headers)
    again = await call(api, "POST", "", "anna", {"name": "Mine"}, headers=headers)
    other = await call(api, "POST", "", "berta", {"name": "Mine"}, headers=headers)
    assert again.json() == first.json()
    assert other.json()["id"] != first.json()["id"]
    assert other.json()["host"] == "berta"


# Unity's kit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modes", [{}, {"ranked": MODES["duel"]}])
async def test_unitys_verifier_is_content(api: Api, modes: dict[str, Any]) -> None:
    await configure(api, lobby_configs=[{"name": "my config", "matchmaking": {"modes": modes}}])
    async with live(api.app, {}) as client:
        await asyncio.to_thread(verify, str(client.base_url), api.project.client_key, "my config")
