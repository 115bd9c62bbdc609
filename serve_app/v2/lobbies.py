"""Legacy lobbies: `/lobbies` and `/lobbies-sse`, at the root and under v2 (docs/lobbies-api.md)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from starlette.responses import Response

from fleet.errors import BadRequest, Conflict, Forbidden, NotFound
from fleet.lobbies.model import LobbyEvent, LobbyQuery, LobbyView
from serve_app.json import json_response
from serve_app.policy import Caller, Policy
from serve_app.v2.face import PREFIX
from serve_app.v2.lobby_desk import ConfigName, Desk, TheDesk
from serve_app.v2.lobby_schemas import (
    LegacyJoinIn,
    LegacyLobbyIn,
    LegacyLobbyOut,
    LegacyPlayerIn,
    LegacyUpdateIn,
    legacy_lobby_view,
)
from serve_app.v2.route import LegacyLobbyRoute, lobby_errors
from serve_app.v3.lobby_events import LobbyStream
from serve_app.v3.lobby_schemas import NO_CONTROLS, AnyPlayer
from serve_app.v3.sse import EVENT_SCHEMA, message

router = APIRouter(prefix=PREFIX, tags=["Lobbies"], route_class=LegacyLobbyRoute)
MAY_CALL: Policy = {
    "legacy_list_lobbies": Caller.CLIENT,
    "legacy_get_lobby": Caller.CLIENT,
    "legacy_lobby_players": Caller.CLIENT,
    "legacy_create_lobby": Caller.PLAYER,
    "legacy_update_lobby": Caller.PLAYER,
    "legacy_delete_lobby": Caller.PLAYER,
    "legacy_join_by_code": Caller.PLAYER,
    "legacy_join_lobby": Caller.PLAYER,
    "legacy_remove_player": Caller.PLAYER,
    "legacy_heartbeat": Caller.PLAYER,
    "legacy_lobby_events": Caller.PLAYER,
}

MOST_LISTED = 1000  # there are no pages
AnyId = Annotated[str, Path(min_length=1, max_length=128)]


def _shown(desk: Desk, config: str, lobby: LobbyView, status: int = 200) -> Response:
    return json_response(legacy_lobby_view(lobby, desk.config(config).timeout), status)


@router.get("/lobbies", response_model=list[LegacyLobbyOut], responses=lobby_errors(), summary="List lobbies")
async def legacy_list_lobbies(
    desk: TheDesk,
    config: ConfigName,
    public: Annotated[bool, Query(description="Only public ones; a client key sees no others")] = False,
) -> Response:
    """The lobbies of a config, newest first."""
    private = desk.caller.is_server and not public
    query = LobbyQuery(limit=MOST_LISTED, include_private=private)
    page = await desk.context.lobbies.page(desk.project_id, config, query)
    timeout_s = desk.config(config).timeout
    return json_response([legacy_lobby_view(lobby, timeout_s) for lobby in page.lobbies])


@router.post(
    "/lobbies", status_code=201, response_model=LegacyLobbyOut, responses=lobby_errors(403, 413), summary="Create"
)
async def legacy_create_lobby(desk: TheDesk, config: ConfigName, body: LegacyLobbyIn) -> Response:
    """`host` makes the lobby and is in it."""
    await desk.is_player(body.host)
    try:
        made = await desk.context.lobbies.create(desk.project_id, config, body.host, body.new())
    except Conflict as error:
        raise BadRequest(error.detail, error=error.error) from None
    return _shown(desk, config, made, 201)


@router.get("/lobbies/{id}", response_model=LegacyLobbyOut, responses=lobby_errors(404), summary="Get a lobby")
async def legacy_get_lobby(desk: TheDesk, config: ConfigName, id: AnyId) -> Response:
    """By its id, or by the id of a player who is in it."""
    lobby = await desk.by_any_id(config, id)
    await desk.sign_of_life(config, lobby)
    return _shown(desk, config, lobby)


@router.put(
    "/lobbies/{id}",
    response_model=LegacyLobbyOut,
    responses=lobby_errors(403, 404, 409, 413),
    summary="Change a lobby, start, look for a match",
)
async def legacy_update_lobby(desk: TheDesk, config: ConfigName, id: AnyId, body: LegacyUpdateIn) -> Response:
    """State of players, settings, matchmaking, status and host, in this order. All but one's own state is the
    host's."""
    return _shown(desk, config, await desk.update(config, id, body))


@router.delete("/lobbies/{id}", status_code=204, responses=lobby_errors(403, 404), summary="Delete a lobby")
async def legacy_delete_lobby(
    desk: TheDesk, config: ConfigName, id: AnyId, body: LegacyPlayerIn | None = None
) -> Response:
    """By its host, or by the project's server key."""
    if body is not None:
        lobby = await desk.in_lobby(config, id, body.playerId)
        if lobby.host != body.playerId and not desk.caller.is_server:
            raise Forbidden("Only the host may delete the lobby.", error="Not host")
    elif not desk.caller.is_server:
        raise BadRequest("Say who asks: playerId in the body.")
    await desk.context.lobbies.delete(desk.project_id, config, id)
    return Response(status_code=204)


