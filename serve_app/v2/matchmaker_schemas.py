"""What the old matchmaker took and gave. A ticket is a lobby of one player, so its id is the lobby's."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from fleet.lobbies.match import Match
from fleet.lobbies.model import LobbyView
from serve_app.v2.lobby_schemas import legacy_server_view
from serve_app.v3.lobby_schemas import NO_CONTROLS, AnyPlayer, Region

DEFAULT_BUILD = "default"
Word = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=NO_CONTROLS)]
TicketStatus = Literal["In Queue", "matched", "cancelled", "expired", "deleted", "abandoned"]


class TicketIn(BaseModel):
    matchmaker_name: Word = Field(description="Name of a lobby config with matchmaking modes")
    player_id: AnyPlayer | None = Field(default=None, description="Made up if left out")
    matchmaker_id: Word | None = None
    regions: Annotated[list[Region], Field(max_length=20)] | None = None
    elo: Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)] | None = None
    preferred_modes: Annotated[list[Word], Field(max_length=20)] | None = None
    gameBuild: Word | None = None

    def state(self) -> dict[str, Any]:
        """The player's state: what rules of the mode may look at."""
        state: dict[str, Any] = {"regions": self.regions or ["us-east"]}
        if self.elo is not None:
            state |= {"elo": self.elo, "mmr": self.elo}
        return state if self.gameBuild is None else {**state, "gameBuild": self.gameBuild}


class TicketOut(BaseModel):
    model_config = ConfigDict(extra="allow")
    ticket_id: str
    player_id: str
    matchmaker_id: str
    status: TicketStatus
    created_at: int
    regions: list[str]


class PlayerStatusOut(BaseModel):
    status: Literal["in_queue", "matched", "none"]
    matchmaker_name: str
    ticket: TicketOut | None = None
    match: dict[str, Any] | None = None


class MatchOut(BaseModel):
    model_config = ConfigDict(extra="allow")
    match_id: str
    matchmaker_id: str
    gameBuild: str
    status: Literal["created", "active", "ended", "failed"]
    created_at: int
    backfill: bool
    maxPlayers: int
    currentPlayers: int
    players: list[TicketOut]
    teams: list[list[TicketOut]]


class CancelledOut(BaseModel):
    message: str
    status: Literal["cancelled", "removed"]
    ticket_id: str
    match_id: str = ""
    match_status: Literal["active", "closed"] = "closed"


class MatchDeletedOut(BaseModel):
    message: str
    match_id: str
    matchmaker_id: str
    player_count: int
    tickets_cleaned: int
    missing_ticket_count: int
    server_id: str


_MATCH_STATUS = {"found": "created", "starting": "created", "active": "active", "failed": "failed"}


def ticket_status(lobby: LobbyView) -> TicketStatus:
    """Waiting again means that the queue or the match is over without it."""
    if lobby.status == "in_queue":
        return "In Queue"
    return "expired" if lobby.status == "waiting" else "matched"


def ticket_view(lobby: LobbyView, player_id: str, matchmaker_id: str) -> dict[str, Any]:
    """The ticket of a player of this lobby."""
    state = next((one.state for one in lobby.players if one.id == player_id), None) or {}
    view = {
        "ticket_id": lobby.id,
        "player_id": player_id,
        "matchmaker_id": matchmaker_id,
        "status": ticket_status(lobby),
        "created_at": lobby.created_at,
        "regions": state.get("regions") or [lobby.region],
    }
    optional = {"elo": state.get("elo"), "gameBuild": state.get("gameBuild")}
    return view | {name: value for name, value in optional.items() if value is not None}


def match_view(match: Match, teams: Sequence[Sequence[LobbyView]], matchmaker_id: str, seats: int) -> dict[str, Any]:
    tickets = [
        [ticket_view(lobby, player.id, matchmaker_id) for lobby in team for player in lobby.players] for team in teams
    ]
    players = [ticket for team in tickets for ticket in team]
    server = next((lobby.server for team in teams for lobby in team if lobby.server), None)
    build = next((one["gameBuild"] for one in players if "gameBuild" in one), DEFAULT_BUILD)
    view = {
        "match_id": match.id,
        "matchmaker_id": matchmaker_id,
        "gameBuild": build,
        "status": _MATCH_STATUS.get(match.status, "ended"),
        "created_at": match.created_at,
        "backfill": False,
        "maxPlayers": max(seats, len(players)),
        "currentPlayers": len(players),
        "players": players,
        "teams": tickets,
    }
    return view if server is None else {**view, "server": _server(server)}


def _server(server: dict[str, Any]) -> dict[str, Any]:
    view = legacy_server_view(server)
    ports = view["network_ports"]
    code = f"{ports[0]['host']}:{ports[0]['external_port']}" if ports else ""
    return {**view, "connect_code": code, "game_build": view["version_tag"]}
