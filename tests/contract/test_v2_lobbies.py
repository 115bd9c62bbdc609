"""Every operation of the third published file (legacy lobbies and matchmaker), driven, every answer held against it."""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from jsonschema import Draft202012Validator

from tests.contract.playflow_v2 import describe
from tests.contract.playflow_v2.describe import Description
from tests.contract.test_lobby_events import Reader
from tests.contract.test_v2_openapi import ERROR
from tests.live_api import live
from tests.unit.api_kit import Api, open_api
from tests.unit.test_api_lobbies import until

CONFIG = {"name": "arena"}
MATCHMAKER = {"matchmaker_name": "arena", "matchmaker_id": "c0c17d62"}
WHOLE = {
    "name": "Casual",
    "maxPlayers": 3,
    "isPrivate": False,
    "useInviteCode": True,
    "allowLateJoin": True,
    "region": "us-west",
    "settings": {"mode": "ctf"},
    "host": "anna",
}
DUEL = {"teams": 2, "playersPerTeam": 1, "timeout": 60}
SECRET = "a-secret-of-the-studio-that-is-long-enough"
# What happens inside the fleet cannot be asked for.
NOT_DRIVEN = " 500"


class Client:
    """Calls operations of the file, by the client key, and checks whatever comes back."""

    def __init__(self, api: Api, files: list[Description], prefix: str) -> None:
        self.api = api
        self.files = files
        self.prefix = prefix
        self.driven: set[str] = set()

    async def call(self, operation: str, status: int, key: str | None = "client", **kwargs: Any) -> Any:
        method, template = operation.split(" ")
        path = self.prefix + template.format(**kwargs.pop("parts", {}))
        given = self.api.project.client_key if key == "client" else key
        answer = await self.api.call(method, path, key=given, **kwargs)
        assert answer.status_code == status, f"{operation}: {answer.status_code} {answer.text}"
        assert answer.headers["deprecation"].startswith("@")
        assert 'rel="successor-version"' in answer.headers["link"]
        body = answer.json() if answer.content else None
        for file in self.files:
            if operation in file.operations and file.says(operation, status):
                file.check_answer(operation, status, body)
                self.driven.add(f"{file.name}: {operation} {status}")
            else:
                assert status >= 400 or operation not in file.operations, f"{file.name}: no {status} of {operation}"
        if status >= 400:
            Draft202012Validator(ERROR).validate(body)
        return body


def files() -> list[Description]:
    found = [describe.boiled_down(describe.LOBBIES)]
    folder = describe.originals()
    if folder is not None:
        document = json.loads((folder / f"{describe.LOBBIES}.json").read_text())
        assert describe.boil_down(document) == describe.read(describe.LOBBIES), "run describe again"
        found.append(describe.original(describe.LOBBIES, document))
    return found


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    opened = await open_api(tmp_path)
    configs = [{"name": "arena", "timeout": 120, "matchmaking": {"modes": {"duel": DUEL}}}]
    answer = await opened.call("POST", "/api/v3/projects/settings", json={"lobby_configs": configs})
    assert answer.status_code == 200, answer.text
    yield opened
    await opened.close()


@pytest.mark.parametrize("prefix", ["", "/v2", "/api/v2"])
async def test_every_operation_answers_as_the_file_says(api: Api, prefix: str) -> None:
    client = Client(api, files(), prefix)
    await drive_lobbies(client)
    await drive_joining(client)
    await drive_the_matchmaker(client)
    answers = {
        f"{file.name}: {operation} {status}"
        for file in client.files
        for operation, said in file.operations.items()
        for status in said["answers"]
    }
    assert {answer for answer in answers - client.driven if not answer.endswith(NOT_DRIVEN)} == set()


