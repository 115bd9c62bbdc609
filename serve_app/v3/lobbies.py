"""Lobbies: create, find, join, leave, change, play, and the project's own look at them. Live: lobby_events.py."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from fleet.errors import Forbidden
from fleet.lobbies.model import LobbyQuery, LobbyView
from fleet.lobbies.rules import MAX_STATE
from serve_app.auth import AnyKey, Context, ServerKey
from serve_app.edge import keep_answer
from serve_app.json import StrictJsonRoute, json_response
from serve_app.players import ThePlayer
from serve_app.policy import Caller, Policy
from serve_app.v3.common import errors
from serve_app.v3.lobby_schemas import (
    DELETED,
    NO_CONTROLS,
    AnyPlayer,
    EmptyIn,
    EndIn,
    HeartbeatOut,
    JoinIn,
    LobbyDeletedOut,
    LobbyIn,
    LobbyListOut,
    LobbyOut,
    LobbySettingsIn,
    QueueIn,
    StateIn,
    Status,
    bounded,
    lobby_view,
)

router = APIRouter(prefix="/api/v3/lobbies/{config}", tags=["Lobbies"], route_class=StrictJsonRoute)
MAY_CALL: Policy = {
    "list_lobbies": Caller.CLIENT,
    "create_lobby": Caller.PLAYER,
    "join_lobby": Caller.PLAYER,
    "my_lobby": Caller.PLAYER,
    "set_my_state": Caller.PLAYER,
    "leave_lobby": Caller.PLAYER,
    "heartbeat": Caller.PLAYER,
    "change_lobby": Caller.PLAYER,
    "kick_player": Caller.PLAYER,
    "start_game": Caller.PLAYER,
    "end_match": Caller.PLAYER,
    "start_matchmaking": Caller.PLAYER,
    "cancel_matchmaking": Caller.PLAYER,
    "confirm_match": Caller.PLAYER,
    "decline_match": Caller.PLAYER,
    "get_lobby": Caller.SERVER,
    "delete_lobby": Caller.SERVER,
}

Config = Annotated[
    str,
    Path(
        min_length=1,
        max_length=100,
        pattern=NO_CONTROLS,
        description="Name of a lobby config, e.g. `default`; one that the project does not have works with defaults",
    ),
]
_REFUSALS = errors(400, 401, 403, 404, 409, 413)


def _shown(lobby: LobbyView, status: int = 200) -> Response:
    return json_response(lobby_view(lobby), status)


# Finding, coming, going -------------------------------------------------------------------------------------------


@router.get("", response_model=LobbyListOut, responses=errors(401, 403), summary="List public lobbies")
async def list_lobbies(
    request: Request,
    config: Config,
    caller: AnyKey,
    context: Context,
    region: Annotated[str | None, Query(min_length=1, max_length=64, pattern=NO_CONTROLS)] = None,
    status: Annotated[Status | None, Query(description="Usual are `waiting`, `in_queue`, `in_game`")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
) -> Response:
    """Newest first. Private lobbies are never listed."""
    page = await context.lobbies.page(caller.project_id, config, LobbyQuery(region, status, limit, offset))
    keep_answer(request, caller)
    return json_response(
        {
            "lobbies": [lobby_view(lobby) for lobby in page.lobbies],
            "total": page.total,
            "limit": page.limit,
            "offset": page.offset,
            "hasMore": page.offset + len(page.lobbies) < page.total,
        }
    )


@router.post("", status_code=201, response_model=LobbyOut, responses=_REFUSALS, summary="Create a lobby")
async def create_lobby(config: Config, body: LobbyIn, player: ThePlayer, context: Context) -> Response:
    """The caller becomes its host. 409 while in another lobby of this config."""
    return _shown(await context.lobbies.create(player.project_id, config, player.id, body.new()), 201)


@router.post("/join", response_model=LobbyOut, responses=_REFUSALS, summary="Join a lobby")
async def join_lobby(config: Config, body: JoinIn, player: ThePlayer, context: Context) -> Response:
    """By id or code. 400 if it is full or takes nobody now, 409 while in another lobby of this config."""
    state = bounded(body.state, "state", MAX_STATE)
    return _shown(
        await context.lobbies.join(
            player.project_id, config, player.id, lobby_id=body.lobby_id, code=body.code, state=state
        )
    )


@router.get("/me", response_model=LobbyOut, responses=_REFUSALS, summary="My lobby")
async def my_lobby(config: Config, player: ThePlayer, context: Context) -> Response:
    """The lobby that the player is in; 404 if in none."""
    return _shown(await context.lobbies.mine(player.project_id, config, player.id))


@router.patch("/me", response_model=LobbyOut, responses=_REFUSALS, summary="Change my state")
async def set_my_state(config: Config, body: StateIn, player: ThePlayer, context: Context) -> Response:
    """Readiness, rating, role, regions, … Keys that are not given stay."""
    bounded(body.state, "state", MAX_STATE)
    return _shown(await context.lobbies.set_state(player.project_id, config, player.id, body.state))


@router.delete("/me", response_model=LobbyOut | LobbyDeletedOut, responses=_REFUSALS, summary="Leave my lobby")
async def leave_lobby(config: Config, player: ThePlayer, context: Context) -> Response:
    """The lobby without the player, or `lobby_deleted` for the last one. A host's role goes to the next player."""
    left = await context.lobbies.leave(player.project_id, config, player.id)
    return json_response(DELETED) if left is None else _shown(left)


