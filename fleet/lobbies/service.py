"""Lobbies as the API replicas see them. Commands go to the keeper of the project's shard, the browse list is read from
the database, and what happens comes by one long poll for each shard (`LobbyFeed`).

Every method raises `FleetError` subclasses only, with the statuses and texts of the API page. A lobby is found by the
player who is in it: one player is in at most one lobby of a config.
"""

from collections.abc import AsyncGenerator
from typing import Protocol

from fleet.lobbies.model import (
    LobbyChange,
    LobbyEvent,
    LobbyPage,
    LobbyQuery,
    LobbyView,
    NewLobby,
    Standing,
    State,
)


class LobbyService(Protocol):
    async def page(self, project_id: str, config: str, query: LobbyQuery) -> LobbyPage:
        """Public lobbies."""
        ...

    async def get(self, project_id: str, config: str, lobby_id: str) -> LobbyView:
        """For the project's back end; NotFound."""
        ...

    async def delete(self, project_id: str, config: str, lobby_id: str) -> None:
        """For the project's back end: end the lobby, and its match's server if no other lobby plays there."""
        ...

    async def create(self, project_id: str, config: str, player_id: str, new: NewLobby) -> LobbyView:
        """Conflict if the player is in a lobby of this config."""
        ...

    async def join(
        self,
        project_id: str,
        config: str,
        player_id: str,
        *,
        lobby_id: str | None = None,
        code: str | None = None,
        state: State | None = None,
    ) -> LobbyView:
        """Exactly one of lobby_id and code. NotFound; BadRequest if full or not accepting; Conflict if in another."""
        ...

    async def mine(self, project_id: str, config: str, player_id: str) -> LobbyView:
        """The player's lobby; NotFound. A sign of life, as every call of the player is."""
        ...

    async def leave(self, project_id: str, config: str, player_id: str) -> LobbyView | None:
        """The lobby without the player; None: that was the last one, and the lobby is gone."""
        ...

    async def kick(self, project_id: str, config: str, player_id: str, victim: str) -> LobbyView: ...

    async def set_state(self, project_id: str, config: str, player_id: str, state: State) -> LobbyView:
        """Merged into the player's own state, one level deep."""
        ...

    async def change(self, project_id: str, config: str, player_id: str, change: LobbyChange) -> LobbyView:
        """Host only; Conflict while in a game."""
        ...

    async def heartbeat(self, project_id: str, config: str, player_id: str) -> None: ...

    async def start_matchmaking(self, project_id: str, config: str, player_id: str, mode: str) -> LobbyView: ...

    async def cancel_matchmaking(self, project_id: str, config: str, player_id: str) -> LobbyView: ...

    async def confirm_match(self, project_id: str, config: str, player_id: str) -> LobbyView: ...

    async def decline_match(self, project_id: str, config: str, player_id: str) -> LobbyView: ...

    async def start(self, project_id: str, config: str, player_id: str) -> LobbyView:
        """The host starts a server for this lobby; answers `starting`, and the rest comes as events."""
        ...

    async def end_match(
        self, project_id: str, config: str, player_id: str, results: list[Standing] | None = None
    ) -> LobbyView:
        """The host ends the match of this lobby. `results` (our extension) change the players' ratings."""
        ...


class LobbyFeed(Protocol):
    async def close(self) -> None:
        """Ask no more."""
        ...

    def follow(
        self, project_id: str, config: str, player_id: str, last_event_id: str | None = None
    ) -> AsyncGenerator[LobbyEvent]:
        """The player's lobby, live; NotFound at the first step if there is none.

        First comes `connected`: the lobby as it is now, or, with an id that is still known, as it was then; after that
        every change once and in order, and `queue_stats` each 10 s while in the queue. It ends after `lobby_deleted`,
        when the player has left or was kicked, or when the reader was too slow (it then comes again with its last
        id). While it is open the player counts as present. Close it (`aclose`) to leave.
        """
        ...
