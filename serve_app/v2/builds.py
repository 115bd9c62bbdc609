"""v2 builds. A path names a build by its id or by its name: one published description says this, one that."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from fleet.builds.executable import DEFAULT_EXECUTABLE
from fleet.errors import NotFound
from fleet.store.tables import Build
from fleet.times import iso
from serve_app.auth import Context, ServerKey
from serve_app.context import AppContext
from serve_app.edge import keep_answer
from serve_app.json import json_response
from serve_app.policy import Caller, Policy
from serve_app.public_url import public_base
from serve_app.shares import held
from serve_app.v2.build_schemas import (
    LegacyBuildFoundOut,
    LegacyBuildListOut,
    LegacyDeletedOut,
    LegacyUploadedOut,
    LegacyUploadOut,
    legacy_build_view,
)
from serve_app.v2.face import PREFIX
from serve_app.v2.multipart import FilePart
from serve_app.v2.route import LegacyRoute, legacy_errors
from serve_app.v3.build_schemas import BuildName

router = APIRouter(prefix=f"{PREFIX}/builds/builds", tags=["Builds"], route_class=LegacyRoute)
MAY_CALL: Policy = {
    "legacy_list_builds": Caller.SERVER,
    "legacy_upload_url": Caller.SERVER,
    "legacy_upload": Caller.SERVER,
    "legacy_get_build": Caller.SERVER,
    "legacy_delete_build": Caller.SERVER,
}

MOST_LISTED = 10_000  # v2 knows no pages


@router.get("", response_model=LegacyBuildListOut, responses=legacy_errors(401, 403), summary="List builds")
async def legacy_list_builds(
    request: Request,
    caller: ServerKey,
    context: Context,
    name: Annotated[str | None, Query(max_length=128, description="Only builds of this name")] = None,
) -> Response:
    """All builds of the project, newest first."""
    builds, total = await context.builds.list(caller.project_id, name, MOST_LISTED, 0)
    keep_answer(request, caller)
    return json_response({"builds": [legacy_build_view(build) for build in builds], "total_builds": total})


@router.post(
    "/upload-url", response_model=LegacyUploadOut, responses=legacy_errors(401, 403), summary="Begin an upload"
)
async def legacy_upload_url(
    request: Request,
    caller: ServerKey,
    context: Context,
    name: Annotated[BuildName, Query(description="Name of the build")] = "default",
) -> Response:
    """A new build and a URL to PUT its ZIP to; processing begins by itself after the upload."""
    build = await context.builds.request_upload(caller.project_id, name, DEFAULT_EXECUTABLE)
    url = f"{public_base(request, context.settings)}{context.builds.upload_path(build)}"
    message = "Upload your ZIP file to upload_url with a PUT request."
    return json_response({"build_id": build.build_id, "name": build.name, "upload_url": url, "message": message})


@router.post(
    "/upload",
    status_code=202,
    response_model=LegacyUploadedOut,
    responses=legacy_errors(400, 401, 403, 409, 413),
    summary="Upload a build",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file"],
                        "properties": {"file": {"type": "string", "format": "binary"}},
                    }
                }
            },
        }
    },
)
async def legacy_upload(
    request: Request,
    caller: ServerKey,
    context: Context,
    name: Annotated[BuildName, Query(description="Name of the build")] = "default",
) -> Response:
    """The ZIP in the form field `file`. It streams through to disk; processing begins by itself."""
    with held(request, caller, "uploads"):
        part = FilePart(request.headers.get("content-type", ""), request.stream())
        await part.open()
        build = await context.builds.upload(caller.project_id, name, part.chunks())
    return json_response(
        {
            "build_id": build.build_id,
            "name": build.name,
            "status": "upload_started",
            "message": "The upload is complete; the build is being processed.",
            "version": build.version,
            "file_size": build.packed_bytes,
            "upload_time": iso(build.updated_at),
        },
        202,
    )


@router.get(
    "/{build}",
    response_model=LegacyBuildFoundOut,
    responses=legacy_errors(401, 403),
    summary="Get a build by id or name",
)
async def legacy_get_build(request: Request, build: str, caller: ServerKey, context: Context) -> Response:
    """One build; of a name, its newest version. There being none is no error: `found` is false then."""
    found = await _find(context, caller.project_id, build)
    keep_answer(request, caller)
    return json_response(
        {
            "name": found[0].name if found else build,
            "build": legacy_build_view(found[0]) if found else None,
            "found": bool(found),
            "message": "Build found" if found else "There is no build of this name or id in this project.",
        }
    )


@router.delete(
    "/{build}",
    response_model=LegacyDeletedOut,
    responses=legacy_errors(401, 403, 404),
    summary="Delete a build by id or name",
)
async def legacy_delete_build(build: str, caller: ServerKey, context: Context) -> Response:
    """That build; of a name, all its versions. Running servers keep it until they stop."""
    found = await _find(context, caller.project_id, build)
    if not found:
        raise NotFound(f"There is no build '{build[:64]}' in this project.", error="Build not found")
    for one in found:
        await context.builds.delete(caller.project_id, one.build_id)
    return json_response({"status": "success", "message": "Build deleted successfully"})


async def _find(context: AppContext, project_id: str, id_or_name: str) -> list[Build]:
    """The build of that id, else all of that name, newest first."""
    try:
        return [await context.builds.get(project_id, id_or_name)]
    except NotFound:
        builds, _ = await context.builds.list(project_id, id_or_name, MOST_LISTED, 0)
        return builds