@router.post("/me/heartbeat", response_model=HeartbeatOut, responses=_REFUSALS, summary="Still here")
async def heartbeat(config: Config, player: ThePlayer, context: Context, body: EmptyIn | None = None) -> Response:
    """For players without an open stream."""
    await context.lobbies.heartbeat(player.project_id, config, player.id)
    return json_response({"status": "ok"})


# The host's calls -------------------------------------------------------------------------------------------------


@router.patch("/me/settings", response_model=LobbyOut, responses=_REFUSALS, summary="Change my lobby")
async def change_lobby(config: Config, body: LobbySettingsIn, player: ThePlayer, context: Context) -> Response:
    """Host only, and not while in a game."""
    return _shown(await context.lobbies.change(player.project_id, config, player.id, body.change()))


@router.delete("/me/players/{playerId:path}", response_model=LobbyOut, responses=_REFUSALS, summary="Kick a player")
async def kick_player(
    config: Config,
    victim: Annotated[AnyPlayer, Path(alias="playerId", description="Who has to go")],
    player: ThePlayer,
    context: Context,
) -> Response:
    """Host only. The kicked player's stream closes."""
    return _shown(await context.lobbies.kick(player.project_id, config, player.id, victim))


@router.post("/me/start", response_model=LobbyOut, responses=_REFUSALS, summary="Start a server for my lobby")
async def start_game(config: Config, player: ThePlayer, context: Context, body: EmptyIn | None = None) -> Response:
    """Host only. Answers `starting`; `in_game` with the server follows, or `waiting` if there is none to be had."""
    return _shown(await context.lobbies.start(player.project_id, config, player.id))


@router.post("/me/end-match", response_model=LobbyOut, responses=_REFUSALS, summary="End my lobby's match")
async def end_match(config: Config, player: ThePlayer, context: Context, body: EndIn | None = None) -> Response:
    """Host only. The lobby waits again with its players, code and settings."""
    results = body.standings() if body else None
    if results is not None and not player.caller.is_server:
        raise Forbidden("Results come from the game's server, with the server key: players would all have won.")
    return _shown(await context.lobbies.end_match(player.project_id, config, player.id, results))


# Matchmaking ------------------------------------------------------------------------------------------------------


@router.post("/me/matchmaking", response_model=LobbyOut, responses=_REFUSALS, summary="Find a match")
async def start_matchmaking(config: Config, body: QueueIn, player: ThePlayer, context: Context) -> Response:
    """Host only: the whole lobby enters the mode's queue."""
    return _shown(await context.lobbies.start_matchmaking(player.project_id, config, player.id, body.mode))


@router.delete("/me/matchmaking", response_model=LobbyOut, responses=_REFUSALS, summary="Stop looking for a match")
async def cancel_matchmaking(config: Config, player: ThePlayer, context: Context) -> Response:
    """Host only. 409 once a match was found; that can be declined."""
    return _shown(await context.lobbies.cancel_matchmaking(player.project_id, config, player.id))


@router.post("/me/confirm-match", response_model=LobbyOut, responses=_REFUSALS, summary="Confirm a match")
async def confirm_match(config: Config, player: ThePlayer, context: Context, body: EmptyIn | None = None) -> Response:
    """Any member, for the lobby. The game starts when all lobbies of the match have."""
    return _shown(await context.lobbies.confirm_match(player.project_id, config, player.id))


@router.delete("/me/confirm-match", response_model=LobbyOut, responses=_REFUSALS, summary="Decline a match")
async def decline_match(config: Config, player: ThePlayer, context: Context) -> Response:
    """Any member. The match is off for all its lobbies."""
    return _shown(await context.lobbies.decline_match(player.project_id, config, player.id))


# The project's own back end ---------------------------------------------------------------------------------------

LobbyId = Annotated[str, Path(min_length=1, max_length=64)]


@router.get("/{lobby_id}", response_model=LobbyOut, responses=errors(401, 403, 404), summary="Get a lobby")
async def get_lobby(config: Config, lobby_id: LobbyId, caller: ServerKey, context: Context) -> Response:
    """Any lobby of the config, private ones too."""
    return _shown(await context.lobbies.get(caller.project_id, config, lobby_id))


@router.delete(
    "/{lobby_id}", response_model=LobbyDeletedOut, responses=errors(401, 403, 404, 409), summary="Delete a lobby"
)
async def delete_lobby(config: Config, lobby_id: LobbyId, caller: ServerKey, context: Context) -> Response:
    """Its players hear `lobby_deleted`; its server is stopped if nobody else plays there."""
    await context.lobbies.delete(caller.project_id, config, lobby_id)
    return json_response(DELETED)