async def drive_lobbies(client: Client) -> None:
    one = "/lobbies/{id}"
    made = await client.call("POST /lobbies", 201, params=CONFIG, json=WHOLE)
    assert made["inviteCode"]
    assert made["players"] == ["anna"]
    assert repr(made["timeout"]) == "120"  # readers of whole numbers take no 120.0
    for name in WHOLE:
        body = {key: value for key, value in WHOLE.items() if key != name}
        refused = await client.call("POST /lobbies", 400, params=CONFIG, json=body)
        assert name in refused["message"]
    await client.call("POST /lobbies", 400, params=CONFIG, json=WHOLE)  # already in one
    await client.call("POST /lobbies", 400, json=WHOLE)
    await client.call("POST /lobbies", 401, params=CONFIG, json=WHOLE, key=None)
    hidden = await client.call("POST /lobbies", 201, params=CONFIG, json=WHOLE | {"host": "shy", "isPrivate": True})

    listed = await client.call("GET /lobbies", 200, params=CONFIG)
    assert [lobby["id"] for lobby in listed] == [made["id"]]
    both = await client.call("GET /lobbies", 200, params=CONFIG, key="")
    assert {lobby["id"] for lobby in both} == {made["id"], hidden["id"]}
    assert len(await client.call("GET /lobbies", 200, params={**CONFIG, "public": "true"}, key="")) == 1
    await client.call("GET /lobbies", 400)
    for which in (made["id"], "anna"):
        found = await client.call(f"GET {one}", 200, params=CONFIG, parts={"id": which})
        assert found["id"] == made["id"]
    await client.call(f"GET {one}", 404, params=CONFIG, parts={"id": "nobody"})

    async def put(code: int, which: str = made["id"], **body: Any) -> Any:
        return await client.call(f"PUT {one}", code, params=CONFIG, parts={"id": which}, json=body)

    changed = await put(200, requesterId="anna", settings={"name": "Renamed", "settings": {"map": "dust"}})
    assert changed["name"] == "Renamed"
    assert changed["settings"] == {"mode": "ctf", "map": "dust"}
    assert (await put(200, requesterId="anna", playerState={"x": 1}))["lobbyStateRealTime"] == {"anna": {"x": 1}}
    await put(400, settings={})
    await put(403, requesterId="berta", playerState={})
    await put(404, "none", requesterId="anna", playerState={})
    await put(413, requesterId="anna", playerState={"x": "y" * 20_000})
    queued = await client.api.call(
        "PUT",
        f"{client.prefix}/lobbies/{made['id']}",
        params=CONFIG,
        json={"requesterId": "anna", "matchmaking": {"action": "start", "mode": "duel"}},
    )
    assert queued.json()["status"] == "in_queue"  # which the file is too old to know
    assert (await put(200, requesterId="anna", matchmaking={"action": "cancel"}))["matchmakingMode"] is None
    assert (await put(200, requesterId="anna", status="in_game"))["status"] == "in_game"
    await until(client.api, "anna", config="arena", status="in_game")
    playing = await client.call(f"GET {one}", 200, params=CONFIG, parts={"id": made["id"]})
    server = playing["gameServer"]
    assert server["network_ports"][0]["tls_enabled"] is False
    assert "started_at" not in server
    assert "ttl" not in server
    assert (await put(200, requesterId="anna", status="waiting"))["gameServer"] is None

    delete = f"DELETE {one}"
    await client.call(delete, 400, params=CONFIG, parts={"id": made["id"]})
    await client.call(delete, 403, params=CONFIG, parts={"id": made["id"]}, json={"playerId": "berta"})
    await client.call(delete, 404, params=CONFIG, parts={"id": "none"}, json={"playerId": "anna"})
    await client.call(delete, 204, params=CONFIG, parts={"id": made["id"]}, json={"playerId": "anna"})
    await client.call(delete, 204, params=CONFIG, parts={"id": hidden["id"]}, key="")


async def drive_joining(client: Client) -> None:
    made = await client.call("POST /lobbies", 201, params=CONFIG, json=WHOLE)
    parts, by_code = {"id": made["id"]}, {"code": made["inviteCode"]}
    join, code = "POST /lobbies/{id}/players", "POST /lobbies/code/{code}/players"
    players, remove = "GET /lobbies/{id}/players", "DELETE /lobbies/{id}/players/{playerId}"
    berta = {"playerId": "berta", "metadata": {"displayName": "Player"}}
    joined = await client.call(join, 200, params=CONFIG, parts=parts, json=berta)
    assert joined["lobbyStateRealTime"]["berta"] == {"displayName": "Player"}
    await client.call(join, 400, params=CONFIG, parts=parts, json=berta)
    await client.call(join, 404, params=CONFIG, parts={"id": "none"}, json={"playerId": "dora"})
    await client.call(code, 200, params=CONFIG, parts=by_code, json={"playerId": "carla"})
    await client.call(code, 400, params=CONFIG, parts=by_code, json={"playerId": "carla"})
    await client.call(code, 400, params=CONFIG, parts={"code": "NOPE"}, json={"playerId": "dora"})
    await client.call(join, 400, params=CONFIG, parts=parts, json={"playerId": "dora"})  # full
    assert await client.call(players, 200, params=CONFIG, parts=parts) == ["anna", "berta", "carla"]
    await client.call(players, 404, params=CONFIG, parts={"id": "none"})
    beat = "POST /lobbies/{id}/heartbeat"
    await client.call(beat, 200, params=CONFIG, parts=parts, json={"playerId": "berta"})
    await client.call(beat, 403, params=CONFIG, parts=parts, json={"playerId": "dora"})

    async def gone(status: int, player: str, requester: str | None, **more: str) -> Any:
        params = {**CONFIG, **more} | ({} if requester is None else {"requesterId": requester})
        return await client.call(remove, status, params=params, parts={**parts, "playerId": player})

    await gone(400, "berta", None)
    await gone(403, "anna", "berta")
    await gone(404, "dora", "anna")
    assert (await gone(200, "berta", "anna", isKick="true"))["players"] == ["anna", "carla"]
    host = {"requesterId": "anna", "host": "carla"}
    moved = await client.call("PUT /lobbies/{id}", 200, params=CONFIG, parts=parts, json=host)
    assert moved["host"] == "carla"
    back = {"requesterId": "anna", "host": "anna"}
    await client.call("PUT /lobbies/{id}", 403, params=CONFIG, parts=parts, json=back)
    assert (await gone(200, "anna", "anna"))["players"] == ["carla"]
    await gone(204, "carla", "carla")


