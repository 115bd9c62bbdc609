"""A project's settings, and its warm pools."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from serve_app.auth import Context, ServerKey
from serve_app.json import StrictJsonRoute, json_response
from serve_app.policy import Caller, Policy
from serve_app.shares import held
from serve_app.v3.common import errors
from serve_app.v3.log_position import encode_position, parse_end, parse_project_position
from serve_app.v3.project_schemas import PoolListOut, PoolOut, ProjectLogOut, SettingsIn, SettingsOut, settings_view
from serve_app.v3.server_schemas import log_view

router = APIRouter(prefix="/api/v3", route_class=StrictJsonRoute)
MAY_CALL: Policy = {
    "get_settings": Caller.SERVER,
    "change_settings": Caller.SERVER,
    "project_logs": Caller.SERVER,
    "list_pools": Caller.SERVER,
    "get_pool": Caller.SERVER,
}
PROJECTS, POOLS = "Projects", "Pools"


@router.get(
    "/projects/settings",
    response_model=SettingsOut,
    responses=errors(401, 403),
    tags=[PROJECTS],
    summary="Project settings",
)
async def get_settings(caller: ServerKey, context: Context) -> Response:
    """Ports, environment, pools, player authentication and lobbies of the project."""
    project = await context.projects.settings(caller.project_id)
    return json_response(settings_view(project, context.projects.environment_of(project)))


@router.post(
    "/projects/settings",
    response_model=SettingsOut,
    responses=errors(400, 401, 403, 413),
    tags=[PROJECTS],
    summary="Change project settings",
)
async def change_settings(body: SettingsIn, caller: ServerKey, context: Context) -> Response:
    """Each part that is given replaces what was there, whole; the others stay. Pools follow at once."""
    project = await context.pools.change_settings(caller, body.change())
    return json_response(settings_view(project, context.projects.environment_of(project)))


@router.get(
    "/projects/logs",
    response_model=ProjectLogOut,
    responses=errors(400, 401, 403),
    tags=[PROJECTS],
    summary="Logs of all servers of the project",
)
async def project_logs(
    request: Request,
    caller: ServerKey,
    context: Context,
    start_time: Annotated[
        str,
        Query(
            min_length=1,
            max_length=1024,
            description="ISO 8601, or relative (`-1h`, `-30m`), or a `next_token`",
        ),
    ],
    end_time: Annotated[str | None, Query(max_length=64, description="ISO 8601 or relative; else now")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
) -> Response:
    """Lines of every server that was alive then, in the order of time, also of those that have stopped since."""
    start = parse_project_position(start_time)
    with held(request, caller, "log_reads"):
        lines, rest = await context.servers.project_logs(caller, start, parse_end(end_time), limit)
    shown = [log_view(line, server) | {"server_name": server.name} for server, line in lines]
    return json_response({"logs": shown, "next_token": encode_position(rest) if rest else None})


@router.get("/pools", response_model=PoolListOut, responses=errors(401, 403), tags=[POOLS], summary="Warm pools")
async def list_pools(caller: ServerKey, context: Context) -> Response:
    """Every pool of the project: stock, target, and the reasons (an extension)."""
    pools = await context.pools.list(caller)
    return json_response({"pools": pools, "total": len(pools)})


@router.get(
    "/pools/{region}/{size}",
    response_model=PoolOut,
    responses=errors(400, 401, 403, 404),
    tags=[POOLS],
    summary="One warm pool",
)
async def get_pool(
    region: str,
    size: str,
    caller: ServerKey,
    context: Context,
    build: Annotated[str | None, Query(max_length=256, description="Of several, the pool of this build")] = None,
) -> Response:
    """One pool with everything that led to its size (an extension)."""
    return json_response(await context.pools.get(caller, region, size, build))
