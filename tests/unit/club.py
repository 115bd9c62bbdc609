"""Players of a project whose lobbies a test looks at, over the real keeper's core."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest
from sqlmodel import col

from fleet.errors import FleetError
from fleet.lobbies.model import LobbyEvent, LobbyView, NewLobby
from fleet.projects.scope import owned
from fleet.store.tables import ProjectEvent, Server
from tests.unit.api_kit import Api

DUEL = {"teams": 2, "playersPerTeam": 1}
CONFIG: dict[str, Any] = {
    "name": "duels",
    "maxPlayers": 4,
    "matchmaking": {
        "modes": {
            "duel": DUEL,
            "ranked": {**DUEL, "rules": [{"type": "skill", "maxDifference": 0.5, "relax": {"perSecond": 0}}]},
            "asked": {**DUEL, "matchConfirmation": {"enabled": True, "timeout": 1}},
            "short": {**DUEL, "timeout": 1},
            "open": {"teams": 2, "playersPerTeam": 2, "minPlayersPerTeam": 1, "allowBackfill": True, "partialAfter": 0},
        }
    },
}


@dataclass
class Club:
    """Players of the first project, in config `duels`."""

    api: Api
    config: str = "duels"

    def __post_init__(self) -> None:
        self.service = self.api.app.state.context.lobbies
        self.feed = self.api.app.state.context.lobby_feed
        self.project = self.api.project.project_id

    def do(self, method: str, player: str, *arguments: Any, **named: Any) -> Awaitable[Any]:
        return getattr(self.service, method)(self.project, self.config, player, *arguments, **named)

    async def lobby(self, player: str, *others: str, **values: Any) -> LobbyView:
        made = await self.do("create", player, NewLobby(**{"name": "ours", "max_players": 4, **values}))
        for other in others:
            made = await self.do("join", other, lobby_id=made.id)
        return made

    async def sees(self, player: str, *statuses: str, running: bool = False) -> LobbyView:
        """The player's lobby once it has one of the statuses."""

        def fits(view: LobbyView) -> bool:
            return view.status in statuses and (not running or (view.server or {}).get("status") == "running")

        async with asyncio.timeout(20), aclosing(self.follow(player)) as events:
            async for event in events:
                if event.lobby is not None and fits(event.lobby):
                    return event.lobby
        raise AssertionError(f"{player}'s lobby is gone")

    def follow(self, player: str, last: str | None = None) -> AsyncGenerator[LobbyEvent]:
        return self.feed.follow(self.project, self.config, player, last)

    async def queue(self, *players: str, mode: str = "duel") -> None:
        for player in players:
            await self.do("start_matchmaking", player, mode)

    async def playing(self, *players: str, mode: str = "duel") -> LobbyView:
        """All in one match with a running server."""
        for player in players:
            await self.lobby(player)
        await self.queue(*players, mode=mode)
        view = await self.sees(players[0], "in_game")
        assert view.server is not None
        await self.run(view.server["instance_id"])
        for player in players:
            await self.sees(player, "in_game", running=True)
        return await self.do("mine", players[0])

    async def run(self, instance_id: str) -> None:
        await self.api.regions.change(instance_id, "running", status="running", step="running")

    async def told(self, what: str) -> list[ProjectEvent]:
        query = owned(ProjectEvent, self.project).where(col(ProjectEvent.type) == f"lobby.{what}")
        async with self.api.store.read() as session:
            return list((await session.exec(query)).all())

    async def servers(self) -> list[Server]:
        async with self.api.store.read() as session:
            return list((await session.exec(owned(Server, self.project))).all())


async def refused(call: Awaitable[Any]) -> tuple[int, str]:
    with pytest.raises(FleetError) as info:
        await call
    return info.value.status, info.value.error


async def eventually(check: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(20):
        while not (found := await check()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return found
