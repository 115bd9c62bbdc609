"""Builds: ask for an upload URL, process, register an image, look, delete."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from fleet.builds.executable import DEFAULT_EXECUTABLE
from fleet.builds.service import ReadyBy
from serve_app.auth import Context, ServerKey
from serve_app.context import AppContext
from serve_app.edge import keep_answer
from serve_app.json import StrictJsonRoute, json_response
from serve_app.policy import Caller, Policy
from serve_app.public_url import public_base
from serve_app.shares import held, while_there
from serve_app.v3.build_schemas import (
    READY_BY_MEANS,
    AcceptedOut,
    BuildListOut,
    BuildLogsOut,
    BuildName,
    BuildOut,
    DeletedOut,
    DockerImageIn,
    ExecutablePath,
    UploadOut,
    build_log_view,
    build_view,
)
from serve_app.v3.common import errors, links

router = APIRouter(prefix="/api/v3/builds", tags=["Builds"], route_class=StrictJsonRoute)
MAY_CALL: Policy = {
    "list_builds": Caller.SERVER,
    "upload_url": Caller.SERVER,
    "docker_image": Caller.SERVER,
    "process_build": Caller.SERVER,
    "get_build": Caller.SERVER,
    "build_logs": Caller.SERVER,
    "delete_build": Caller.SERVER,
}

Offset = Annotated[int, Query(ge=0, le=2**31 - 1)]
_NEXT = links("build_id", "get_build", "process_build", "build_logs", "delete_build")


@router.get("", response_model=BuildListOut, responses=errors(401, 403), summary="List builds")
async def list_builds(
    request: Request,
    caller: ServerKey,
    context: Context,
    name: Annotated[str | None, Query(max_length=128, description="Only builds of this name")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Offset = 0,
) -> Response:
    """The project's builds, newest first."""
    builds, total = await context.builds.list(caller.project_id, name, limit, offset)
    keep_answer(request, caller)
    return json_response(
        {
            "builds": [build_view(build) for build in builds],
            "total": total,
            "limit": limit,
            "offset": offset,
            "has_more": offset + len(builds) < total,
        }
    )


@router.post(
    "/upload-url",
    status_code=201,
    response_model=UploadOut,
    responses={**errors(400, 401, 403), 201: _NEXT},
    summary="Begin an upload",
)
async def upload_url(
    request: Request,
    caller: ServerKey,
    context: Context,
    name: Annotated[BuildName, Query(description="Name of the build; a start's `version_tag`")] = "default",
    executable_path: Annotated[
        ExecutablePath, Query(description="The game's executable inside the ZIP")
    ] = DEFAULT_EXECUTABLE,
    writable: Annotated[bool, Query(description="The game may write into its own folder (an extension)")] = False,
    ready_by: Annotated[ReadyBy, Query(description=READY_BY_MEANS)] = "ports",
) -> Response:
    """A new build and a URL to PUT its ZIP to. Processing begins by itself after the upload."""
    build = await context.builds.request_upload(
        caller.project_id, name, executable_path, writable=writable, ready_by=ready_by
    )
    url = f"{public_base(request, context.settings)}{context.builds.upload_path(build)}"
    minutes = context.settings.upload.url_ttl_s // 60
    return json_response(
        {
            "build_id": build.build_id,
            "name": build.name,
            "upload_url": url,
            "message": f"PUT the ZIP to upload_url within {minutes} minutes; processing then begins by itself.",
        },
        201,
    )


@router.post(
    "/docker-image",
    response_model=AcceptedOut,
    responses={**errors(400, 401, 403, 413), 200: _NEXT},
    summary="Build from a container image",
)
async def docker_image(body: DockerImageIn, caller: ServerKey, context: Context) -> Response:
    """Register an image; it is checked at once and becomes `ready` or `failed`."""
    credentials = body.registry_credentials.model_dump() if body.registry_credentials else None
    build = await context.builds.docker_image(
        caller.project_id,
        body.name,
        body.image_url,
        body.executable_path,
        credentials,
        writable=body.writable,
        ready_by=body.ready_by,
    )
    return json_response({"status": "accepted", "build_id": build.build_id, "message": "The image is being checked."})


@router.post(
    "/{build_id}/process",
    response_model=AcceptedOut,
    responses=errors(400, 401, 403, 404, 409),
    summary="Process an uploaded build",
)
async def process_build(
    build_id: str,
    caller: ServerKey,
    context: Context,
    name: Annotated[BuildName | None, Query(description="Must be the build's name if given")] = None,
) -> Response:
    """Not needed after an upload, which begins processing itself; doing it again changes nothing."""
    build = await context.builds.process(caller.project_id, build_id, name)
    return json_response({"status": "accepted", "build_id": build.build_id, "message": f"The build is {build.status}."})


@router.get("/{build_id}", response_model=BuildOut, responses=errors(401, 403, 404), summary="Get a build")
async def get_build(
    request: Request,
    build_id: str,
    caller: ServerKey,
    context: Context,
    wait_for: Annotated[
        Literal["ready"] | None, Query(description="Answer only once it is `ready` or `failed` (an extension)")
    ] = None,
    max_wait: Annotated[float, Query(alias="timeout", ge=0, le=120, description="Longest wait, seconds")] = 30,
) -> Response:
    """One build. Its status ends as `ready` or `failed`; `wait_for=ready` waits for that."""
    if wait_for:
        await context.builds.get(caller.project_id, build_id)  # of this project, before anything waits
        with held(request, caller, "waits"):
            await while_there(request, _settled(context, caller.project_id, build_id, max_wait))
        build = await context.builds.get(caller.project_id, build_id)
    else:
        build = await context.builds.get(caller.project_id, build_id)
        keep_answer(request, caller)
    return json_response(build_view(build))


async def _settled(context: AppContext, project_id: str, build_id: str, most_s: float) -> None:
    await context.builds.settled(project_id, build_id, most_s)


@router.get("/{build_id}/logs", response_model=BuildLogsOut, responses=errors(401, 403, 404), summary="Log of a build")
async def build_logs(
    request: Request,
    build_id: str,
    caller: ServerKey,
    context: Context,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    offset: Offset = 0,
) -> Response:
    """What the pipeline did with the build, oldest first."""
    lines, total = await context.builds.logs(caller.project_id, build_id, limit, offset)
    keep_answer(request, caller)
    return json_response(
        {
            "build_id": build_id,
            "logs": [build_log_view(line) for line in lines],
            "total": total,
            "limit": limit,
            "offset": offset,
            "has_more": offset + len(lines) < total,
        }
    )


@router.delete("/{build_id}", response_model=DeletedOut, responses=errors(401, 403, 404), summary="Delete a build")
async def delete_build(build_id: str, caller: ServerKey, context: Context) -> Response:
    """No new server starts from it; running servers keep it until they stop."""
    await context.builds.delete(caller.project_id, build_id)
    return json_response({"status": "success", "message": "Build deleted successfully"})
