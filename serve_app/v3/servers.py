"""Servers: list, start, get, update, restart, stop, events, logs and metrics."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from fleet.projects.model import Principal
from fleet.servers.model import ListQuery, RestartRequest
from fleet.store.tables import Server
from serve_app.auth import AnyKey, Context, ServerKey, context_of
from serve_app.edge import keep_answer
from serve_app.json import StrictJsonRoute, json_response
from serve_app.policy import Caller, Policy
from serve_app.shares import held, while_there
from serve_app.v3.common import errors, links
from serve_app.v3.log_position import encode_token, parse_position
from serve_app.v3.log_stream import follow_response
from serve_app.v3.server_schemas import (
    ClaimIn,
    EventListOut,
    LogListOut,
    RestartIn,
    ServerListOut,
    ServerMetricsOut,
    ServerOut,
    StartIn,
    StoppedOut,
    UpdateIn,
    event_view,
    log_view,
    players_view,
    server_view,
)
from serve_app.v3.sse import EVENT_SCHEMA

router = APIRouter(prefix="/api/v3/servers", tags=["Servers"], route_class=StrictJsonRoute)
MAY_CALL: Policy = {
    "list_servers": Caller.CLIENT,
    "start_server": Caller.CLIENT,
    "get_server": Caller.CLIENT,
    "claim_server": Caller.SERVER,
    "update_server": Caller.SERVER,
    "restart_server": Caller.SERVER,
    "stop_server": Caller.SERVER,
    "server_events": Caller.SERVER,
    "server_logs": Caller.SERVER,
    "server_metrics": Caller.SERVER,
}

WaitFor = Annotated[
    Literal["running", "stopped"] | None,
    Query(description="Answer only once the server has this status or has stopped (an extension)"),
]
MaxWait = Annotated[float, Query(alias="timeout", ge=0, le=120, description="Longest wait, seconds")]
PERIODS = {"5m": 300, "15m": 900, "1h": 3600, "6h": 21_600, "24h": 86_400}
Offset = Annotated[int, Query(ge=0, le=2**31 - 1)]
_NEXT = links(
    "instance_id", "get_server", "update_server", "restart_server", "server_events", "server_logs", "stop_server"
)


@router.get("", response_model=ServerListOut, responses=errors(401), summary="List servers")
async def list_servers(
    request: Request,
    caller: AnyKey,
    context: Context,
    include_launching: Annotated[bool, Query(description="Also servers that are not ready yet")] = False,
    include_pool: Annotated[bool, Query(description="Also idle pool servers")] = False,
    status: Annotated[
        list[Literal["launching", "running", "stopped"]] | None,
        Query(description="Exactly these; may be given several times (an extension)", max_length=3),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Offset = 0,
) -> Response:
    """Running servers of the project, newest first. `status=stopped` shows those that have ended."""
    query = ListQuery(include_launching, include_pool, limit, offset, tuple(status or ()))
    servers, total = await context.servers.page(caller, query)
    keep_answer(request, caller)
    return json_response(
        {
            "total": total,
            "servers": [server_view(server) for server in servers],
            "limit": limit,
            "offset": offset,
            "has_more": offset + len(servers) < total,
        }
    )


@router.post(
    "/start",
    status_code=201,
    response_model=ServerOut,
    responses={**errors(400, 401, 403, 404, 409, 413), 201: _NEXT},
    summary="Start a server",
)
async def start_server(
    request: Request,
    body: StartIn,
    caller: AnyKey,
    context: Context,
    wait_for: WaitFor = None,
    max_wait: MaxWait = 30,
) -> Response:
    """Start a build in a region. With a warm pool the answer is a running server (`start_kind` hot), in milliseconds.
    Otherwise it is `launching`: the ports are known already, though the game may not listen yet."""
    if not wait_for:
        return json_response(server_view(await context.servers.start(caller, body.request())), 201)
    with held(request, caller, "waits"):  # before the start: a refusal changes nothing
        server = await context.servers.start(caller, body.request())
        return json_response(server_view(await _waited(request, caller, server, wait_for, max_wait)), 201)


async def _waited(request: Request, caller: Principal, server: Server, status: str, most_s: float) -> Server:
    """The server as it is once it has that status, at the end of the wait, or when nobody listens any more."""
    servers, found = context_of(request).servers, server

    async def wait() -> None:
        nonlocal found
        found = await servers.wait(caller, server, status, most_s)

    await while_there(request, wait())
    return found


@router.post(
    "/claim",
    response_model=ServerOut,
    responses={**errors(400, 401, 403, 404, 409, 413), 200: _NEXT},
    summary="Claim a warm server",
)
async def claim_server(body: ClaimIn, caller: ServerKey, context: Context) -> Response:
    """A running server of the project's pool, at once; 409 if none stands ready. `start` claims by itself too."""
    return json_response(server_view(await context.servers.claim(caller, body.request())))


