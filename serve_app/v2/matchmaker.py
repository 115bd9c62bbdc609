"""The legacy matchmaker: tickets and matches, over lobbies of one player (docs/lobbies-api.md)."""

import secrets
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from fleet.errors import BadRequest, Conflict, FleetError, Forbidden, NotFound
from fleet.lobbies.history import find_match, matches_under_way
from fleet.lobbies.match import Match
from fleet.lobbies.model import LobbyQuery, LobbyView, NewLobby
from serve_app.json import json_response
from serve_app.policy import Caller, Policy
from serve_app.v2.face import PREFIX
from serve_app.v2.lobby_desk import Desk, TheDesk
from serve_app.v2.matchmaker_schemas import (
    CancelledOut,
    MatchDeletedOut,
    MatchOut,
    PlayerStatusOut,
    TicketIn,
    TicketOut,
    Word,
    match_view,
    ticket_view,
)
from serve_app.v2.route import LegacyLobbyRoute, lobby_errors

router = APIRouter(prefix=f"{PREFIX}/matchmaker", tags=["Matchmaking"], route_class=LegacyLobbyRoute)
MAY_CALL: Policy = {
    "legacy_list_tickets": Caller.CLIENT,
    "legacy_ticket_status": Caller.CLIENT,
    "legacy_list_matches": Caller.CLIENT,
    "legacy_create_ticket": Caller.PLAYER,
    "legacy_cancel_ticket": Caller.PLAYER,
    "legacy_delete_match": Caller.SERVER,
}

MOST_LISTED = 1000
Name = Annotated[Word, Query(alias="matchmaker_name")]
MatchmakerId = Annotated[Word, Query(alias="matchmaker_id", description="Given back as it is")]
AnyId = Annotated[str, Path(min_length=1, max_length=128)]


def _mode(desk: Desk, name: str, preferred: list[str]) -> str:
    """The mode to play: the first of the preferred ones that there is, else the matchmaker's first."""
    modes = desk.config(name).modes
    if not modes:
        raise NotFound(f"There is no matchmaker '{name[:64]}': no lobby config with modes has that name.")
    return next((mode for mode in preferred if mode in modes), next(iter(modes)))


@router.post(
    "/tickets", status_code=201, response_model=TicketOut, responses=lobby_errors(403, 404, 413), summary="Queue"
)
async def legacy_create_ticket(desk: TheDesk, body: TicketIn) -> Response:
    """One player enters the queue. With the ticket's id its fate is asked for."""
    mode = _mode(desk, body.matchmaker_name, body.preferred_modes or [])
    player = body.player_id or f"anonymous-{secrets.token_hex(8)}"
    if body.player_id is not None:
        await desk.is_player(player)
    state = body.state()
    new = NewLobby(name=f"Ticket of {player}"[:100], region=state["regions"][0], is_private=True, state=state)
    where = (desk.project_id, body.matchmaker_name, player)
    try:
        await desk.context.lobbies.create(*where, new)
    except Conflict as error:
        raise BadRequest(error.detail, error=error.error) from None
    try:
        lobby = await desk.context.lobbies.start_matchmaking(*where, mode)
    except FleetError:
        await desk.context.lobbies.leave(*where)
        raise
    return json_response(ticket_view(lobby, player, body.matchmaker_id or body.matchmaker_name), 201)


@router.get("/tickets", response_model=list[TicketOut], responses=lobby_errors(404), summary="Who is in the queue")
async def legacy_list_tickets(desk: TheDesk, name: Name, matchmaker_id: MatchmakerId) -> Response:
    """Those of all modes, newest first."""
    _mode(desk, name, [])
    query = LobbyQuery(status="in_queue", limit=MOST_LISTED, include_private=True)
    page = await desk.context.lobbies.page(desk.project_id, name, query)
    queued = [(lobby, player.id) for lobby in page.lobbies for player in lobby.players]
    return json_response([ticket_view(lobby, player, matchmaker_id) for lobby, player in queued])


@router.get(
    "/tickets/{id}",
    response_model=TicketOut | PlayerStatusOut,
    responses=lobby_errors(404),
    summary="A ticket, or what a player does",
)
async def legacy_ticket_status(
    desk: TheDesk,
    id: AnyId,
    matchmaker_id: MatchmakerId,
    name: Annotated[Word | None, Query(alias="matchmaker_name", description="Else the id is taken for it")] = None,
    type: Annotated[Literal["ticket", "player"], Query()] = "ticket",
) -> Response:
    """Whoever asks for a ticket still wants it: that is a sign of life."""
    name = name or matchmaker_id
    if type == "player":
        return json_response(await _player_status(desk, name, id, matchmaker_id))
    lobby = await desk.context.lobbies.get(desk.project_id, name, id)
    await desk.sign_of_life(name, lobby)
    ticket = ticket_view(lobby, lobby.host, matchmaker_id)
    if ticket["status"] == "matched" and lobby.match_id is not None:
        ticket["match"] = await _match(desk, name, lobby.match_id, matchmaker_id)
    return json_response(ticket)


