"""v2's one project call, and health, which needs no version."""

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from serve_app.auth import Context, ServerKey
from serve_app.edge import keep_answer
from serve_app.json import json_response
from serve_app.policy import Caller, Policy
from serve_app.v2.face import HEALTH, PREFIX
from serve_app.v2.route import LegacyRoute, legacy_errors
from serve_app.v3.health import HealthOut

router = APIRouter(route_class=LegacyRoute)
MAY_CALL: Policy = {
    "legacy_project": Caller.SERVER,
    "legacy_health": Caller.ANYONE,
}


class LegacyProjectOut(BaseModel):
    project_id: str


@router.get(
    f"{PREFIX}/project",
    tags=["Projects"],
    response_model=LegacyProjectOut,
    responses=legacy_errors(401, 403),
    summary="Whose key this is",
)
async def legacy_project(request: Request, caller: ServerKey) -> Response:
    """The project that the key belongs to."""
    keep_answer(request, caller)
    return json_response({"project_id": caller.project_id})


@router.get(HEALTH, tags=["Health"], response_model=HealthOut, responses=legacy_errors(), summary="Health")
async def legacy_health(context: Context) -> Response:
    """`ok` while this replica can read its database. Needs no key."""
    await context.check()
    return json_response({"status": "ok"})
