"""Lobbies, players and matches. Frozen: a change is a new object, so what is shown can never change under a reader."""

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["waiting", "in_queue", "starting", "matched", "match_found", "in_game"]
STATUSES: tuple[Status, ...] = ("waiting", "in_queue", "starting", "matched", "match_found", "in_game")
State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Player:
    id: str
    state: State | None
    joined_at: int


@dataclass(frozen=True, slots=True)
class Queued:
    """A place in a mode's queue, kept while the lobby is in a match that may still fail. `since`: its rank; at `until`
    it has waited long enough."""

    mode: str
    since: int
    until: int


@dataclass(frozen=True, slots=True)
class Lobby:
    """A lobby as it is in the keeper's books. `version` rises with every change that players see."""

    id: str
    project_id: str
    config: str
    code: str
    name: str
    status: Status
    region: str
    host: str
    is_private: bool
    allow_late_join: bool
    max_players: int
    players: tuple[Player, ...]
    settings: State
    created_at: int
    updated_at: int
    version: int = 1
    queued: Queued | None = None
    match_id: str | None = None
    confirmed: bool = False
    confirm_until: int | None = None
    server: State | None = None  # what players may know of it (`server_view`)

    def player(self, player_id: str) -> Player | None:
        return next((player for player in self.players if player.id == player_id), None)


# What the API shows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlayerView:
    id: str
    state: State | None
    is_host: bool


@dataclass(frozen=True, slots=True)
class QueueStats:
    players_searching: int = 0
    lobbies_in_queue: int = 0
    avg_wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Confirmation:
    """`confirmed`: this lobby has; `deadline` in milliseconds."""

    confirmed: bool
    deadline: int


@dataclass(frozen=True, slots=True)
class Matchmaking:
    """`started_at` in milliseconds: since when the lobby has its place in the queue."""

    mode: str
    started_at: int
    queue_stats: QueueStats
    confirmation: Confirmation | None = None


@dataclass(frozen=True, slots=True)
class LobbyView:
    """The API page's Lobby. Times in milliseconds. `server` holds columns of the Server row: instance_id, name, status,
    region, network_ports, compute_size, version_tag, version, created_at, updated_at, started_at, match_id."""

    id: str
    code: str
    config: str
    name: str
    status: Status
    host: str
    max_players: int
    region: str
    is_private: bool
    allow_late_join: bool
    settings: State
    players: tuple[PlayerView, ...]
    created_at: int
    updated_at: int
    version: int
    server: State | None = None
    matchmaking: Matchmaking | None = None
    match_id: str | None = None

    @property
    def current_players(self) -> int:
        return len(self.players)

    def has(self, player_id: str) -> bool:
        return any(player.id == player_id for player in self.players)


@dataclass(frozen=True, slots=True)
class LobbyPage:
    lobbies: list[LobbyView]
    total: int
    limit: int
    offset: int


EventType = Literal["connected", "lobby_updated", "queue_stats", "lobby_deleted"]


@dataclass(frozen=True, slots=True)
class LobbyEvent:
    """What a stream sends. `id` is what `Last-Event-ID` may hold later; None: nothing to go on from.

    `lobby` with connected and lobby_updated, `stats` with queue_stats; lobby_deleted has its `lobby_id` only.
    """

    type: EventType
    lobby_id: str
    id: str | None = None
    lobby: LobbyView | None = None
    stats: QueueStats | None = None


# What callers give --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewLobby:
    """A lobby as asked for. None: the config's default. `force_fresh`: a lobby that the caller hosts gives way."""

    name: str
    max_players: int | None = None
    region: str | None = None
    is_private: bool = False
    allow_late_join: bool = True
    settings: State = field(default_factory=dict[str, Any])
    state: State | None = None
    force_fresh: bool = False


@dataclass(frozen=True, slots=True)
class LobbyChange:
    """What the host changes; None stays as it is. `settings` are merged, one level deep; `host`: who is it next."""

    name: str | None = None
    max_players: int | None = None
    is_private: bool | None = None
    allow_late_join: bool | None = None
    region: str | None = None
    settings: State | None = None
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a team did: 1 is the best rank, equal ranks are a draw."""

    players: tuple[str, ...]
    rank: int


@dataclass(frozen=True, slots=True)
class LobbyQuery:
    """Which lobbies to list, newest first: public ones, unless private ones are wanted too."""

    region: str | None = None
    status: str | None = None
    limit: int = 50
    offset: int = 0
    include_private: bool = False
