"""What lobby calls take and give, with the names and bounds of the API page: camelCase, unlike servers."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

from fleet.json_size import check_json
from fleet.lobbies.model import Confirmation, LobbyChange, LobbyView, Matchmaking, NewLobby, QueueStats, Standing, State
from fleet.lobbies.rules import MAX_SETTINGS, MAX_STATE
from fleet.players.model import ID_PATTERN, MAX_ID
from fleet.times import iso
from serve_app.v3.common import NUMBER, Flag
from serve_app.v3.server_schemas import ServerOut, port_view

NO_CONTROLS = r"^[^\x00-\x1f\x7f]+$"
Status = Literal["waiting", "in_queue", "starting", "matched", "match_found", "in_game"]
LobbyName = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=NO_CONTROLS)]
Region = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_CONTROLS)]
Seats = Annotated[int, Field(ge=1, le=100), NUMBER]
AnyPlayer = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID, pattern=ID_PATTERN)]


class _Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, serialize_by_alias=True)


def bounded(data: State | None, name: str, most: int) -> State | None:
    """As it came; every reader of the lobby has to read it."""
    if data is not None:
        check_json(data, f"'{name}'", most)
    return data


class LobbyIn(_Camel):
    """Only `name` is needed; null means: left out."""

    name: LobbyName
    max_players: Seats | None = Field(default=None, description="2, or as the config says")
    region: Region | None = Field(default=None, description="`us-east` if left out")
    is_private: Flag | None = Field(default=None, description="Not listed; joined by id or code")
    allow_late_join: Flag | None = Field(default=None, description="May be joined while in a game; true if left out")
    settings: dict[str, Any] | None = Field(default=None, description="Goes to the game server")
    state: dict[str, Any] | None = Field(default=None, description="The host's own state")
    force_fresh: Flag | None = Field(default=None, description="A lobby that the caller hosts gives way")

    def new(self) -> NewLobby:
        return NewLobby(
            name=self.name,
            max_players=self.max_players,
            region=self.region,
            is_private=bool(self.is_private),
            allow_late_join=self.allow_late_join is not False,
            settings=bounded(self.settings, "settings", MAX_SETTINGS) or {},
            state=bounded(self.state, "state", MAX_STATE),
            force_fresh=bool(self.force_fresh),
        )


class JoinIn(_Camel):
    """Exactly one of `lobbyId` and `code`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"code": "MEOW-42"}]})
    lobby_id: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    code: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    state: dict[str, Any] | None = Field(default=None, description="The player's own state")

    @model_validator(mode="after")
    def _one(self) -> "JoinIn":
        if (self.lobby_id is None) == (self.code is None):
            raise ValueError("give exactly one of lobbyId and code")
        return self


class StateIn(_Camel):
    state: dict[str, Any] = Field(description="Merged into the player's own state, one level deep")


class LobbySettingsIn(_Camel):
    """What the host changes; left out or null: as it is."""

    name: LobbyName | None = None
    max_players: Seats | None = None
    is_private: Flag | None = None
    allow_late_join: Flag | None = None
    region: Region | None = None
    settings: dict[str, Any] | None = Field(default=None, description="Merged, one level deep")

    def change(self) -> LobbyChange:
        bounded(self.settings, "settings", MAX_SETTINGS)
        return LobbyChange(**self.model_dump(by_alias=False))


class QueueIn(_Camel):
    mode: Annotated[str, StringConstraints(min_length=1, max_length=100)]


class StandingIn(_Camel):
    players: Annotated[list[AnyPlayer], Field(min_length=1, max_length=100)]
    rank: Annotated[int, Field(ge=1, le=1000, description="1 is the best; equal ranks are a draw"), NUMBER]


class EndIn(_Camel):
    """Nothing is needed."""

    results: Annotated[list[StandingIn], Field(min_length=1, max_length=100)] | None = Field(
        default=None, description="How the teams did, for the players' ratings (an extension; needs the server key)"
    )

    def standings(self) -> list[Standing] | None:
        if self.results is None:
            return None
        return [Standing(tuple(one.players), one.rank) for one in self.results]


class EmptyIn(BaseModel):
    """Nothing is needed."""


# Answers ------------------------------------------------------------------------------------------------------------


class LobbyPlayerOut(_Camel):
    id: str
    state: dict[str, Any] | None
    is_host: bool


class LobbyPortOut(BaseModel):
    """A port as older clients read it."""

    name: str
    host: str
    port: int
    protocol: Literal["udp", "tcp"]


