"""Unity's kit of version 3: its lobby calls, its reading of streams, and the steps of its own verifier.

Answers are read as it reads them. It sends no heartbeat: the open stream is it.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

import httpx

from tests.clients.reading import Optional, read

PORT = {"name": str, "host": str, "external_port": int, "internal_port": int, "protocol": str}
SERVER = {"status": str, "network_ports": [PORT], "instance_id": str}
MATCHMAKING = {"mode": str, "confirmation": Optional({"deadline": str, "confirmed": bool})}
LOBBY = {
    "id": str,
    "code": str,
    "config": str,
    "name": str,
    "status": str,
    "host": str,
    "maxPlayers": int,
    "currentPlayers": int,
    "region": str,
    "isPrivate": bool,
    "allowLateJoin": bool,
    "settings": Optional(dict),
    "players": [{"id": str, "state": Optional(dict), "isHost": bool}],
    "server": Optional(SERVER),
    "matchmaking": Optional(MATCHMAKING),
    "matchId": Optional(str),
    "createdAt": str,
    "updatedAt": str,
}
WAIT_S = 30.0


class Refused(Exception):
    """An error as the kit shows it: `not found` is told by the text."""

    def __init__(self, answer: httpx.Response) -> None:
        body = read({"error": str, "status": int}, answer.json())
        self.status = answer.status_code
        super().__init__(f"{answer.status_code} {body['error']}")


class UnityV3:
    """One player of one lobby config."""

    def __init__(self, url: str, key: str, player: str, config: str = "default") -> None:
        self.player = player
        self.path = f"/api/v3/lobbies/{quote(config, safe='')}"
        headers = {"api-key": key, "x-player-id": player, "accept": "application/json"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)

    def send(self, method: str, path: str, payload: Any = None) -> Any:
        answer = self.http.request(method, self.path + path, json=payload)
        if not answer.is_success:
            raise Refused(answer)
        return answer.json() if answer.content else None

    def lobby(self, method: str, path: str, payload: Any = None) -> dict[str, Any]:
        return read(LOBBY, self.send(method, path, payload))

    def listed(self) -> list[dict[str, Any]]:
        """The page, or a bare array."""
        found = self.send("GET", "")
        if isinstance(found, list):
            return read([LOBBY], found)
        shape = {"lobbies": [LOBBY], "total": int, "limit": int, "offset": int, "hasMore": bool}
        return read(shape, found)["lobbies"]

    @contextmanager
    def events(self) -> Iterator["EventReader"]:
        with EventReader(self) as reader:
            yield reader


class EventReader:
    """Reads the stream in a thread, line by line: `event: `, `data: ` (one line), blank; comments are allowed."""

    def __init__(self, player: UnityV3) -> None:
        self._player = player
        self._news = threading.Condition()
        self.events: list[tuple[str, Any]] = []
        self.closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "EventReader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """The stream ends by itself when the player leaves; what is left open is closed with it."""
        self._stop = True
        if self._answer is not None and not self.closed:
            connection: socket.socket = self._answer.extensions["network_stream"].get_extra_info("socket")
            with suppress(OSError):  # it may have ended meanwhile
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(WAIT_S)

    _stop = False
    _answer: httpx.Response | None = None

    def _run(self) -> None:
        headers = {"accept": "text/event-stream", "cache-control": "no-cache"}
        try:
            with self._player.http.stream("GET", f"{self._player.path}/me/events", headers=headers) as answer:
                self._answer = answer
                if answer.status_code == 200:
                    self._read(answer.iter_lines())
        except (httpx.HTTPError, RuntimeError):
            pass  # its client was closed
        with self._news:
            self.closed = True
            self._news.notify_all()

    def _read(self, lines: Iterator[str]) -> None:
        kind, data = "", None
        for line in lines:
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = line.removeprefix("data: ")
            elif line == "" and kind:
                with self._news:
                    self.events.append((kind, json.loads(data) if data else None))
                    self._news.notify_all()
                kind, data = "", None
            else:
                assert line.startswith((":", "id: ")) or line == "", line
            if self._stop:
                return

    def wait(self, kind: str, within_s: float = WAIT_S, **fields: Any) -> Any:
        """The data of the first event of that kind whose fields are as given, and those before it are gone."""
        until = time.monotonic() + within_s
        with self._news:
            while True:
                for number, (found, data) in enumerate(self.events):
                    if found == kind and all(data.get(name) == value for name, value in fields.items()):
                        del self.events[: number + 1]
                        return data
                assert not self.closed, f"the stream closed before {kind} {fields}: {self.events}"
                left = until - time.monotonic()
                assert left > 0, f"no {kind} {fields} within {within_s} s; there were {[e[0] for e in self.events]}"
                self._news.wait(left)

    def wait_closed(self) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.closed, WAIT_S), "the stream stays open"


def verify(url: str, key: str, config: str = "default", mode: str = "ranked", *, stats_s: float = 12.0) -> None:
    """The verifier's sequence (6.1), step by step. `mode` need not exist."""
    names = [f"verifier-{int(time.time() * 1000)}-{number}" for number in range(3)]
    host, second, third = (UnityV3(url, key, name, config) for name in names)
    try:
        _verify(host, second, third, mode, stats_s)
    finally:
        for player in (third, second, host):
            refusal(player, "DELETE", "/me")
            player.http.close()


