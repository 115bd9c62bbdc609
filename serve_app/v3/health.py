"""Is it alive."""

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from fleet.telemetry.metrics import CONTENT_TYPE
from serve_app.auth import Context
from serve_app.json import json_response
from serve_app.v3.common import errors

router = APIRouter(tags=["Health"])


class HealthOut(BaseModel):
    status: str


@router.get("/api/health", response_model=HealthOut, responses=errors(), summary="Health")
@router.get("/health", include_in_schema=False)
async def health(context: Context) -> Response:
    """`ok` while this replica can read its database. Needs no key."""
    await context.check()
    return json_response({"status": "ok"})


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus' text format, summed over the replicas of this node. Carries no ids, keys or names."""
    return Response(request.app.state.metrics.exposition(), media_type=CONTENT_TYPE)
