"""Where upload URLs point: the ZIP streams through to disk, in constant memory."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serve_app.auth import Context
from serve_app.json import json_response
from serve_app.policy import Caller, Policy
from serve_app.v3.build_schemas import UploadedOut
from serve_app.v3.common import errors

router = APIRouter(tags=["Builds"])
MAY_CALL: Policy = {
    "upload": Caller.SIGNED,
}


@router.put(
    "/upload/{build_id}",
    response_model=UploadedOut,
    responses=errors(400, 403, 404, 409, 413, 415),
    summary="Upload the ZIP",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def upload(
    request: Request,
    build_id: str,
    context: Context,
    expires: Annotated[int, Query(ge=0, le=2**53, description="From the signed URL")],
    signature: Annotated[str, Query(max_length=256, description="From the signed URL")],
) -> Response:
    """Any content type, no key: the signature in the URL is the permission. Processing begins by itself."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "A compressed upload is not taken. A ZIP is compressed already: send it as it is.")
    project_id, plan = await context.builds.owner_of(build_id, expires, signature)
    with context.shares.held(project_id, plan, "uploads"):
        build = await context.builds.receive_upload(build_id, expires, signature, request.stream())
    message = "The upload is complete; the build is being processed."
    return json_response({"status": "uploaded", "build_id": build.build_id, "message": message})
