"""Projects as their operator sees them. Every route needs the fleet's admin key."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Security
from fastapi.security import APIKeyHeader
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from fleet.errors import NotFound
from fleet.projects.admin_service import Admin
from fleet.telemetry.request_id import current_request_id
from serve_app.admin.schemas import (
    MAX_GRACE_S,
    AuditOut,
    KeyListOut,
    NewKeyOut,
    NewProjectOut,
    PlanListOut,
    ProjectChange,
    ProjectIn,
    ProjectListOut,
    ProjectOut,
    RotateIn,
    SuspendIn,
    entry_view,
    key_view,
    plan_view,
    project_view,
)
from serve_app.auth import Context, context_of
from serve_app.json import StrictJsonRoute, json_response
from serve_app.policy import Caller, Policy
from serve_app.shares import HeldFile
from serve_app.v3.common import errors

_header = APIKeyHeader(
    name="admin-key",
    scheme_name="AdminKey",
    auto_error=False,
    description="The fleet's admin key (`pfadmin_…`), shown once when the fleet was made.",
)


async def _admin(request: Request, key: Annotated[str | None, Security(_header)]) -> Admin:
    return Admin(context_of(request).admin_keys.check(key), current_request_id())


AdminKey = Annotated[Admin, Depends(_admin)]
ProjectId = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9-]+$")]
router = APIRouter(prefix="/api/admin/v1", tags=["Administration"], route_class=StrictJsonRoute)
MAY_CALL: Policy = {
    "list_plans": Caller.ADMIN,
    "list_projects": Caller.ADMIN,
    "create_project": Caller.ADMIN,
    "get_project": Caller.ADMIN,
    "change_project": Caller.ADMIN,
    "suspend_project": Caller.ADMIN,
    "resume_project": Caller.ADMIN,
    "delete_project": Caller.ADMIN,
    "export_of_project": Caller.ADMIN,
    "project_keys": Caller.ADMIN,
    "rotate_key": Caller.ADMIN,
    "audit": Caller.ADMIN,
}


@router.get("/plans", response_model=PlanListOut, responses=errors(401), summary="Plans")
async def list_plans(_: AdminKey, context: Context) -> Response:
    """What the fleet's plans have, as their file says now."""
    return json_response({"plans": [plan_view(context.plans.get(name)) for name in context.plans.names()]})


@router.get("/projects", response_model=ProjectListOut, responses=errors(401), summary="List projects")
async def list_projects(
    _: AdminKey,
    context: Context,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    include_deleted: Annotated[bool, Query(description="Also those whose data is gone")] = False,
) -> Response:
    """All projects, oldest first."""
    projects, total = await context.admin.page(limit, offset, deleted=include_deleted)
    shown = [project_view(project) for project in projects]
    more = offset + len(shown) < total
    return json_response({"projects": shown, "total": total, "limit": limit, "offset": offset, "has_more": more})


@router.post(
    "/projects", status_code=201, response_model=NewProjectOut, responses=errors(400, 401), summary="Create a project"
)
async def create_project(body: ProjectIn, admin: AdminKey, context: Context) -> Response:
    """The answer holds its two keys, for the only time."""
    project, made = await context.admin.create(admin, body.name, body.plan)
    keys = {"server_key": made.server_key, "client_key": made.client_key}
    return json_response(project_view(project) | keys, 201)


@router.get("/projects/{project_id}", response_model=ProjectOut, responses=errors(401, 404), summary="Get a project")
async def get_project(project_id: ProjectId, _: AdminKey, context: Context) -> Response:
    """One project, whatever its status."""
    return json_response(project_view(await context.admin.get(project_id)))


@router.patch(
    "/projects/{project_id}",
    response_model=ProjectOut,
    responses=errors(400, 401, 404, 409),
    summary="Rename a project, or change its plan",
)
async def change_project(project_id: ProjectId, body: ProjectChange, admin: AdminKey, context: Context) -> Response:
    """A change of plan applies to what comes next: no running server is stopped, but pools beyond the plan are."""
    return json_response(project_view(await context.admin.change(admin, project_id, name=body.name, plan=body.plan)))


