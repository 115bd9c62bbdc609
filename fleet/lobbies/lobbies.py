"""`LobbyService` over the keepers, and the browse list over the database."""

from typing import Any, Protocol, cast

from sqlmodel import col

from fleet.errors import Unavailable
from fleet.lobbies.calls import Answer, Command, Poll, Polled
from fleet.lobbies.model import (
    LobbyChange,
    LobbyPage,
    LobbyQuery,
    LobbyView,
    NewLobby,
    QueueStats,
    Standing,
    State,
)
from fleet.lobbies.names import new_match_id
from fleet.lobbies.rows import lobby_of
from fleet.lobbies.views import view_of
from fleet.operation import new_id
from fleet.projects.scope import count_of, owned
from fleet.store.engine import Store
from fleet.store.lobby_tables import Lobby
from fleet.times import now_ms


class Keepers(Protocol):
    """The keepers of all shards. Every method raises `FleetError` subclasses only."""

    async def recover(self) -> None:
        """Make the keepers that have something under way."""
        ...

    def shard_of(self, project_id: str) -> int: ...

    async def command(self, command: Command) -> Answer:
        """The answer, once the command's effect is on disk; errors are raised."""
        ...

    async def poll(self, shard: int, poll: Poll) -> Polled: ...


class NoKeepers:
    """For a process that serves no lobbies."""

    async def recover(self) -> None:
        return None

    def shard_of(self, project_id: str) -> int:
        return 0

    async def command(self, command: Command) -> Answer:
        raise Unavailable("This process serves no lobbies.")

    async def poll(self, shard: int, poll: Poll) -> Polled:
        raise Unavailable("This process serves no lobbies.")


class Lobbies:
    """See `LobbyService`."""

    def __init__(self, store: Store, keepers: Keepers) -> None:
        self._store = store
        self._keepers = keepers

    async def page(self, project_id: str, config: str, query: LobbyQuery) -> LobbyPage:
        rows = owned(Lobby, project_id).where(col(Lobby.config) == config)
        if not query.include_private:
            rows = rows.where(col(Lobby.is_private).is_(False))
        if query.status is not None:
            rows = rows.where(col(Lobby.status) == query.status)
        if query.region is not None:
            rows = rows.where(col(Lobby.region) == query.region)
        page = rows.order_by(col(Lobby.created_at).desc(), col(Lobby.id)).limit(query.limit).offset(query.offset)
        async with self._store.read() as session:
            total = (await session.exec(count_of(rows))).one()
            found = (await session.exec(page)).all()
        return LobbyPage([view_of(lobby_of(row), QueueStats()) for row in found], total, query.limit, query.offset)

    async def get(self, project_id: str, config: str, lobby_id: str) -> LobbyView:
        return await self._there("get", project_id, config, "", lobby_id)

    async def delete(self, project_id: str, config: str, lobby_id: str) -> None:
        await self._do("delete", project_id, config, "", lobby_id)

    async def create(self, project_id: str, config: str, player_id: str, new: NewLobby) -> LobbyView:
        return await self._there("create", project_id, config, player_id, new, new_id())

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
        return await self._there("join", project_id, config, player_id, lobby_id, code, state)

    async def mine(self, project_id: str, config: str, player_id: str) -> LobbyView:
        return await self._there("mine", project_id, config, player_id)

    async def leave(self, project_id: str, config: str, player_id: str) -> LobbyView | None:
        return await self._do("leave", project_id, config, player_id)

    async def kick(self, project_id: str, config: str, player_id: str, victim: str) -> LobbyView:
        return await self._there("kick", project_id, config, player_id, victim)

    async def set_state(self, project_id: str, config: str, player_id: str, state: State) -> LobbyView:
        return await self._there("set_state", project_id, config, player_id, state)

    async def change(self, project_id: str, config: str, player_id: str, change: LobbyChange) -> LobbyView:
        return await self._there("change", project_id, config, player_id, change)

    async def heartbeat(self, project_id: str, config: str, player_id: str) -> None:
        await self._there("mine", project_id, config, player_id)

    async def start_matchmaking(self, project_id: str, config: str, player_id: str, mode: str) -> LobbyView:
        return await self._there("start_matchmaking", project_id, config, player_id, mode)

    async def cancel_matchmaking(self, project_id: str, config: str, player_id: str) -> LobbyView:
        return await self._there("cancel_matchmaking", project_id, config, player_id)

    async def confirm_match(self, project_id: str, config: str, player_id: str) -> LobbyView:
        return await self._there("confirm", project_id, config, player_id)

    async def decline_match(self, project_id: str, config: str, player_id: str) -> LobbyView:
        return await self._there("decline", project_id, config, player_id)

    async def start(self, project_id: str, config: str, player_id: str) -> LobbyView:
        return await self._there("start", project_id, config, player_id, new_match_id(now_ms()))

    async def end_match(
        self, project_id: str, config: str, player_id: str, results: list[Standing] | None = None
    ) -> LobbyView:
        return await self._there("end_match", project_id, config, player_id, results)

    async def _do(self, method: str, project_id: str, config: str, player_id: str, *arguments: Any) -> LobbyView | None:
        answer = await self._keepers.command(Command(method, project_id, config, player_id, arguments))
        return cast(LobbyView | None, answer)

    async def _there(self, method: str, project_id: str, config: str, player_id: str, *arguments: Any) -> LobbyView:
        return cast(LobbyView, await self._do(method, project_id, config, player_id, *arguments))