async def drive_the_matchmaker(client: Client) -> None:
    tickets, one = "/matchmaker/tickets", "/matchmaker/tickets/{id}"
    body = {"matchmaker_name": "arena", "elo": 1250, "regions": ["us-east"], "gameBuild": "Build_1"}
    await client.call(f"POST {tickets}", 400, json={})
    await client.call(f"POST {tickets}", 404, json={"matchmaker_name": "none"})
    first = await client.call(f"POST {tickets}", 201, json={**body, "player_id": "anna"})
    assert (first["status"], first["elo"], first["gameBuild"]) == ("In Queue", 1250, "Build_1")
    await client.call(f"POST {tickets}", 400, json={**body, "player_id": "anna"})
    listed = await client.call(f"GET {tickets}", 200, params=MATCHMAKER)
    assert [ticket["ticket_id"] for ticket in listed] == [first["ticket_id"]]
    await client.call(f"GET {tickets}", 400, params={"matchmaker_name": "arena"})
    await client.call(f"GET {tickets}", 404, params=MATCHMAKER | {"matchmaker_name": "none"})

    async def status(code: int, which: str, **more: str) -> Any:
        return await client.call(f"GET {one}", code, params=MATCHMAKER | more, parts={"id": which})

    assert (await status(200, first["ticket_id"]))["status"] == "In Queue"
    assert (await status(200, "anna", type="player"))["ticket"]["ticket_id"] == first["ticket_id"]
    assert (await status(200, "nobody", type="player"))["status"] == "none"
    await status(404, "none")

    async def cancel(code: int, which: str, **params: str) -> Any:
        return await client.call(f"DELETE {one}", code, params=params or MATCHMAKER, parts={"id": which})

    await cancel(400, first["ticket_id"], matchmaker_name="arena")
    await cancel(404, "none")
    assert (await cancel(200, first["ticket_id"]))["status"] == "cancelled"

    first = await client.call(f"POST {tickets}", 201, json={**body, "player_id": "anna"})
    second = await client.call(f"POST {tickets}", 201, json=body)  # anonymous
    await until(client.api, "anna", config="arena", status="in_game")
    matched = await status(200, first["ticket_id"])
    assert matched["status"] == "matched"
    assert {one["player_id"] for one in matched["match"]["players"]} == {"anna", second["player_id"]}
    assert [len(team) for team in matched["match"]["teams"]] == [1, 1]
    assert (await status(200, "anna", type="player"))["match"]["match_id"] == matched["match"]["match_id"]
    matches = "/matchmaker/matches"
    (match,) = await client.call(f"GET {matches}", 200, params=MATCHMAKER)
    assert match["status"] == "active"
    assert match["server"]["connect_code"].startswith("127.0.0.1:")
    await client.call(f"GET {matches}", 400, params={"matchmaker_name": "arena"})
    await client.call(f"GET {matches}", 404, params=MATCHMAKER | {"matchmaker_name": "none"})
    # Before the game runs, a match is called off when somebody leaves.
    await client.api.regions.change(match["server"]["instance_id"], "running", status="running")
    await until(client.api, "anna", lambda lobby: lobby["server"]["status"] == "running", config="arena")
    removed = await cancel(200, first["ticket_id"])
    assert (removed["status"], removed["match_status"]) == ("removed", "active")

    async def end(code: int, which: str, key: str | None = "", **params: str) -> Any:
        return await client.call(
            f"DELETE {matches}/{{id}}", code, params=params or MATCHMAKER, parts={"id": which}, key=key
        )

    await end(403, match["match_id"], key="client")
    await end(400, match["match_id"], matchmaker_name="arena")
    await end(404, "none")
    ended = await end(200, match["match_id"])
    assert (ended["tickets_cleaned"], ended["missing_ticket_count"]) == (1, 0)
    assert ended["server_id"] == match["server"]["instance_id"]
    assert await client.call(f"GET {matches}", 200, params=MATCHMAKER) == []