class LobbyServerOut(ServerOut):
    """The Server object, and the same under the names of older clients."""

    model_config = ConfigDict(populate_by_name=True)
    older_id: str = Field(alias="instanceId")
    ports: list[LobbyPortOut]


class QueueStatsOut(_Camel):
    players_searching: int
    lobbies_in_queue: int
    avg_wait_seconds: float


class ConfirmationOut(_Camel):
    confirmed: bool = Field(description="Whether this lobby has")
    deadline: str


class MatchmakingOut(_Camel):
    mode: str
    started_at: str
    queue_stats: QueueStatsOut
    confirmation: ConfirmationOut | None = Field(default=None, description="Only while a match waits for it")


class LobbyOut(_Camel):
    id: str
    code: str = Field(description="For `join`, also of public lobbies")
    config: str
    name: str
    status: Status
    host: str
    max_players: int
    current_players: int
    region: str
    is_private: bool
    allow_late_join: bool
    settings: dict[str, Any]
    players: list[LobbyPlayerOut]
    server: LobbyServerOut | None = Field(description="Where the match is played, under old and new names")
    matchmaking: MatchmakingOut | None
    match_id: str | None = Field(description="The same for all lobbies of a match")
    version: int = Field(description="One more with each change: of an answer and an event, the higher one is newer")
    created_at: str
    updated_at: str


class LobbyListOut(_Camel):
    lobbies: list[LobbyOut]
    total: int
    limit: int
    offset: int
    has_more: bool


class LobbyDeletedOut(BaseModel):
    status: Literal["lobby_deleted"]


class HeartbeatOut(BaseModel):
    status: Literal["ok"]


class EventsTicketOut(_Camel):
    ticket: str
    expires_at: str
    url: str = Field(description="Path and query of the stream, for an EventSource")


DELETED = {"status": "lobby_deleted"}


def lobby_view(lobby: LobbyView) -> dict[str, Any]:
    """The Lobby object: every field always there."""
    return {
        "id": lobby.id,
        "code": lobby.code,
        "config": lobby.config,
        "name": lobby.name,
        "status": lobby.status,
        "host": lobby.host,
        "maxPlayers": lobby.max_players,
        "currentPlayers": lobby.current_players,
        "region": lobby.region,
        "isPrivate": lobby.is_private,
        "allowLateJoin": lobby.allow_late_join,
        "settings": lobby.settings,
        "players": [{"id": one.id, "state": one.state, "isHost": one.is_host} for one in lobby.players],
        "server": _server_view(lobby.server) if lobby.server else None,
        "matchmaking": _matchmaking_view(lobby.matchmaking) if lobby.matchmaking else None,
        "matchId": lobby.match_id,
        "version": lobby.version,
        "createdAt": iso(lobby.created_at),
        "updatedAt": iso(lobby.updated_at),
    }


def stats_view(stats: QueueStats) -> dict[str, Any]:
    return {
        "playersSearching": stats.players_searching,
        "lobbiesInQueue": stats.lobbies_in_queue,
        "avgWaitSeconds": round(stats.avg_wait_seconds, 1),
    }


def _matchmaking_view(found: Matchmaking) -> dict[str, Any]:
    view = {"mode": found.mode, "startedAt": iso(found.started_at), "queueStats": stats_view(found.queue_stats)}
    return view if found.confirmation is None else {**view, "confirmation": _confirmation_view(found.confirmation)}


def _confirmation_view(found: Confirmation) -> dict[str, Any]:
    return {"confirmed": found.confirmed, "deadline": iso(found.deadline)}


def server_columns(server: State) -> dict[str, Any]:
    """The Server object of what a lobby knows of its server. What players need not know is null."""
    ports = [port_view(port) for port in server.get("network_ports") or ()]
    return {
        **dict.fromkeys(ServerOut.model_fields),
        "auto_restart": False,
        "is_pool_server": False,
        "service_type": "match_based",
        **{name: value for name, value in server.items() if name in ServerOut.model_fields},
        **{name: iso(server.get(name)) for name in ("created_at", "updated_at", "started_at", "stopped_at")},
        "network_ports": [] if server["status"] == "stopped" else ports,
    }


def _server_view(server: State) -> dict[str, Any]:
    columns = server_columns(server)
    older = [
        {"name": port["name"], "host": port["host"], "port": port["external_port"], "protocol": port["protocol"]}
        for port in columns["network_ports"]
    ]
    return {**columns, "instanceId": server["instance_id"], "ports": older}
