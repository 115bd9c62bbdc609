"""What real clients send to lobbies and matchmaking, against a real fleet (section 6 of the API page)."""

import asyncio
import resource
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest

from tests import games
from tests.clients.unity_v2 import ApiError
from tests.clients.unity_v2_lobbies import LegacyLobbies
from tests.clients.unity_v3 import UnityV3, refusal, verify
from tests.conftest import RunningFleet
from tests.player import Studio, ask, lobby_config
from tests.waiting import eventually

pytestmark = [pytest.mark.fleet, pytest.mark.docker]

DUEL = {"teams": 2, "playersPerTeam": 1, "timeout": 120}
CONFIG = "lobby clients"
STREAMS = 1000


@pytest.fixture(scope="module")
def configured(studio: Studio) -> Iterator[str]:
    """A lobby config whose servers run the demo game; what was configured before comes back."""
    assert studio.push(games.demo_zip(), "lobby-demo")["status"] == "ready"
    modes = {
        "ranked": DUEL,
        "pairs": {**DUEL, "playersPerTeam": 2},
        "asked": {**DUEL, "matchConfirmation": {"enabled": True, "timeout": 60}},
    }
    server = {"serverSize": "micro", "gameBuild": "lobby-demo"}
    config = {"name": CONFIG, "maxPlayers": 4, "serverSettings": server, "matchmaking": {"modes": modes}}
    with lobby_config(studio, config) as name:
        yield name


@contextmanager
def unity(fleet: RunningFleet, config: str, *names: str) -> Iterator[list[UnityV3]]:
    players = [UnityV3(fleet.url, fleet.client_key, f"{name}-{uuid.uuid4().hex[:8]}", config) for name in names]
    try:
        yield players
    finally:
        for player in players:
            refusal(player, "DELETE", "/me")
            player.http.close()