# Besides the file -------------------------------------------------------------------------------------------------


async def test_the_legacy_stream(api: Api) -> None:
    client = Client(api, [], "")
    made = await client.call("POST /lobbies", 201, params=CONFIG, json=WHOLE)
    headers = {"api-key": api.project.client_key}
    path, query = f"/lobbies-sse/{made['id']}/events", {"player-id": "anna", "lobby-config": "arena"}
    async with live(api.app, headers) as http:
        async with http.stream("GET", path, params=query) as answer:
            assert answer.headers["deprecation"]
            stream = Reader(answer)
            kind, _, first = await stream.next()
            assert kind == "connected"
            assert first["lobby"]["id"] == made["id"]
            joined = {"playerId": "berta"}
            await client.call("POST /lobbies/{id}/players", 200, params=CONFIG, parts=made, json=joined)
            kind, _, lobby = await stream.next()
            assert kind == "lobby:updated"
            assert lobby["players"] == ["anna", "berta"]
            host = {"playerId": "anna"}
            await client.call("DELETE /lobbies/{id}", 204, params=CONFIG, parts=made, json=host)
            kind, _, gone = await stream.next()
            assert (kind, gone) == ("lobby:deleted", {"lobbyId": made["id"]})
            await stream.ends()
        assert (await http.get(path, params=query)).status_code == 404
    async with live(api.app, {}) as page:
        await client.call("POST /lobbies", 201, params=CONFIG, json=WHOLE)
        (lobby,) = await client.call("GET /lobbies", 200, params=CONFIG)
        in_query = {**query, "api-key": api.project.client_key}
        async with page.stream("GET", f"/lobbies-sse/{lobby['id']}/events", params=in_query) as answer:
            assert (await Reader(answer).next())[0] == "connected"


async def test_legacy_players_prove_who_they_are(api: Api) -> None:
    auth = {"auth_config": {"provider": "custom_jwt", "secret": SECRET}}
    assert (await api.call("POST", "/api/v3/projects/settings", json=auth)).status_code == 200

    def proof(player: str) -> dict[str, str]:
        return {"client-auth-token": jwt.encode({"sub": player, "exp": int(time.time()) + 600}, SECRET, "HS256")}

    client = Client(api, [], "")
    await client.call("POST /lobbies", 401, params=CONFIG, json=WHOLE)
    await client.call("POST /lobbies", 403, params=CONFIG, json=WHOLE, headers=proof("berta"))
    made = await client.call("POST /lobbies", 201, params=CONFIG, json=WHOLE, headers=proof("anna"))
    put = "PUT /lobbies/{id}"
    body = {"requesterId": "anna", "playerState": {}}
    await client.call(put, 403, params=CONFIG, parts=made, json=body, headers=proof("berta"))
    await client.call(put, 200, params=CONFIG, parts=made, json=body, headers=proof("anna"))
    ticket = {"matchmaker_name": "arena", "player_id": "berta"}
    await client.call("POST /matchmaker/tickets", 403, json=ticket, headers=proof("anna"))
    mine = await client.call("POST /matchmaker/tickets", 201, json=ticket, headers=proof("berta"))
    cancel = "DELETE /matchmaker/tickets/{ticket_id}"
    await client.call(cancel, 403, params=MATCHMAKER, parts=mine, headers=proof("anna"))
    await client.call(cancel, 200, params=MATCHMAKER, parts=mine, headers=proof("berta"))


async def test_polling_keeps_an_old_clients_lobby(api: Api) -> None:
    client = Client(api, [], "")
    made = await client.call("POST /lobbies", 201, params=CONFIG, json=WHOLE)
    await client.call("POST /lobbies/{id}/players", 200, params=CONFIG, parts=made, json={"playerId": "berta"})
    presence = (await api.keepers.core()).presence
    before = {player: presence.seen(made["id"], player) for player in ("anna", "berta")}
    await client.call("GET /lobbies/{id}", 200, params=CONFIG, parts=made)
    assert all(presence.seen(made["id"], player) >= at for player, at in before.items())
