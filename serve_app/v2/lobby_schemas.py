"""What the old lobby service took and gave."""

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from fleet.lobbies.model import LobbyChange, LobbyView, NewLobby, State
from fleet.lobbies.rules import MAX_SETTINGS, MAX_STATE
from fleet.times import iso
from serve_app.v2.server_schemas import LegacyInstanceOut
from serve_app.v3.lobby_schemas import NO_CONTROLS, AnyPlayer, Region, bounded, server_columns

LegacyName = Annotated[str, StringConstraints(min_length=3, max_length=50, pattern=NO_CONTROLS)]
Seats = Annotated[int, Field(ge=1, le=100)]
LegacyStatus = Literal["waiting", "in_queue", "match_found", "in_game", "finished"]
# Between being found and playing the old service knew one status.
_STATUS: dict[str, LegacyStatus] = {"starting": "in_game", "matched": "match_found"}
_LEFT_OUT = ("startup_args", "ttl", "started_at")


class LegacyLobbyIn(BaseModel):
    """All of it is needed, as the old service wanted it."""

    name: LegacyName
    maxPlayers: Seats
    isPrivate: bool
    useInviteCode: bool
    allowLateJoin: bool
    region: Region
    settings: dict[str, Any]
    host: AnyPlayer

    def new(self) -> NewLobby:
        return NewLobby(
            name=self.name,
            max_players=self.maxPlayers,
            region=self.region,
            is_private=self.isPrivate,
            allow_late_join=self.allowLateJoin,
            settings=bounded(self.settings, "settings", MAX_SETTINGS) or {},
        )


class LegacySettingsIn(BaseModel):
    name: LegacyName | None = None
    maxPlayers: Seats | None = None
    isPrivate: bool | None = None
    useInviteCode: bool | None = None
    allowLateJoin: bool | None = None
    region: Region | None = None
    settings: dict[str, Any] | None = None

    def change(self) -> LobbyChange:
        return LobbyChange(
            name=self.name,
            max_players=self.maxPlayers,
            is_private=self.isPrivate,
            allow_late_join=self.allowLateJoin,
            region=self.region,
            settings=bounded(self.settings, "settings", MAX_SETTINGS),
        )


class LegacyQueueIn(BaseModel):
    action: Literal["start", "cancel"]
    mode: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = None


class LegacyUpdateIn(BaseModel):
    """Who asks, and any of what may change. What belongs into `settings` is taken beside it, too."""

    requesterId: AnyPlayer
    host: AnyPlayer | None = None
    status: Literal["waiting", "in_game"] | None = None
    settings: LegacySettingsIn | None = None
    playerState: dict[str, Any] | None = None
    targetPlayerId: AnyPlayer | None = Field(default=None, description="Whose state; the host may set others'")
    matchmaking: LegacyQueueIn | None = None

    @model_validator(mode="before")
    @classmethod
    def _beside_settings(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = cast("dict[str, Any]", data)
        beside = {name: given[name] for name in LegacySettingsIn.model_fields if name != "settings" and name in given}
        inside: Any = given.get("settings")
        if beside and (inside is None or isinstance(inside, dict)):
            return given | {"settings": beside | cast("dict[str, Any]", inside or {})}
        return given

    def state(self) -> State | None:
        return bounded(self.playerState, "playerState", MAX_STATE)


class LegacyJoinIn(BaseModel):
    playerId: AnyPlayer
    metadata: dict[str, Any] | None = Field(default=None, description="Becomes the player's state")

    def state(self) -> State | None:
        return bounded(self.metadata, "metadata", MAX_STATE)


class LegacyPlayerIn(BaseModel):
    playerId: AnyPlayer


class LegacyLobbyOut(BaseModel):
    model_config = ConfigDict(title="LegacyLobby")
    id: str
    name: str
    host: str
    maxPlayers: int
    currentPlayers: int
    region: str
    status: LegacyStatus
    isPrivate: bool
    useInviteCode: bool = Field(description="Always true: every lobby has a code")
    inviteCode: str | None
    allowLateJoin: bool
    settings: dict[str, Any] | None
    players: list[str] | None
    lobbyStateRealTime: dict[str, dict[str, Any]] | None = Field(description="States by player")
    gameServer: dict[str, Any] | None
    timeout: int
    createdAt: str
    updatedAt: str
    matchmakingMode: str | None
    matchmakingStartedAt: str | None
    matchmakingTicketId: str | None
    matchmakingData: dict[str, Any] | None


def legacy_server_view(server: State) -> dict[str, Any]:
    """The server of a match; what readers take without looking is left out rather than null."""
    whole = server_columns(server)
    view = {name: whole.get(name) for name in LegacyInstanceOut.model_fields}
    return {name: value for name, value in view.items() if value is not None or name not in _LEFT_OUT}


def legacy_lobby_view(lobby: LobbyView, timeout_s: float) -> dict[str, Any]:
    queue = lobby.matchmaking
    data = None
    if queue is not None and queue.confirmation is not None:
        asked = queue.confirmation
        data = {"confirmed": asked.confirmed, "deadline": iso(asked.deadline)}
    return {
        "id": lobby.id,
        "name": lobby.name,
        "host": lobby.host,
        "maxPlayers": lobby.max_players,
        "currentPlayers": lobby.current_players,
        "region": lobby.region,
        "status": _STATUS.get(lobby.status, lobby.status),
        "isPrivate": lobby.is_private,
        "useInviteCode": True,
        "inviteCode": lobby.code,
        "allowLateJoin": lobby.allow_late_join,
        "settings": lobby.settings,
        "players": [player.id for player in lobby.players],
        "lobbyStateRealTime": {player.id: player.state or {} for player in lobby.players},
        "gameServer": legacy_server_view(lobby.server) if lobby.server else None,
        "timeout": round(timeout_s),
        "createdAt": iso(lobby.created_at),
        "updatedAt": iso(lobby.updated_at),
        "matchmakingMode": queue.mode if queue else None,
        "matchmakingStartedAt": iso(queue.started_at) if queue else None,
        "matchmakingTicketId": lobby.id if queue else None,
        "matchmakingData": data,
    }
