"""The hook that an object store calls after an upload. It belongs to the fleet, not to a project: a secret opens it."""

import hmac
from pathlib import PurePosixPath
from typing import Annotated, Any, cast
from urllib.parse import unquote_plus

from fastapi import APIRouter, Body, Header
from pydantic import BaseModel
from starlette.responses import Response

from fleet.errors import Forbidden, Unauthorized
from serve_app.auth import Context
from serve_app.json import json_response
from serve_app.policy import Caller, Policy
from serve_app.v2.face import PREFIX
from serve_app.v2.route import LegacyRoute, legacy_errors

router = APIRouter(prefix=f"{PREFIX}/storage", tags=["Storage hook"], route_class=LegacyRoute)
MAY_CALL: Policy = {
    "storage_hook": Caller.SIGNED,
}

MOST_BUILDS = 100
# Where the stores that are in use name the object: MinIO and S3 records, R2's and Supabase's messages, or just the id.
_NAMES = ("build_id", "key", "Key", "name")


class HookOut(BaseModel):
    status: str
    accepted: list[str]


@router.post("/hook", response_model=HookOut, responses=legacy_errors(401, 403, 413), summary="An upload is complete")
async def storage_hook(
    context: Context,
    authorization: Annotated[str | None, Header(max_length=1024, description="The secret, or `Bearer` and it")] = None,
    body: Annotated[Any, Body(description="The store's message; the object is named by the build's id")] = None,
) -> Response:
    """Processing of the builds that the message names begins, unless it has. Others are passed over, since a store
    would send the message again and again."""
    _admit(context.settings.storage_hook_secret, authorization)
    accepted = [build_id for build_id in named_builds(body) if await context.builds.stored(build_id)]
    return json_response({"status": "ok", "accepted": accepted})


def _admit(secret: str | None, sent: str | None) -> None:
    if not secret:
        raise Forbidden("This fleet takes no storage hooks; start it with FLEET_STORAGE_HOOK_SECRET to change that.")
    given = (sent or "").removeprefix("Bearer ").encode()
    if not hmac.compare_digest(given, secret.encode()):
        raise Unauthorized("Send the hook's secret in the 'authorization' header.")


def named_builds(message: object) -> list[str]:
    """Ids of the builds that a store's message may speak of, whatever its form: an object `…/<id>.zip` is one's."""
    found: dict[str, None] = {}
    todo = [message]
    while todo and len(found) < MOST_BUILDS:
        value = todo.pop()
        if isinstance(value, list):
            todo += cast("list[object]", value)
        elif isinstance(value, dict):
            for name, inner in cast("dict[str, object]", value).items():
                if isinstance(inner, str) and name in _NAMES:
                    found[PurePosixPath(unquote_plus(inner)).stem[:64]] = None
                else:
                    todo.append(inner)
    return [build_id for build_id in found if build_id]