def once_it_runs(server: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    """The server, polled until it runs."""
    eventually(lambda: (server() or {}).get("status") == "running", 60, "the server runs")
    return server() or {}


@pytest.mark.parametrize("mode", ["ranked", "unheard-of"])
def test_unitys_verifier_is_content(fleet: RunningFleet, configured: str, mode: str) -> None:
    verify(fleet.url, fleet.client_key, configured, mode)


def test_a_config_that_nobody_made_has_defaults(fleet: RunningFleet) -> None:
    verify(fleet.url, fleet.client_key, f"made up {uuid.uuid4()}")


def test_two_unity_players_meet_in_a_game(fleet: RunningFleet, configured: str) -> None:
    with unity(fleet, configured, "anna", "berta") as players:
        for player in players:
            player.lobby("POST", "", {"name": player.player, "maxPlayers": 2, "isPrivate": True})
        with players[0].events() as first, players[1].events() as second:
            for stream in (first, second):
                stream.wait("connected")
            for player in players:
                assert player.lobby("POST", "/me/matchmaking", {"mode": "asked"})["status"] == "in_queue"
            for player, stream in zip(players, (first, second), strict=True):
                found = stream.wait("lobby_updated", status="match_found")
                assert found["matchmaking"]["confirmation"]["confirmed"] is False
                player.lobby("POST", "/me/confirm-match", {})
            playing = [stream.wait("lobby_updated", 60, status="in_game") for stream in (first, second)]
            assert playing[0]["matchId"] == playing[1]["matchId"]
            server = once_it_runs(lambda: players[0].lobby("GET", "/me")["server"])
            assert ask(server, "ping 1").startswith("pong")
            for player in players:
                ended = player.lobby("POST", "/me/end-match", {})
                assert (ended["status"], ended["server"], ended["matchId"]) == ("waiting", None, None)


def test_a_host_starts_a_game_for_friends(fleet: RunningFleet, configured: str) -> None:
    with unity(fleet, configured, "host", "friend") as (host, friend):
        made = host.lobby("POST", "", {"name": "Friends", "maxPlayers": 2, "settings": {"map": "dust"}})
        friend.lobby("POST", "/join", {"code": made["code"]})
        with friend.events() as stream:
            stream.wait("connected")
            assert host.lobby("POST", "/me/start", {})["status"] == "starting"
            playing = stream.wait("lobby_updated", 60, status="in_game")
            while playing["server"]["status"] != "running":
                playing = stream.wait("lobby_updated", 60)
            assert ask(playing["server"], "ping 1").startswith("pong")
            assert host.lobby("POST", "/me/end-match", {})["status"] == "waiting"
            assert stream.wait("lobby_updated", status="waiting")["code"] == made["code"]


def test_mcps_lobby_tools_send_no_bodies(fleet: RunningFleet, configured: str) -> None:
    """With the server key, for a player; all five fields at the making."""
    with unity(fleet, configured, "mcp") as (player,):
        player.http.headers["api-key"] = fleet.server_key
        body = {"name": "m", "region": "us-east", "maxPlayers": 2, "isPrivate": False, "allowLateJoin": True}
        made = player.lobby("POST", "", body)
        assert player.send("POST", "/me/heartbeat") == {"status": "ok"}
        for method, path in (("POST", "/me/confirm-match"), ("DELETE", "/me/confirm-match"), ("POST", "/me/end-match")):
            refused = refusal(player, method, path)
            assert refused is not None
            assert refused.status == 409
        assert player.lobby("GET", f"/{made['id']}")["id"] == made["id"]
        assert player.send("DELETE", f"/{made['id']}") == {"status": "lobby_deleted"}


def test_unitys_v2_lobbies(fleet: RunningFleet, configured: str) -> None:
    names = [f"v2-{uuid.uuid4().hex[:8]}" for _ in range(3)]
    host, second, third = (LegacyLobbies(fleet.url, fleet.client_key, name, configured) for name in names)
    made = host.create("Legacy", isPrivate=True)
    assert made["inviteCode"]
    with closing(host.http), closing(second.http), closing(third.http):
        with pytest.raises(ApiError, match="no lobby"):
            second.get("nobody-at-all")
        assert second.join(made["id"])["lobbyStateRealTime"][second.player] == {"displayName": "Player"}
        with pytest.raises(ApiError):
            second.join(made["id"])
        with host.events(made["id"]) as events:
            kind, first = next(events)
            assert (kind, first["lobby"]["id"]) == ("connected", made["id"])
            third.join_by_code(made["inviteCode"])
            kind, lobby = next(events)
            assert (kind, lobby["currentPlayers"]) == ("lobby:updated", 3)
            assert host.remove(made["id"], third.player)["currentPlayers"] == 2
        assert host.get(host.player)["id"] == made["id"]
        wrapped = {"settings": {"settings": {"mode": "ctf"}}}
        assert host.update(made["id"], **wrapped)["settings"] == {"mode": "ctf"}
        host.heartbeat(made["id"])
        assert host.update(made["id"], matchmaking={"action": "start", "mode": "pairs"})["status"] == "in_queue"
        assert host.update(made["id"], matchmaking={"action": "cancel", "mode": "pairs"})["status"] == "waiting"
        _plays_as_unreal(host, made["id"])
        assert second.remove(made["id"], second.player)["currentPlayers"] == 1
        assert host.remove(made["id"], host.player) is None


def _plays_as_unreal(host: LegacyLobbies, lobby_id: str) -> None:
    """Started by status; polled until the server runs; its first port is where to go."""
    assert host.update(lobby_id, status="in_game")["status"] == "in_game"

    server = once_it_runs(lambda: host.get(lobby_id)["gameServer"])
    assert ask(server, "ping 1").startswith("pong")
    assert host.update(lobby_id, status="waiting")["gameServer"] is None


# A storm ----------------------------------------------------------------------------------------------------------


class Storm:
    """Streams of many players, each of whom hosts a lobby of one."""

    def __init__(self, fleet: RunningFleet, config: str) -> None:
        self._base = f"{fleet.url}/api/v3/lobbies/{config}"
        self._key = {"api-key": fleet.client_key}
        self.last: dict[str, str] = {}
        self.seen: dict[str, list[int]] = {}

    async def call(self, http: httpx.AsyncClient, method: str, path: str, player: str, body: Any = None) -> None:
        headers = self._key | {"x-player-id": player}
        answer = await http.request(method, self._base + path, headers=headers, json=body)
        assert answer.is_success, answer.text

    async def read(self, http: httpx.AsyncClient, player: str, upto: int, opened: asyncio.Semaphore) -> None:
        """From where the player was until this change has come."""
        headers = self._key | {"x-player-id": player}
        if player in self.last:
            headers["last-event-id"] = self.last[player]
        async with opened, http.stream("GET", f"{self._base}/me/events", headers=headers) as answer:
            assert answer.status_code == 200, await answer.aread()
            number = ""
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "id":
                    number = value
                elif name == "data" and number:
                    at = int(value.split('"n":', 1)[1].split("}", 1)[0])
                    self.seen.setdefault(player, []).append(at)
                    self.last[player], number = number, ""
                    if at >= upto:
                        return
        raise AssertionError(f"the stream of {player} ended before change {upto}")


@pytest.mark.slow
def test_a_thousand_streams_drop_and_all_go_on(fleet: RunningFleet) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    config = f"storm-{uuid.uuid4().hex[:8]}"
    try:
        asyncio.run(_storm(Storm(fleet, config)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _storm(storm: Storm) -> None:
    players = [f"p{number}" for number in range(STREAMS)]
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    few = asyncio.Semaphore(50)
    async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as http:

        async def bounded(method: str, path: str, player: str, body: Any = None) -> None:
            async with few:
                await storm.call(http, method, path, player, body)

        made = {"name": "Storm", "maxPlayers": 2, "state": {"n": 0}}
        await asyncio.gather(*(bounded("POST", "", player, made) for player in players))
        all_at_once = asyncio.Semaphore(STREAMS)
        for change in (1, 2):
            # They come all at once, hear of a change, and all go.
            reading = asyncio.gather(*(storm.read(http, player, change, all_at_once) for player in players))
            await asyncio.gather(*(bounded("PATCH", "/me", player, {"state": {"n": change}}) for player in players))
            async with asyncio.timeout(60):
                await reading
        await asyncio.gather(*(bounded("DELETE", "/me", player) for player in players))
    for player in players:
        # The second time they begin where they were: at change 1, which they know, then 2; nothing twice or missing.
        assert storm.seen[player] in ([0, 1, 1, 2], [1, 1, 2]), (player, storm.seen[player])
