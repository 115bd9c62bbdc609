"""v2 servers: list, start, get, stop, restart, and the game's report of its status."""

from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.requests import Request
from starlette.responses import Response

from fleet.servers.model import ListQuery
from serve_app.auth import AnyKey, Context, ServerKey
from serve_app.edge import keep_answer
from serve_app.json import json_response
from serve_app.policy import Caller, Policy
from serve_app.v2.face import PREFIX
from serve_app.v2.route import LegacyRoute, legacy_errors
from serve_app.v2.server_schemas import (
    LegacyInstanceOut,
    LegacyListOut,
    LegacyRestartIn,
    LegacyStartedOut,
    LegacyStartIn,
    LegacyStoppedOut,
    State,
    instance_view,
    started_view,
)
from serve_app.v3.common import links

router = APIRouter(prefix=f"{PREFIX}/servers", tags=["Servers"], route_class=LegacyRoute)
MAY_CALL: Policy = {
    "legacy_list_servers": Caller.CLIENT,
    "legacy_start_server": Caller.CLIENT,
    "legacy_get_server": Caller.CLIENT,
    "legacy_stop_server": Caller.SERVER,
    "legacy_report_status": Caller.SERVER,
    "legacy_restart_server": Caller.SERVER,
}

_NEXT = links("instance_id", "legacy_get_server", "legacy_report_status", "legacy_restart_server", "legacy_stop_server")
MOST_LISTED = 10_000  # v2 knows no pages


@router.get("", response_model=LegacyListOut, responses=legacy_errors(401), summary="List servers")
async def legacy_list_servers(
    request: Request,
    caller: AnyKey,
    context: Context,
    include_launching: Annotated[bool, Query(description="Also servers that are not ready yet")] = False,
) -> Response:
    """All running servers of the project, newest first."""
    query = ListQuery(include_launching, limit=MOST_LISTED)
    servers, total = await context.servers.page(caller, query)
    keep_answer(request, caller)
    return json_response({"total_servers": total, "servers": [instance_view(server) for server in servers]})


@router.post(
    "/start",
    status_code=201,
    response_model=LegacyStartedOut,
    responses={**legacy_errors(400, 401, 403, 404, 409, 413), 201: _NEXT},
    summary="Start a server",
)
async def legacy_start_server(body: LegacyStartIn, caller: AnyKey, context: Context) -> Response:
    """Start a build in a region; the ports are known at once."""
    return json_response(started_view(await context.servers.start(caller, body.request())), 201)


@router.get(
    "/{instance_id}", response_model=LegacyInstanceOut, responses=legacy_errors(401, 404), summary="Get a server"
)
async def legacy_get_server(request: Request, instance_id: str, caller: AnyKey, context: Context) -> Response:
    """One server, whatever its status."""
    server = await context.servers.get(caller, instance_id)
    keep_answer(request, caller)
    return json_response(instance_view(server))


@router.delete(
    "/{instance_id}", response_model=LegacyStoppedOut, responses=legacy_errors(401, 403, 404), summary="Stop a server"
)
async def legacy_stop_server(instance_id: str, caller: ServerKey, context: Context) -> Response:
    """The server is `stopped` at once. Stopping twice is no error."""
    await context.servers.stop(caller, instance_id, None)
    return json_response({"status": "Server stopped successfully"})


@router.put(
    "/{instance_id}/update",
    response_model=LegacyInstanceOut,
    responses=legacy_errors(400, 401, 403, 404, 409),
    summary="The game reports its status",
)
async def legacy_report_status(
    instance_id: str,
    caller: ServerKey,
    context: Context,
    status: Annotated[State, Header(alias="X-Server-Status", description="What the game says it is")],
) -> Response:
    """`stopped` ends the server. `running` is the ready call of a build that is `ready_by` game; for others the fleet
    sees by itself when the ports are open. The answer tells what the server really is."""
    if status == "running":
        await context.servers.ready(caller, instance_id)
    if status == "stopped":
        await context.servers.stop(caller, instance_id, "reported stopped by the game")
    return json_response(instance_view(await context.servers.get(caller, instance_id)))


@router.post(
    "/{instance_id}/restart",
    response_model=LegacyInstanceOut,
    responses=legacy_errors(400, 401, 403, 404, 409, 413),
    summary="Restart a server",
)
async def legacy_restart_server(
    instance_id: str, caller: ServerKey, context: Context, body: LegacyRestartIn | None = None
) -> Response:
    """A new run under the same id, with new ports."""
    request = body.request() if body else LegacyRestartIn().request()
    return json_response(instance_view(await context.servers.restart(caller, instance_id, request)))
