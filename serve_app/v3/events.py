"""What happens in the project, as server-sent events.

event: server.running
id: <position; send it back as Last-Event-ID to go on>
data: {"id":…,"type":"server.running","kind":"server","subject":…,"at":…,"region":…,"data":{…}}
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

import structlog
from fastapi import APIRouter, Header, Query
from starlette.requests import Request
from starlette.responses import Response

from fleet.events.kept import check_kept
from fleet.events.model import Cursor, EventFilter
from fleet.events.stream import follow
from serve_app.auth import Context, ServerKey
from serve_app.context import AppContext
from serve_app.policy import Caller, Policy
from serve_app.shares import hold
from serve_app.v3.common import errors
from serve_app.v3.sse import EVENT_SCHEMA, OPEN, event_stream, message

log = structlog.get_logger(__name__)
router = APIRouter(prefix="/api/v3", tags=["Events"])
MAY_CALL: Policy = {
    "events": Caller.SERVER,
}

Words = Annotated[list[str] | None, Query(max_length=64)]


@router.get(
    "/events",
    responses={
        **errors(400, 401, 403, 410),
        200: {
            "description": "A stream of events, each with an id to go on from",
            "content": {"text/event-stream": {"schema": EVENT_SCHEMA}},
        },
    },
    response_class=Response,
    summary="Everything that happens in the project",
)
async def events(
    request: Request,
    caller: ServerKey,
    context: Context,
    kind: Words = None,
    type: Words = None,
    after: Annotated[str | None, Query(max_length=128, description="Go on after this event's stream id")] = None,
    include_pool: Annotated[bool, Query(description="Also of pool servers that nobody has claimed")] = False,
    timeout_s: Annotated[
        float, Query(alias="timeout", gt=0, le=86_400, description="End the stream after so many seconds")
    ] = 3600,
    last_event_id: Annotated[str | None, Header(max_length=128)] = None,
) -> Response:
    """Servers, builds, pools, lobbies, budgets and settings, as they change (an extension).

    Without a position it begins now. `kind` and `type` (both may be repeated, and may hold several, separated by
    commas) say what is wanted."""
    wanted = EventFilter.of(_words(kind) + _words(type), include_pool=include_pool)
    position = last_event_id or after
    start = Cursor.parse(position) if position else None
    if start is not None:
        await check_kept(context.store, start)
    place = hold(request, caller, "event_streams")
    return event_stream(_stream(context, caller.project_id, start, wanted, timeout_s), hold=place)


def _words(given: list[str] | None) -> list[str]:
    return [word.strip() for item in given or () for word in item.split(",") if word.strip()]


async def _stream(
    context: AppContext, project_id: str, start: Cursor | None, wanted: EventFilter, timeout_s: float
) -> AsyncIterator[bytes]:
    yield OPEN
    cursor = start
    try:
        most_s = min(timeout_s, context.settings.events.max_stream_s)
        async with aclosing(follow(context.store, context.tail, project_id, start, most_s)) as coming:
            async for event, cursor in coming:
                if event is None:
                    yield message("open", {"after": str(cursor)}, str(cursor))
                elif wanted.passes(event):
                    yield message(event.type, event.view(), str(cursor))
        detail = "This reader was too slow for what happened; go on from the last id."
        yield message("dropped", {"after": str(cursor), "detail": detail})
    except TimeoutError:
        yield message("end", {"after": str(cursor) if cursor else None})
    except Exception:
        # The answer has begun, so the error goes into the stream; the client resumes with Last-Event-ID.
        log.exception("event_stream_failed", project_id=project_id)
        yield message("error", {"error": "Internal error", "detail": "The stream broke; go on from the last id."})
