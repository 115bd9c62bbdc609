"""A player's lobby, live, as server-sent events.

event: lobby_updated
id: <send it back as Last-Event-ID to go on>
data: {…the whole Lobby…}

`connected` comes at once, then `lobby_updated` with every change, `queue_stats` every ten seconds in a queue, `ping`
every half minute; `lobby_deleted` is the last. The open stream is the player's sign of life. It also ends when the
player has left or was kicked (coming again is then 404), and when its reader is too slow.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
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
from fleet.projects.model import Principal
from fleet.times import iso
from serve_app.auth import Context
from serve_app.context import AppContext
from serve_app.json import StrictJsonRoute, json_response
from serve_app.players import ThePlayer
from serve_app.policy import Caller, Policy
from serve_app.stream_query import Ticket
from serve_app.v3.common import errors
from serve_app.v3.lobbies import Config
from serve_app.v3.lobby_schemas import EmptyIn, EventsTicketOut, lobby_view, stats_view
from serve_app.v3.sse import EVENT_SCHEMA, event_stream, message, text_message

log = structlog.get_logger(__name__)
router = APIRouter(prefix="/api/v3/lobbies/{config}", tags=["Lobbies"], route_class=StrictJsonRoute)
MAY_CALL: Policy = {
    "my_events": Caller.PLAYER,
    "events_token": Caller.PLAYER,
}

PING_S = 30.0
PING = ServerSentEvent(event="ping", data="", sep="\n")
_MAX_ID = 128
Render = Callable[[AsyncGenerator[LobbyEvent]], AsyncGenerator[bytes]]


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
    stream = LobbyStream(context, player.caller, config, player.id, timeout_s)
    return await stream.response(last_event_id or after, _rendered_all)


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


class LobbyStream:
    """One player's stream, from its opening to its end."""

    def __init__(self, context: AppContext, caller: Principal, config: str, player_id: str, most_s: float) -> None:
        self._context = context
        self._caller = caller
        self._who = (caller.project_id, config, player_id)
        self._most_s = min(most_s, context.settings.events.max_stream_s)

    async def response(self, last_event_id: str | None, render: Render) -> Response:
        """The stream; a player without a lobby hears so before it begins."""
        place = self._context.shares.take(self._caller.project_id, self._caller.plan, "player_streams")
        coming = self._context.lobby_feed.follow(*self._who, last_event_id)
        try:
            first = await anext(coming)
        except BaseException:
            place.release()
            raise
        return event_stream(render(self._events(first, coming)), ping_s=PING_S, ping=PING, hold=place)

    async def _events(self, first: LobbyEvent, coming: AsyncGenerator[LobbyEvent]) -> AsyncGenerator[LobbyEvent]:
        place = self._context.player_streams.enter(self._who, self._most_s)
        try:
            async with aclosing(coming):
                yield first
                while True:
                    async with place.time_left():
                        event = await anext(coming)
                    yield event
        except (StopAsyncIteration, TimeoutError):
            return
        except FleetError as error:
            # The answer has begun; the client comes again, and then hears it as a status.
            log.warning("lobby_stream_failed", project_id=self._who[0], error=error.detail)
        except Exception:
            log.exception("lobby_stream_failed", project_id=self._who[0])
        finally:
            self._context.player_streams.leave(self._who, place)


async def _rendered_all(events: AsyncGenerator[LobbyEvent]) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        async for event in events:
            yield rendered(event)


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
