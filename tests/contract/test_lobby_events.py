"""A player's stream: what comes, in which form, once each, from anywhere on; and who may open it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from fleet.telemetry.logs import redacted
from serve_app import player_streams
from serve_app.stream_query import TICKET_S, Ticket, Tickets
from serve_app.v3 import lobby_events
from tests.live_api import live
from tests.unit.api_kit import Api
from tests.unit.test_api_lobbies import MODES, PATH, SECRET, configure, create, lobby, token

WAIT_S = 30


class Reader:
    """Events of one stream as (type, id, data)."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def next(self) -> tuple[str, str | None, Any]:
        kind, number, data = "", None, None
        async with asyncio.timeout(WAIT_S):
            async for line in self._lines:
                if line == "" and kind:
                    return kind, number, json.loads(data) if data else None
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "id":
                    number = value
                elif name == "data":
                    assert data is None, "data is one line"
                    data = value
                else:
                    assert line.startswith(":") or line == "", line
        raise EOFError

    async def until(self, wanted: str) -> Any:
        while True:
            kind, _, data = await self.next()
            if kind == wanted:
                return data

    async def ends(self) -> None:
        """What is still to come comes, and then it ends."""
        with pytest.raises(EOFError):
            await self.until("never")


@asynccontextmanager
async def opened(
    client: httpx.AsyncClient, player: str | None, path: str = f"{PATH}/me/events", **headers: str
) -> AsyncIterator[Reader]:
    if player is not None:
        headers["x-player-id"] = player
    async with client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Reader(answer)


