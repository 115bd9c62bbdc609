"""Lobbies as one player sees them, and as the project's back end does."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, Unpack

from pydantic import ValidationError

from fleet.client._async.transport import AsyncResource, AsyncTransport, part
from fleet.client.events import LobbyEvent
from fleet.client.models import (
    EventsTicketOut,
    HeartbeatOut,
    LobbyDeletedOut,
    LobbyListOut,
    LobbyOut,
    QueueStatsOut,
)
from fleet.client.requests import LobbyIn, LobbySettingsIn, StandingIn

Status = Literal["waiting", "in_queue", "starting", "matched", "match_found", "in_game"]
_DELETED = "lobby_deleted"


class AsyncLobbies(AsyncResource):
    """The lobbies of one config. All but `list`, `get` and `delete` need a player."""

    def __init__(self, transport: AsyncTransport, config: str) -> None:
        super().__init__(transport)
        self._path = f"/api/v3/lobbies/{part(config)}"

    async def list(
        self, *, region: str | None = None, status: Status | None = None, limit: int = 50, offset: int = 0
    ) -> LobbyListOut:
        """One page of the public ones, newest first."""
        return await self._api.get(LobbyListOut, self._path, region=region, status=status, limit=limit, offset=offset)

    async def get(self, lobby_id: str) -> LobbyOut:
        """Any lobby, private ones too; by the server key."""
        return await self._api.get(LobbyOut, f"{self._path}/{part(lobby_id)}")

    async def delete(self, lobby_id: str) -> None:
        """By the server key."""
        await self._api.send("DELETE", f"{self._path}/{part(lobby_id)}")

    async def create(self, **lobby: Unpack[LobbyIn]) -> LobbyOut:
        """The player becomes its host."""
        return await self._api.write(LobbyOut, "POST", self._path, body=lobby)

    async def join(
        self, *, lobby_id: str | None = None, code: str | None = None, state: dict[str, Any] | None = None
    ) -> LobbyOut:
        """By id or by code."""
        asked = {"lobbyId": lobby_id, "code": code, "state": state}
        body = {name: value for name, value in asked.items() if value is not None}
        return await self._api.write(LobbyOut, "POST", f"{self._path}/join", body=body)

    async def mine(self) -> LobbyOut:
        """`NotFound` if the player is in none."""
        return await self._api.get(LobbyOut, f"{self._path}/me")

    async def set_state(self, state: dict[str, Any]) -> LobbyOut:
        """Readiness, rating, role, …; keys that are not given stay."""
        return await self._change("PATCH", "", {"state": state})

    async def leave(self) -> LobbyOut | None:
        """The lobby without the player; None if that was the last one."""
        answer = await self._api.send("DELETE", f"{self._path}/me")
        try:
            LobbyDeletedOut.model_validate_json(answer.content)
        except ValidationError:
            return LobbyOut.model_validate_json(answer.content)
        return None

    async def heartbeat(self) -> None:
        """For players without an open stream."""
        await self._api.write(HeartbeatOut, "POST", f"{self._path}/me/heartbeat")

    async def change(self, **settings: Unpack[LobbySettingsIn]) -> LobbyOut:
        """Host only."""
        return await self._change("PATCH", "/settings", settings)

    async def kick(self, player_id: str) -> LobbyOut:
        """Host only."""
        return await self._change("DELETE", f"/players/{part(player_id)}")

    async def start(self) -> LobbyOut:
        """Host only: a server for this lobby. `in_game` follows."""
        return await self._change("POST", "/start")

    async def end_match(self, results: Sequence[StandingIn] | None = None) -> LobbyOut:
        """Host only. `results` need the server key."""
        return await self._change("POST", "/end-match", None if results is None else {"results": list(results)})

    async def find_match(self, mode: str) -> LobbyOut:
        """Host only: the whole lobby enters the mode's queue."""
        return await self._change("POST", "/matchmaking", {"mode": mode})

    async def cancel_search(self) -> LobbyOut:
        """Host only."""
        return await self._change("DELETE", "/matchmaking")

    async def confirm_match(self) -> LobbyOut:
        return await self._change("POST", "/confirm-match")

    async def decline_match(self) -> LobbyOut:
        return await self._change("DELETE", "/confirm-match")

    async def events_ticket(self) -> EventsTicketOut:
        """The URL of this player's stream, for a browser's EventSource."""
        return await self._api.write(EventsTicketOut, "POST", f"{self._path}/me/events-token")

    async def follow(self) -> AsyncIterator[LobbyEvent]:
        """The player's lobby, live, until it is deleted. `NotFound` once the player has left or was kicked."""
        async for event in self._api.stream(f"{self._path}/me/events", {}, None, frozenset({_DELETED})):
            if event.event == "queue_stats":
                yield LobbyEvent(type=event.event, stats=QueueStatsOut.model_validate_json(event.data))
            elif event.event == _DELETED:
                yield LobbyEvent(type=event.event)
            elif event.event in ("connected", "lobby_updated"):
                yield LobbyEvent(type=event.event, lobby=LobbyOut.model_validate_json(event.data))

    async def _change(self, method: str, path: str, body: object | None = None) -> LobbyOut:
        return await self._api.write(LobbyOut, method, f"{self._path}/me{path}", body=body)