@router.get("/{instance_id}", response_model=ServerOut, responses=errors(401, 404), summary="Get a server")
async def get_server(
    request: Request,
    instance_id: str,
    caller: AnyKey,
    context: Context,
    wait_for: WaitFor = None,
    max_wait: MaxWait = 30,
) -> Response:
    """One server, whatever its status."""
    server = await context.servers.get(caller, instance_id)
    if wait_for:
        with held(request, caller, "waits"):
            server = await _waited(request, caller, server, wait_for, max_wait)
    else:
        keep_answer(request, caller)
    return json_response(server_view(server))


@router.post(
    "/{instance_id}/update",
    response_model=ServerOut,
    responses=errors(400, 401, 403, 404, 409, 413),
    summary="Replace custom_data",
)
async def update_server(
    instance_id: str, caller: ServerKey, context: Context, body: UpdateIn | None = None
) -> Response:
    """`custom_data` replaces what was there; it is not merged."""
    data = body.custom_data if body else None
    return json_response(server_view(await context.servers.update(caller, instance_id, data)))


@router.post(
    "/{instance_id}/restart",
    response_model=ServerOut,
    responses=errors(400, 401, 403, 404, 409, 413),
    summary="Restart a server",
)
async def restart_server(
    instance_id: str, caller: ServerKey, context: Context, body: RestartIn | None = None
) -> Response:
    """A new run under the same id, with new ports. What the body leaves out stays as it is."""
    given = RestartRequest(body.given() if body else {})
    return json_response(server_view(await context.servers.restart(caller, instance_id, given)))


@router.delete("/{instance_id}", response_model=StoppedOut, responses=errors(401, 403, 404), summary="Stop a server")
async def stop_server(
    instance_id: str,
    caller: ServerKey,
    context: Context,
    shutdown_reason: Annotated[str | None, Query(max_length=500)] = None,
) -> Response:
    """The server is `stopped` at once; its container is ended gracefully. Stopping twice is no error."""
    await context.servers.stop(caller, instance_id, shutdown_reason)
    return json_response({"status": "Server stopped successfully"})


@router.get(
    "/{instance_id}/events",
    response_model=EventListOut,
    responses=errors(401, 403, 404),
    summary="Journal of a server",
)
async def server_events(
    request: Request,
    instance_id: str,
    caller: ServerKey,
    context: Context,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    offset: Offset = 0,
) -> Response:
    """Every step of the server's life with its time, oldest first (an extension)."""
    events, total = await context.servers.events(caller, instance_id, limit, offset)
    keep_answer(request, caller)
    return json_response(
        {
            "instance_id": instance_id,
            "events": [event_view(event) for event in events],
            "total": total,
            "limit": limit,
            "offset": offset,
            "has_more": offset + len(events) < total,
        }
    )


@router.get(
    "/{instance_id}/logs",
    response_model=LogListOut,
    responses={
        **errors(400, 401, 403, 404),
        200: {
            "description": "Lines in order; with `follow`, a stream of `log` events closed by an `end` event",
            "content": {"text/event-stream": {"schema": EVENT_SCHEMA}},
        },
    },
    summary="Log of a server",
)
async def server_logs(
    request: Request,
    instance_id: str,
    caller: ServerKey,
    context: Context,
    start_time: Annotated[
        str | None, Query(max_length=512, description="ISO 8601, or relative (`-1h`, `-30m`), or a `next_token`")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    follow: Annotated[bool, Query(description="Stream lines as they come, as server-sent events")] = False,
) -> Response:
    """What the game wrote. Stays readable after the server has stopped."""
    after, since_ms = parse_position(start_time)
    if follow:
        return await follow_response(request, context.servers, caller, instance_id, after, since_ms)
    with held(request, caller, "log_reads"):
        server, page = await context.servers.logs(caller, instance_id, after, since_ms, limit)
    return json_response(
        {
            "logs": [log_view(line, server) for line in page.lines],
            "instance_id": instance_id,
            "machine_id": page.machine_id,
            "next_token": encode_token(page.next_token) if page.next_token else None,
        }
    )


@router.get(
    "/{instance_id}/metrics",
    response_model=ServerMetricsOut,
    responses=errors(401, 403, 404),
    summary="CPU, memory, network and connections of a server over time",
)
async def server_metrics(
    request: Request,
    instance_id: str,
    caller: ServerKey,
    context: Context,
    period: Literal["5m", "15m", "1h", "6h", "24h"] = "1h",
    step: Literal["15s", "30s", "60s", "300s"] = "60s",
) -> Response:
    """Of the server's present run; empty for a server that has none."""
    with held(request, caller, "log_reads"):
        seen = await context.servers.usage(caller, instance_id, PERIODS[period], int(step[:-1]))
    return json_response(
        {
            "instance_id": instance_id,
            "period": period,
            "step": f"{seen.step}s",
            "series": seen.series,
            "players": players_view(seen.players),
        }
    )
