"""The old service's way of asking, over the services of v3: lobbies by id, players named in bodies."""

import asyncio
import time
from collections import OrderedDict
from typing import Annotated

from fastapi import Depends, Header, Query

from fleet.errors import FleetError, Forbidden, NotFound
from fleet.lobbies.config import LobbyConfig, find_config
from fleet.lobbies.model import LobbyChange, LobbyView
from fleet.players.model import MAX_TOKEN
from fleet.projects.model import Principal
from serve_app.auth import AnyKey, Context
from serve_app.context import AppContext
from serve_app.players import PlayerToken
from serve_app.v2.lobby_schemas import LegacyUpdateIn
from serve_app.v3.lobby_schemas import NO_CONTROLS

ConfigName = Annotated[str, Query(alias="name", min_length=1, max_length=100, pattern=NO_CONTROLS)]
ClientToken = Annotated[
    str | None,
    Header(alias="client-auth-token", max_length=MAX_TOKEN, description="Proves who the player is, if it has to be"),
]
_SIGN_S = 30.0
_MOST_SIGNED = 10_000


class Desk:
    """One caller with one token."""

    def __init__(self, context: AppContext, caller: Principal, token: str | None) -> None:
        self.context = context
        self.caller = caller
        self.project_id = caller.project_id
        self._token = token
        self._lobbies = context.lobbies

    async def is_player(self, player_id: str) -> None:
        """Return if the caller may act as this player."""
        await self.context.players.check(self.caller, player_id, self._token)

    def config(self, name: str) -> LobbyConfig:
        return find_config(self.caller.settings.get("lobby_configs") or [], name)

    async def by_any_id(self, config: str, lobby_or_player: str) -> LobbyView:
        """The lobby of that id, or the one that the player of that id is in."""
        try:
            return await self._lobbies.get(self.project_id, config, lobby_or_player)
        except NotFound:
            return await self._lobbies.mine(self.project_id, config, lobby_or_player)

    async def in_lobby(self, config: str, lobby_id: str, player_id: str) -> LobbyView:
        """The lobby, if the player is in it and is who they say."""
        await self.is_player(player_id)
        lobby = await self._lobbies.get(self.project_id, config, lobby_id)
        if not lobby.has(player_id):
            raise Forbidden(f"Player '{player_id[:64]}' is not in this lobby.", error="Not in this lobby")
        return lobby

    async def update(self, config: str, lobby_id: str, body: LegacyUpdateIn) -> LobbyView:
        """Each part of the body is a call of v3, in this order."""
        who = body.requesterId
        lobby = await self.in_lobby(config, lobby_id, who)
        state = body.state()
        if state is not None:
            lobby = await self._set_state(config, lobby, who, body.targetPlayerId or who, state)
        if body.settings is not None:
            lobby = await self._lobbies.change(self.project_id, config, who, body.settings.change())
        if body.matchmaking is not None and body.matchmaking.action == "start":
            mode = body.matchmaking.mode or next(iter(self.config(config).modes), "default")
            lobby = await self._lobbies.start_matchmaking(self.project_id, config, who, mode)
        elif body.matchmaking is not None:
            lobby = await self._lobbies.cancel_matchmaking(self.project_id, config, who)
        if body.status is not None:
            lobby = await self._set_status(config, lobby, who, body.status)
        if body.host is not None and body.host != lobby.host:
            lobby = await self._lobbies.change(self.project_id, config, who, LobbyChange(host=body.host))
        return lobby

    async def _set_state(
        self, config: str, lobby: LobbyView, who: str, target: str, state: dict[str, object]
    ) -> LobbyView:
        if target != who and lobby.host != who:
            raise Forbidden("Only the host may set the state of others.", error="Not host")
        if not lobby.has(target):
            raise NotFound(f"Player '{target[:64]}' is not in this lobby.", error="Player not found")
        return await self._lobbies.set_state(self.project_id, config, target, state)

    async def _set_status(self, config: str, lobby: LobbyView, who: str, status: str) -> LobbyView:
        if status == "in_game" and lobby.status == "waiting":
            return await self._lobbies.start(self.project_id, config, who)
        if status == "waiting" and lobby.status == "in_game":
            return await self._lobbies.end_match(self.project_id, config, who)
        return lobby

    async def sign_of_life(self, config: str, lobby: LobbyView) -> None:
        """Old clients poll their lobby by its id and say not who they are: somebody is there, so nobody is put out. A
        config with `heartbeat` wants to hear of each player."""
        if self.config(config).heartbeat or not _signed.due(lobby.id):
            return
        beats = (self._lobbies.heartbeat(self.project_id, config, player.id) for player in lobby.players)
        for found in await asyncio.gather(*beats, return_exceptions=True):
            if isinstance(found, BaseException) and not isinstance(found, FleetError):
                raise found


class _Signed:
    """Which lobbies had a sign of life through this replica lately."""

    def __init__(self) -> None:
        self._at: OrderedDict[str, float] = OrderedDict()

    def due(self, lobby_id: str) -> bool:
        now = time.monotonic()
        if now - self._at.get(lobby_id, float("-inf")) < _SIGN_S:
            return False
        self._at.pop(lobby_id, None)
        if len(self._at) >= _MOST_SIGNED:
            self._at.popitem(last=False)
        self._at[lobby_id] = now
        return True


_signed = _Signed()


async def _desk(caller: AnyKey, context: Context, token: ClientToken = None, newer_token: PlayerToken = None) -> Desk:
    return Desk(context, caller, token or newer_token)


TheDesk = Annotated[Desk, Depends(_desk)]