@router.post(
    "/projects/{project_id}/suspend",
    response_model=ProjectOut,
    responses=errors(400, 401, 404, 409),
    summary="Suspend a project",
)
async def suspend_project(
    project_id: ProjectId, admin: AdminKey, context: Context, body: SuspendIn | None = None
) -> Response:
    """Its keys are refused and its pools emptied. Its other servers go on, unless `drain` is set."""
    asked = body or SuspendIn()
    return json_response(
        project_view(await context.admin.suspend(admin, project_id, drain=asked.drain, reason=asked.reason))
    )


@router.post(
    "/projects/{project_id}/resume",
    response_model=ProjectOut,
    responses=errors(401, 404, 409),
    summary="Let a suspended project go on",
)
async def resume_project(project_id: ProjectId, admin: AdminKey, context: Context) -> Response:
    """Its keys work again, and its pools fill."""
    return json_response(project_view(await context.admin.resume(admin, project_id)))


@router.delete(
    "/projects/{project_id}",
    status_code=202,
    response_model=ProjectOut,
    responses=errors(401, 404),
    summary="Delete a project",
)
async def delete_project(
    project_id: ProjectId,
    admin: AdminKey,
    context: Context,
    grace_seconds: Annotated[int, Query(ge=0, le=MAX_GRACE_S, description="Servers may go on for so long")] = 0,
) -> Response:
    """Its keys are refused at once. When its servers have ended, its data is exported, then deleted."""
    return json_response(project_view(await context.admin.delete(admin, project_id, grace_s=grace_seconds)), 202)


@router.get(
    "/projects/{project_id}/export",
    responses={**errors(401, 404), 200: {"content": {"application/zip": {}}, "description": "JSON lines per table"}},
    summary="What a deleted project had",
    response_class=FileResponse,
)
async def export_of_project(project_id: ProjectId, admin: AdminKey, context: Context) -> Response:
    """A ZIP, there from when its servers have ended. It holds no keys and no secrets."""
    path = context.ending.export_of(project_id)
    if not path.exists():
        raise NotFound("There is no export of this project (yet).", error="No export")
    place = context.shares.take(project_id, "", "exports")
    await context.admin.exported(admin, project_id)
    return HeldFile(place, path, media_type="application/zip", filename=path.name)


@router.get(
    "/projects/{project_id}/keys", response_model=KeyListOut, responses=errors(401, 404), summary="A project's keys"
)
async def project_keys(project_id: ProjectId, _: AdminKey, context: Context) -> Response:
    """Their hints; a key itself is shown once and stored nowhere."""
    return json_response({"keys": [key_view(key) for key in await context.admin.keys(project_id)]})


@router.post(
    "/projects/{project_id}/keys/{kind}/rotate",
    response_model=NewKeyOut,
    responses=errors(400, 401, 404, 409),
    summary="Replace a key",
)
async def rotate_key(
    project_id: ProjectId,
    kind: Literal["server", "client"],
    admin: AdminKey,
    context: Context,
    body: RotateIn | None = None,
) -> Response:
    """The old key works for `overlap_seconds` yet, so that games and back ends can change over."""
    overlap_s = (body or RotateIn()).overlap_seconds
    key, old = await context.admin.rotate(admin, project_id, kind, overlap_s)
    answer: dict[str, Any] = {"kind": kind, "key": key, "previous": [key_view(one) for one in old]}
    return json_response(answer)


@router.get("/audit", response_model=AuditOut, responses=errors(401), summary="Who administered what")
async def audit(
    _: AdminKey,
    context: Context,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    before: Annotated[int | None, Query(ge=0, le=2**63 - 1, description="Only entries older than this id")] = None,
    project_id: Annotated[str | None, Query(max_length=64)] = None,
    action: Annotated[str | None, Query(max_length=64, description="e.g. `project.suspend`")] = None,
) -> Response:
    """Every change that an operator made, newest first."""
    entries, total = await context.admin.audit(limit, before, project_id, action)
    last = entries[-1].id if len(entries) == limit else None
    return json_response({"entries": [entry_view(one) for one in entries], "total": total, "next_before": last})