@router.post(
    "/lobbies/code/{code}/players",
    response_model=LegacyLobbyOut,
    responses=lobby_errors(403, 413),
    summary="Join by code",
)
async def legacy_join_by_code(
    desk: TheDesk,
    config: ConfigName,
    code: Annotated[str, Path(min_length=1, max_length=64)],
    body: LegacyJoinIn,
) -> Response:
    """400 for an unknown code, too."""
    await desk.is_player(body.playerId)
    try:
        joined = await desk.context.lobbies.join(desk.project_id, config, body.playerId, code=code, state=body.state())
    except (NotFound, Conflict) as error:
        raise BadRequest(error.detail, error=error.error) from None
    return _shown(desk, config, joined)


@router.get("/lobbies/{id}/players", response_model=list[str], responses=lobby_errors(404), summary="Ids of players")
async def legacy_lobby_players(desk: TheDesk, config: ConfigName, id: AnyId) -> Response:
    """In the order in which they came."""
    lobby = await desk.context.lobbies.get(desk.project_id, config, id)
    return json_response([player.id for player in lobby.players])


@router.post(
    "/lobbies/{id}/players", response_model=LegacyLobbyOut, responses=lobby_errors(403, 404, 413), summary="Join"
)
async def legacy_join_lobby(desk: TheDesk, config: ConfigName, id: AnyId, body: LegacyJoinIn) -> Response:
    """400 if it is full, or the player is in a lobby."""
    await desk.is_player(body.playerId)
    try:
        joined = await desk.context.lobbies.join(
            desk.project_id, config, body.playerId, lobby_id=id, state=body.state()
        )
    except Conflict as error:
        raise BadRequest(error.detail, error=error.error) from None
    return _shown(desk, config, joined)


@router.delete(
    "/lobbies/{id}/players/{playerId:path}",
    response_model=LegacyLobbyOut,
    responses={**lobby_errors(403, 404), 204: {"description": "The lobby is gone with its last player"}},
    summary="Leave, or kick",
)
async def legacy_remove_player(
    desk: TheDesk,
    config: ConfigName,
    id: AnyId,
    player_id: Annotated[AnyPlayer, Path(alias="playerId")],
    requester: Annotated[AnyPlayer, Query(alias="requesterId")],
    is_kick: Annotated[bool, Query(alias="isKick", description="Implied: whoever removes another kicks")] = False,
) -> Response:
    """A player leaves by their own id; the host removes others."""
    lobby = await desk.in_lobby(config, id, requester)
    if not lobby.has(player_id):
        raise NotFound(f"Player '{player_id[:64]}' is not in this lobby.", error="Player not found")
    lobbies = desk.context.lobbies
    if player_id != requester or is_kick:
        return _shown(desk, config, await lobbies.kick(desk.project_id, config, requester, player_id))
    rest = await lobbies.leave(desk.project_id, config, player_id)
    return Response(status_code=204) if rest is None else _shown(desk, config, rest)


@router.post("/lobbies/{id}/heartbeat", responses=lobby_errors(403, 404), summary="Still here")
async def legacy_heartbeat(desk: TheDesk, config: ConfigName, id: AnyId, body: LegacyPlayerIn) -> Response:
    """For players without an open stream."""
    await desk.in_lobby(config, id, body.playerId)
    await desk.context.lobbies.heartbeat(desk.project_id, config, body.playerId)
    return json_response({"status": "ok"})


@router.get(
    "/lobbies-sse/{id}/events",
    responses={
        **lobby_errors(403, 404, 429),
        200: {"description": "Events", "content": {"text/event-stream": {"schema": EVENT_SCHEMA}}},
    },
    response_class=Response,
    summary="A lobby, live",
)
async def legacy_lobby_events(
    desk: TheDesk,
    id: AnyId,
    player_id: Annotated[AnyPlayer, Query(alias="player-id")],
    config: Annotated[str, Query(alias="lobby-config", min_length=1, max_length=100, pattern=NO_CONTROLS)] = "Default",
    last_event_id: Annotated[str | None, Header(max_length=128)] = None,
    timeout_s: Annotated[float, Query(alias="timeout", gt=0, le=86_400, description="End after so long")] = 3600,
) -> Response:
    """`connected`, `lobby:updated`, `lobby:deleted`. The open stream is the player's sign of life."""
    await desk.in_lobby(config, id, player_id)
    stream = LobbyStream(desk.context, desk.caller, config, player_id, timeout_s)
    seconds = desk.config(config).timeout

    async def rendered(events: AsyncGenerator[LobbyEvent]) -> AsyncGenerator[bytes]:
        async with aclosing(events):
            async for event in events:
                if (text := _rendered(event, seconds)) is not None:
                    yield text

    return await stream.response(last_event_id, rendered)


def _rendered(event: LobbyEvent, timeout_s: float) -> bytes | None:
    """The event as old clients know it; None for what they do not know."""
    if event.type == "lobby_deleted":
        return message("lobby:deleted", {"lobbyId": event.lobby_id}, event.id)
    if event.lobby is None:
        return None
    view = legacy_lobby_view(event.lobby, timeout_s)
    if event.type == "connected":
        return message("connected", {"message": "Connected to the lobby", "lobby": view}, event.id)
    return message("lobby:updated", view, event.id)
