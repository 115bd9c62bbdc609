"""A player's lobby, live, as server-sent events.

event: lobby_updated
id: <send it back as Last-Event-ID to go on>
data: {…the whole Lobby…}

`connected` comes at once, then `lobby_updated` with every change, `queue_stats` every ten seconds in a queue, `ping`
every half minute; `lobby_deleted` is the last. The open stream is the player's sign of life. It also ends when the
player has left or was kicked (coming again is then 404), and when its reader is too slow.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated
from urllib.parse import quote, urlencode

import orjson
import structlog
from fastapi import APIRouter, Header, Query
from sse_starlette.event import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from fleet.errors import FleetError
from fleet.lobbies.model import LobbyEvent, LobbyView
from fleet.times import iso
from serve_app.auth import Context
from serve_app.context import AppContext
from serve_app.json import StrictJsonRoute, json_response
from serve_app.player_streams import OpenStream
from serve_app.players import Player, ThePlayer
from serve_app.stream_query import Ticket
from serve_app.v3.common import errors
from serve_app.v3.lobbies import Config
from serve_app.v3.lobby_schemas import EmptyIn, EventsTicketOut, lobby_view, stats_view
from serve_app.v3.sse import EVENT_SCHEMA, event_stream, message, text_message

log = structlog.get_logger(__name__)
router = APIRouter(prefix="/api/v3/lobbies/{config}", tags=["Lobbies"], route_class=StrictJsonRoute)

PING_S = 30.0
PING = ServerSentEvent(event="ping", data="", sep="\n")
_MAX_ID = 128


@router.get(
    "/me/events",
    responses={
        **errors(401, 403, 404),
        200: {
            "description": "A stream of events; those about the lobby carry an id to go on from",
            "content": {"text/event-stream": {"schema": EVENT_SCHEMA}},
        },
    },
    response_class=Response,
    summary="My lobby, live",
)
async def my_events(
    config: Config,
    player: ThePlayer,
    context: Context,
    last_event_id: Annotated[str | None, Header(max_length=_MAX_ID)] = None,
    after: Annotated[str | None, Query(max_length=_MAX_ID, description="Instead of Last-Event-ID")] = None,
    timeout_s: Annotated[
        float, Query(alias="timeout", gt=0, le=86_400, description="End the stream after so many seconds")
    ] = 3600,
) -> Response:
    """Server-sent events: `connected`, `lobby_updated`, `queue_stats`, `lobby_deleted`, `ping`.

    Browsers' EventSource, which sends no headers, gets a `ticket` from `events-token`, or puts `api-key` (a client
    key), `player-id` and `player-token` into the query."""
    most_s = min(timeout_s, context.settings.events.max_stream_s)
    context.player_streams.check_room(player.project_id)
    coming = context.lobby_feed.follow(player.project_id, config, player.id, last_event_id or after)
    first = await anext(coming)  # a player without a lobby hears so before the stream begins
    return event_stream(_stream(context, config, player, first, coming, most_s), ping_s=PING_S, ping=PING)


@router.post(
    "/me/events-token",
    response_model=EventsTicketOut,
    responses=errors(400, 401, 403),
    summary="A ticket for my lobby's stream",
)
async def events_token(
    request: Request, config: Config, player: ThePlayer, context: Context, body: EmptyIn | None = None
) -> Response:
    """For an EventSource: the URL with a ticket that opens this player's stream, and nothing else, for an hour."""
    ticket, until = context.tickets.issue(Ticket(request.headers["api-key"], config, player.id))
    path = f"/api/v3/lobbies/{quote(config, safe='')}/me/events"
    url = f"{path}?{urlencode({'ticket': ticket})}"
    return json_response({"ticket": ticket, "expiresAt": iso(int(until * 1000)), "url": url})


async def _stream(
    context: AppContext,
    config: str,
    player: Player,
    first: LobbyEvent,
    coming: AsyncGenerator[LobbyEvent],
    most_s: float,
) -> AsyncIterator[bytes]:
    who = (player.project_id, config, player.id)
    place = context.player_streams.enter(who, most_s)
    try:
        async with aclosing(coming):
            yield rendered(first)
            async for event in _until_it_ends(coming, place):
                yield rendered(event)
    except FleetError as error:
        # The answer has begun; the client comes again, and then hears it as a status.
        log.warning("lobby_stream_failed", project_id=player.project_id, error=error.detail)
    finally:
        context.player_streams.leave(who, place)


async def _until_it_ends(coming: AsyncGenerator[LobbyEvent], place: OpenStream) -> AsyncIterator[LobbyEvent]:
    while True:
        try:
            async with place.time_left():
                event = await anext(coming)
        except (StopAsyncIteration, TimeoutError):
            return
        yield event


def rendered(event: LobbyEvent) -> bytes:
    """The event as it goes out."""
    if event.lobby is not None:
        return text_message(event.type, _whole.text(event.lobby), event.id)
    if event.stats is not None:
        return message(event.type, stats_view(event.stats), event.id)
    return message(event.type, {"id": event.lobby_id}, event.id)


class _Rendered:
    """The JSON of lobbies as they were just told: all players of a lobby get the same bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[int, tuple[LobbyView, bytes]] = OrderedDict()

    def text(self, lobby: LobbyView) -> bytes:
        kept = self._kept.get(id(lobby))
        if kept is not None and kept[0] is lobby:
            return kept[1]
        text = orjson.dumps(lobby_view(lobby))
        if len(self._kept) >= self._most:
            self._kept.popitem(last=False)
        self._kept[id(lobby)] = (lobby, text)
        return text


_whole = _Rendered(256)