def refusal(player: UnityV3, method: str, path: str, payload: Any = None) -> Refused | None:
    """Why the call was refused; None if it was not."""
    try:
        player.send(method, path, payload)
    except Refused as refused:
        return refused
    return None


def _verify(host: UnityV3, second: UnityV3, third: UnityV3, mode: str, stats_s: float) -> None:
    made = host.lobby("POST", "", {"name": "Verifier", "maxPlayers": 4, "isPrivate": False, "state": {"mmr": 1500}})
    assert made["id"]
    assert made["code"]
    assert made["host"] == host.player
    assert made["status"] == "waiting"
    assert [(one["id"], one["isHost"], one["state"]) for one in made["players"]] == [(host.player, True, {"mmr": 1500})]
    assert host.lobby("GET", "/me")["id"] == made["id"]
    assert made["id"] in [lobby["id"] for lobby in host.listed()]

    patched = host.lobby("PATCH", "/me", {"state": {"ready": True, "role": "medic"}})
    assert patched["players"][0]["state"] == {"mmr": 1500, "ready": True, "role": "medic"}
    changed = host.lobby("PATCH", "/me/settings", {"name": "Verifier renamed", "maxPlayers": 3})
    assert (changed["name"], changed["maxPlayers"]) == ("Verifier renamed", 3)

    assert second.lobby("POST", "/join", {"lobbyId": made["id"]})["currentPlayers"] == 2
    assert third.lobby("POST", "/join", {"code": made["code"]})["currentPlayers"] == 3
    assert host.lobby("DELETE", f"/me/players/{third.player}")["currentPlayers"] == 2
    gone = refusal(third, "GET", "/me")
    assert gone is not None, "the kicked player is still there"
    assert "not found" in str(gone).lower() or "404" in str(gone)

    with host.events() as stream:
        connected = read(LOBBY, stream.wait("connected", 5.0))
        assert connected["id"] == made["id"]
        second.lobby("PATCH", "/me", {"state": {"ready": True}})
        updated = read(LOBBY, stream.wait("lobby_updated", 3.0))
        assert updated["players"][1]["state"] == {"ready": True}
        _verify_queue(host, stream, mode, stats_s)
        second.send("DELETE", "/me")
        assert read(LOBBY, stream.wait("lobby_updated", 3.0, currentPlayers=1))["host"] == host.player
        host.send("DELETE", "/me")
    left = refusal(host, "GET", "/me")
    assert left is not None, "the host is still there"
    assert left.status == 404


def _verify_queue(host: UnityV3, stream: EventReader, mode: str, stats_s: float) -> None:
    refused = refusal(host, "POST", "/me/matchmaking", {"mode": mode})
    if refused is not None:
        assert refused.status in (400, 404)
        assert any(word in str(refused).lower() for word in ("mode", "matchmaking", "not found"))
        return
    queued = host.lobby("GET", "/me")
    assert queued["status"] == "in_queue"
    assert queued["matchmaking"]["mode"] == mode
    stats = stream.wait("queue_stats", stats_s)
    read({"playersSearching": int, "lobbiesInQueue": int}, stats)
    assert isinstance(stats["avgWaitSeconds"], int | float)
    assert host.lobby("DELETE", "/me/matchmaking")["status"] == "waiting"
