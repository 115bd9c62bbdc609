"""A server's log as server-sent events.

    event: log
    id: <token; send it back as Last-Event-ID to go on>
    data: {"timestamp":…,"message":…,"level":…,"instance":…,"region":…}

`event: end` closes. The rest is as for every stream (`sse.py`).
"""

from collections.abc import AsyncIterator

import structlog
from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request

from fleet.errors import FleetError
from fleet.node.runtime import LogLine
from fleet.projects.model import Principal
from fleet.servers.service import ServerService
from fleet.store.tables import Server
from fleet.times import iso
from serve_app.shares import held, hold
from serve_app.v3.log_position import decode_token, encode_token
from serve_app.v3.server_schemas import log_view
from serve_app.v3.sse import OPEN, event_stream, message

log = structlog.get_logger(__name__)
MAX_BACKLOG = 1000
_MILLISECONDS = len("2026-01-31T12:00:00.123")


async def follow_response(
    request: Request,
    servers: ServerService,
    caller: Principal,
    instance_id: str,
    after: str | None,
    since_ms: int | None,
) -> EventSourceResponse:
    """The stream, from the token or time given, or from the client's Last-Event-ID."""
    last = request.headers.get("last-event-id")
    if last:
        after, since_ms = decode_token(last), None
    server = await servers.get(caller, instance_id)
    backlog: list[LogLine] = []
    if since_ms is not None:
        with held(request, caller, "log_reads"):
            _, page = await servers.logs(caller, instance_id, None, since_ms, MAX_BACKLOG)
        backlog = page.lines
        after = backlog[-1].token if backlog else None
    place = hold(request, caller, "log_streams")
    batches = _since(servers.follow(server, after), since_ms)
    return event_stream(_events(server, backlog, batches), hold=place)


async def _events(
    server: Server, backlog: list[LogLine], batches: AsyncIterator[list[LogLine]]
) -> AsyncIterator[bytes]:
    yield OPEN
    if backlog:
        yield _render(server, backlog)
    try:
        async for batch in batches:
            yield _render(server, batch)
        yield message("end", {})
    except FleetError as error:
        # The answer has begun, so the error goes into the stream; the client resumes with Last-Event-ID.
        log.warning("log_stream_failed", instance_id=server.instance_id, error=error.detail)
        yield message("error", {"error": error.error, "detail": error.detail})
    except Exception:  # the database is away, for one
        log.exception("log_stream_failed", instance_id=server.instance_id)
        yield message("error", {"error": "Internal error", "detail": "The stream broke; go on from the last id."})


async def _since(batches: AsyncIterator[list[LogLine]], since_ms: int | None) -> AsyncIterator[list[LogLine]]:
    first = (iso(since_ms) or "")[:_MILLISECONDS]
    async for batch in batches:
        yield [line for line in batch if line.at[:_MILLISECONDS] >= first] if first else batch


def _render(server: Server, lines: list[LogLine]) -> bytes:
    return b"".join(message("log", log_view(line, server), encode_token(line.token)) for line in lines)