@pytest.fixture
async def client(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    async with live(api.app, {"api-key": api.project.client_key}) as opened_client:
        yield opened_client


async def test_every_change_comes_once_with_its_lobby(api: Api, client: httpx.AsyncClient) -> None:
    await create(api, "anna", maxPlayers=4)
    async with opened(client, "anna") as stream:
        kind, number, first = await stream.next()
        assert kind == "connected"
        assert number is not None
        assert first["players"][0]["id"] == "anna"
        await lobby(api, "POST", "/join", "berta", {"code": first["code"]})
        await lobby(api, "PATCH", "/me", "berta", {"state": {"ready": True}})
        await lobby(api, "PATCH", "/me/settings", "anna", {"name": "New name"})
        await lobby(api, "DELETE", "/me", "berta")
        told = [await stream.next() for _ in range(4)]
    assert [kind for kind, _, _ in told] == ["lobby_updated"] * 4
    assert [data["currentPlayers"] for _, _, data in told] == [2, 2, 2, 1]
    assert told[1][2]["players"][1]["state"] == {"ready": True}
    assert told[2][2]["name"] == "New name"
    assert len({number for _, number, _ in told}) == 4


async def test_a_reader_goes_on_where_it_was(api: Api, client: httpx.AsyncClient) -> None:
    await create(api, "anna")
    async with opened(client, "anna") as stream:
        _, number, _ = await stream.next()
    for count in range(5):
        await lobby(api, "PATCH", "/me", "anna", {"state": {"count": count}})
    assert number is not None
    async with opened(client, "anna", **{"last-event-id": number}) as stream:
        kind, again, _ = await stream.next()
        assert (kind, again) == ("connected", number)
        counts = [(await stream.next())[2]["players"][0]["state"]["count"] for _ in range(5)]
        assert counts == [0, 1, 2, 3, 4]
    for unknown in ("", "nonsense", f"{number}0000", "other:1"):
        async with opened(client, "anna", **{"last-event-id": unknown}) as stream:
            assert (await stream.next())[2]["players"][0]["state"]["count"] == 4


async def test_the_queue_is_told_while_waiting(api: Api, client: httpx.AsyncClient) -> None:
    await configure(api, lobby_configs=[{"name": "default", "matchmaking": {"modes": MODES}}])
    await create(api, "anna")
    async with opened(client, "anna") as stream:
        await stream.next()
        await lobby(api, "POST", "/me/matchmaking", "anna", {"mode": "duel"})
        assert (await stream.until("lobby_updated"))["status"] == "in_queue"
        stats = await stream.until("queue_stats")
        assert set(stats) == {"playersSearching", "lobbiesInQueue", "avgWaitSeconds"}
        assert stats["playersSearching"] == stats["lobbiesInQueue"] == 1


async def test_a_stream_ends_with_the_players_place(api: Api, client: httpx.AsyncClient) -> None:
    made = await create(api, "anna", maxPlayers=4)
    for player in ("berta", "carla"):
        await lobby(api, "POST", "/join", player, {"lobbyId": made["id"]})
    async with opened(client, "berta") as kicked, opened(client, "carla") as left, opened(client, "anna") as host:
        for stream in (kicked, left, host):
            await stream.next()
        await lobby(api, "DELETE", "/me/players/berta", "anna")
        await kicked.ends()
        await lobby(api, "DELETE", "/me", "carla")
        await left.ends()
        assert (await api.call("DELETE", f"{PATH}/{made['id']}")).status_code == 200
        assert await host.until("lobby_deleted") == {"id": made["id"]}
        await host.ends()
    for player in ("anna", "berta"):
        answer = await client.get(f"{PATH}/me/events", headers={"x-player-id": player})
        assert answer.status_code == 404
        assert answer.json()["status"] == 404


async def test_pings_are_events_of_their_own(
    api: Api, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lobby_events, "PING_S", 0.05)
    await create(api, "anna")
    async with client.stream("GET", f"{PATH}/me/events?timeout=0.5", headers={"x-player-id": "anna"}) as answer:
        text = (await answer.aread()).decode()
    assert "event: ping\ndata: \n\n" in text.replace("\r", "")


async def test_a_player_has_few_streams_and_the_oldest_goes(api: Api, client: httpx.AsyncClient) -> None:
    await create(api, "anna")
    async with opened(client, "anna") as oldest:
        await oldest.next()
        async with opened(client, "anna") as second, opened(client, "anna") as third, opened(client, "anna") as fourth:
            for stream in (second, third, fourth):
                assert (await stream.next())[0] == "connected"
            await oldest.ends()
            await lobby(api, "PATCH", "/me", "anna", {"state": {"x": 1}})
            for stream in (second, third, fourth):
                assert (await stream.next())[0] == "lobby_updated"
        api.settings.shares.player_streams = 1
        full = await client.get(f"{PATH}/me/events", headers={"x-player-id": "anna"})
        assert full.status_code == 429
    assert player_streams.PER_PLAYER == 3


async def test_a_storm_of_streams_comes_back_whole(api: Api, client: httpx.AsyncClient) -> None:
    """All streams break at once while lobbies go on changing; all go on without gap or repetition."""
    players = [f"p{number}" for number in range(60)]
    seen: dict[str, list[int]] = {player: [] for player in players}
    last: dict[str, str] = {}
    for player in players:
        await create(api, player, state={"n": 0})

    async def read(player: str, upto: int) -> None:
        headers = {"last-event-id": last[player]} if player in last else {}
        async with opened(client, player, **headers) as stream:
            while True:
                kind, number, data = await stream.next()
                at = data["players"][0]["state"]["n"]
                if kind == "lobby_updated":
                    seen[player].append(at)
                last[player] = number or ""
                if at >= upto:
                    return

    async def change(values: range) -> None:
        for value in values:
            await asyncio.gather(*(lobby(api, "PATCH", "/me", one, {"state": {"n": value}}) for one in players))

    for round_ in range(3):
        values = range(round_ * 4 + 1, round_ * 4 + 5)
        # Half of the changes come while nobody listens.
        await change(values[:2])
        await asyncio.gather(change(values[2:]), *(read(player, values[-1]) for player in players))
    for player in players:
        assert seen[player] == sorted(set(seen[player])), player
        assert seen[player][-1] == 12
        assert set(range(5, 13)) <= set(seen[player])  # from the first id on, everything


# Without headers --------------------------------------------------------------------------------------------------


async def test_a_ticket_opens_the_stream_and_nothing_else(api: Api, client: httpx.AsyncClient) -> None:
    await configure(api, auth_config={"provider": "custom_jwt", "secret": SECRET})
    me = {"x-player-id": "anna", **token("anna")}
    assert (await client.post(PATH, headers=me, json={"name": "Mine"})).status_code == 201
    given = (await client.post(f"{PATH}/me/events-token", headers=me)).json()
    assert set(given) == {"ticket", "expiresAt", "url"}
    assert api.project.client_key not in given["url"]
    async with httpx.AsyncClient(base_url=client.base_url, trust_env=False) as page:
        async with opened(page, None, given["url"]) as stream:
            assert (await stream.next())[2]["host"] == "anna"
        query = given["url"].partition("?")[2]
        async with opened(page, "berta", given["url"]) as stream:  # who it names is who counts
            assert (await stream.next())[2]["host"] == "anna"
        for path in ("/api/v3/lobbies/other/me/events", f"{PATH}/me", "/api/v3/servers"):
            assert (await page.get(f"{path}?{query}")).status_code == 401
        assert (await page.post(f"{PATH}?{query}", json={"name": "x"})).status_code == 401
        for bad in ("", "guess", given["ticket"][:-4] + "AAAA", "x" * 5000, "%C3%A4"):
            answer = await page.get(f"{PATH}/me/events?ticket={bad}")
            assert answer.status_code == 401, bad
            assert answer.json()["error"] in ("Invalid ticket", "Missing API key")


async def test_a_ticket_ends(tmp_path: Any) -> None:
    tickets, now = Tickets(tmp_path), time.time()
    sealed, until = tickets.issue(Ticket("pfclient_x", "default", "anna"), now)
    assert until == int(now) + TICKET_S
    assert tickets.read(sealed, now + TICKET_S - 2) == Ticket("pfclient_x", "default", "anna")
    assert tickets.read(sealed, now + TICKET_S + 2) is None


async def test_a_client_key_may_stand_in_the_query(api: Api, client: httpx.AsyncClient) -> None:
    await configure(
        api, auth_config={"provider": "custom_jwt", "secret": SECRET}, allowed_origins=["https://game.example"]
    )
    proof = token("anna")["x-player-token"]
    me = {"x-player-id": "anna", "x-player-token": proof}
    assert (await client.post(PATH, headers=me, json={"name": "Mine"})).status_code == 201
    query = {"api-key": api.project.client_key, "player-id": "anna", "player-token": proof}
    async with httpx.AsyncClient(base_url=client.base_url, trust_env=False) as page:
        url = str(httpx.URL(f"{PATH}/me/events", params=query))
        async with opened(page, None, url, origin="https://game.example") as stream:
            assert stream.answer.headers["access-control-allow-origin"] == "https://game.example"
            assert (await stream.next())[0] == "connected"
        get = page.get
        assert (await get(url, headers={"origin": "https://evil.example"})).status_code == 403
        for change, status in (
            ({"player-id": "berta"}, 403),
            ({"player-token": "guess"}, 401),
            ({"api-key": "pfclient_of_nobody"}, 401),
            ({"api-key": api.project.server_key}, 403),
        ):
            assert (await get(f"{PATH}/me/events", params=query | change)).status_code == status
        assert (await get(f"{PATH}/me", params=query)).status_code == 401


@pytest.mark.parametrize("name", ["ticket", "player-token", "api-key", "client-auth-token"])
def test_what_a_url_proves_is_in_no_log(name: str) -> None:
    line = f'{{"path":"/api/v3/lobbies/default/me/events?player-id=anna&{name}=c2VjcmV0&after=1"}}'.encode()
    assert b"c2VjcmV0" not in redacted(line)
    assert b"after=1" in redacted(line)
