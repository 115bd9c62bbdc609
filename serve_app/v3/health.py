"""Is it alive."""

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from serve_app.auth import Context
from serve_app.json import json_response
from serve_app.policy import Caller, Policy
from serve_app.v3.common import errors

router = APIRouter(tags=["Health"])
MAY_CALL: Policy = {
    "health": Caller.ANYONE,
}


class HealthOut(BaseModel):
    status: str


@router.get("/api/health", response_model=HealthOut, responses=errors(), summary="Health")
async def health(context: Context) -> Response:
    """`ok` while this replica can read its database. Needs no key."""
    await context.check()
    return json_response({"status": "ok"})