async def _player_status(desk: Desk, name: str, player_id: str, matchmaker_id: str) -> dict[str, Any]:
    try:
        lobby = await desk.context.lobbies.mine(desk.project_id, name, player_id)
    except NotFound:
        return {"status": "none", "matchmaker_name": name}
    if lobby.status == "in_queue":
        ticket = ticket_view(lobby, player_id, matchmaker_id)
        return {"status": "in_queue", "matchmaker_name": name, "ticket": ticket}
    if lobby.match_id is None:
        return {"status": "none", "matchmaker_name": name}
    match = await _match(desk, name, lobby.match_id, matchmaker_id)
    return {"status": "matched", "matchmaker_name": name, "match": match}


@router.delete(
    "/tickets/{id}", response_model=CancelledOut, responses=lobby_errors(403, 404), summary="Leave queue or match"
)
async def legacy_cancel_ticket(desk: TheDesk, id: AnyId, name: Name, matchmaker_id: MatchmakerId) -> Response:
    """The ticket is gone. A match goes on with those who are left, or ends."""
    lobby = await desk.context.lobbies.get(desk.project_id, name, id)
    await desk.is_player(lobby.host)
    await desk.context.lobbies.leave(desk.project_id, name, lobby.host)
    if lobby.match_id is None:
        return json_response({"message": "Ticket cancelled", "status": "cancelled", "ticket_id": id})
    left = await find_match(desk.context.store, desk.project_id, lobby.match_id)
    status = "active" if left.status in ("found", "starting", "active") else "closed"
    answer = {"message": "Player removed from match", "status": "removed", "ticket_id": id}
    return json_response({**answer, "match_id": lobby.match_id, "match_status": status})


@router.get("/matches", response_model=list[MatchOut], responses=lobby_errors(404), summary="Matches under way")
async def legacy_list_matches(desk: TheDesk, name: Name, matchmaker_id: MatchmakerId) -> Response:
    """Newest first."""
    _mode(desk, name, [])
    found = await matches_under_way(desk.context.store, desk.project_id, name)
    return json_response([await _shown(desk, name, match, matchmaker_id) for match in found])


@router.delete("/matches/{id}", response_model=MatchDeletedOut, responses=lobby_errors(403, 404), summary="End a match")
async def legacy_delete_match(desk: TheDesk, id: AnyId, name: Name, matchmaker_id: MatchmakerId) -> Response:
    """Its server is stopped and its tickets are gone. For the server key."""
    if not desk.caller.is_server:
        raise Forbidden("Matches are ended by the project's server key.")
    match = await find_match(desk.context.store, desk.project_id, id)
    lobbies = [lobby for team in await _teams(desk, name, match) for lobby in team]
    for lobby in lobbies:
        await desk.context.lobbies.delete(desk.project_id, name, lobby.id)
    answer = {"message": "Match deleted", "match_id": id, "matchmaker_id": matchmaker_id}
    counts = {
        "player_count": sum(lobby.current_players for lobby in lobbies),
        "tickets_cleaned": len(lobbies),
        "missing_ticket_count": len(match.lobbies) - len(lobbies),
    }
    return json_response({**answer, **counts, "server_id": match.server_id or ""})


async def _match(desk: Desk, name: str, match_id: str, matchmaker_id: str) -> dict[str, Any]:
    match = await find_match(desk.context.store, desk.project_id, match_id)
    return await _shown(desk, name, match, matchmaker_id)


async def _shown(desk: Desk, name: str, match: Match, matchmaker_id: str) -> dict[str, Any]:
    mode = desk.config(name).modes.get(match.mode)
    seats = sum(team.size for team in mode.shape.teams) if mode else 0
    view = match_view(match, await _teams(desk, name, match), matchmaker_id, seats)
    return {**view, "backfill": bool(mode and mode.allow_backfill)}


async def _teams(desk: Desk, name: str, match: Match) -> list[list[LobbyView]]:
    """The lobbies of each side that are still there."""
    teams: list[list[LobbyView]] = []
    for side in match.sides:
        team: list[LobbyView] = []
        for lobby_id in side.lobbies:
            try:
                team.append(await desk.context.lobbies.get(desk.project_id, name, lobby_id))
            except NotFound:
                continue
        teams.append(team)
    return teams
