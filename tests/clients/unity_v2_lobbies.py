"""Unity's kit of version 2 and the Unreal plugin: legacy lobbies as they call them and read them (6.2, 6.6)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.clients.reading import Absent, Optional, read
from tests.clients.unity_v2 import ApiError

PORT = {"name": str, "host": str, "external_port": int, "internal_port": int, "protocol": str, "tls_enabled": bool}
# Unreal takes strings and numbers without looking: rather no field than null.
SERVER = {
    "status": str,
    "instance_id": str,
    "network_ports": [PORT],
    "startup_args": Absent(str),
    "ttl": Absent(int),
    "started_at": Absent(str),
}
LOBBY = {
    "id": str,
    "name": str,
    "host": str,
    "maxPlayers": int,
    "currentPlayers": int,
    "region": str,
    "status": str,
    "isPrivate": bool,
    "useInviteCode": bool,
    "inviteCode": Optional(str),
    "allowLateJoin": bool,
    "settings": dict,
    "players": [str],
    "lobbyStateRealTime": dict,
    "gameServer": Optional(SERVER),
    "timeout": int,
    "createdAt": str,
    "updatedAt": str,
}


class LegacyLobbies:
    """One player. The base has no prefix; the config's name is in every query."""

    def __init__(self, url: str, key: str, player: str, config: str = "Default") -> None:
        self.player = player
        self._config = {"name": config}
        headers = {"api-key": key, "accept": "application/json"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)

    def send(self, method: str, path: str, payload: Any = None, **query: str) -> Any:
        answer = self.http.request(method, path, json=payload, params=self._config | query)
        if answer.is_success:
            return answer.json() if answer.content else None
        raise ApiError(read(str, answer.json()["message"]), answer.status_code)

    def create(self, name: str, **given: Any) -> dict[str, Any]:
        private = given.get("isPrivate", False)
        body = {"name": name, "maxPlayers": 4, "isPrivate": private, "useInviteCode": private, "allowLateJoin": True}
        whole = {**body, "region": "us-east", "settings": {}, "host": self.player, **given}
        return read(LOBBY, self.send("POST", "/lobbies", whole))

    def get(self, lobby_id: str) -> dict[str, Any]:
        return read(LOBBY, self.send("GET", f"/lobbies/{lobby_id}"))

    def update(self, lobby_id: str, **part: Any) -> dict[str, Any]:
        return read(LOBBY, self.send("PUT", f"/lobbies/{lobby_id}", {"requesterId": self.player, **part}))

    def join(self, lobby_id: str) -> dict[str, Any]:
        body = {"playerId": self.player, "metadata": {"displayName": "Player"}}
        return read(LOBBY, self.send("POST", f"/lobbies/{lobby_id}/players", body))

    def join_by_code(self, code: str) -> dict[str, Any]:
        body = {"playerId": self.player, "metadata": {"displayName": "Player"}}
        return read(LOBBY, self.send("POST", f"/lobbies/code/{code}/players", body))

    def remove(self, lobby_id: str, player: str) -> Any:
        kick = {"isKick": "true"} if player != self.player else {}
        return self.send("DELETE", f"/lobbies/{lobby_id}/players/{player}", requesterId=self.player, **kick)

    def heartbeat(self, lobby_id: str) -> None:
        self.send("POST", f"/lobbies/{lobby_id}/heartbeat", {"playerId": self.player})

    @contextmanager
    def events(self, lobby_id: str) -> Iterator[Iterator[tuple[str, Any]]]:
        """The parser wants `event: ` and `data: ` with the space, and one line of data."""
        query = {"player-id": self.player, "lobby-config": self._config["name"]}
        path = f"/lobbies-sse/{lobby_id}/events"
        with self.http.stream("GET", path, params=query, headers={"accept": "text/event-stream"}) as answer:
            assert answer.status_code == 200
            yield _events(answer.iter_lines())


def _events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    kind = data = ""
    for line in lines:
        if line.startswith("event: "):
            kind = line[len("event: ") :]
        elif line.startswith("data: "):
            data = line[len("data: ") :]
        elif not line and kind:
            if kind != "ping":
                yield kind, json.loads(data)
            kind = data = ""
