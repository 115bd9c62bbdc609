"""A server's log as server-sent events.

    event: log
    id: <token; send it back as Last-Event-ID to go on>
    data: {"timestamp":…,"message":…,"level":…,"instance":…,"region":…}

A comment line goes out every 15 s so that nothing between us and the client times out; `event: end` closes.
"""

import asyncio
from collections.abc import AsyncIterator

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import StreamingResponse

from fleet.errors import FleetError
from fleet.node.runtime import LogLine
from fleet.projects.model import Principal
from fleet.servers.service import ServerService
from fleet.store.tables import Server
from fleet.times import iso
from serve_app.v3.log_position import decode_token, encode_token
from serve_app.v3.server_schemas import log_view

log = structlog.get_logger(__name__)
PING_S = 15.0
MAX_BACKLOG = 1000
_MILLISECONDS = len("2026-01-31T12:00:00.123")


async def follow_response(
    request: Request,
    servers: ServerService,
    caller: Principal,
    instance_id: str,
    after: str | None,
    since_ms: int | None,
) -> StreamingResponse:
    """The stream, from the token or time given, or from the client's Last-Event-ID."""
    last = request.headers.get("last-event-id")
    if last:
        after, since_ms = decode_token(last), None
    server = await servers.get(caller, instance_id)
    backlog: list[LogLine] = []
    if since_ms is not None:
        _, page = await servers.logs(caller, instance_id, None, since_ms, MAX_BACKLOG)
        backlog = page.lines
        after = backlog[-1].token if backlog else None
    batches = _since(servers.follow(server, after), since_ms)
    return StreamingResponse(
        _events(server, backlog, batches),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


async def _events(
    server: Server, backlog: list[LogLine], batches: AsyncIterator[list[LogLine]]
) -> AsyncIterator[bytes]:
    yield b": open\n\n"
    if backlog:
        yield _render(server, backlog)
    try:
        async for batch in _with_pings(batches):
            yield _render(server, batch) if batch is not None else b": ping\n\n"
        yield b"event: end\ndata: {}\n\n"
    except FleetError as error:
        # The answer has begun, so the error goes into the stream; the client resumes with Last-Event-ID.
        log.warning("log_stream_failed", instance_id=server.instance_id, error=error.detail)
        yield b"event: error\ndata: " + orjson.dumps({"error": error.error, "detail": error.detail}) + b"\n\n"


async def _since(batches: AsyncIterator[list[LogLine]], since_ms: int | None) -> AsyncIterator[list[LogLine]]:
    first = (iso(since_ms) or "")[:_MILLISECONDS]
    async for batch in batches:
        yield [line for line in batch if line.at[:_MILLISECONDS] >= first] if first else batch


def _render(server: Server, lines: list[LogLine]) -> bytes:
    return b"".join(
        b"event: log\nid: %s\ndata: %s\n\n" % (encode_token(line.token).encode(), orjson.dumps(log_view(line, server)))
        for line in lines
    )


async def _with_pings(batches: AsyncIterator[list[LogLine]]) -> AsyncIterator[list[LogLine] | None]:
    """The batches, and None whenever none came for `PING_S`."""
    coming: asyncio.Future[list[LogLine]] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(batches))
            done, _ = await asyncio.wait({coming}, timeout=PING_S)
            if not done:
                yield None
                continue
            finished, coming = coming, None
            try:
                batch = finished.result()
            except StopAsyncIteration:
                return
            yield batch
    finally:
        if coming is not None:
            coming.cancel()
