"""All routes of v2, and their own description at /api/v2/doc: version 3's does not name them."""

from functools import cache
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from serve_app.json import json_response
from serve_app.policy import Caller, Policy
from serve_app.v2 import builds, lobbies, matchmaker, projects, servers, storage
from serve_app.v2.face import PREFIX
from serve_app.v3.common import operation_id

TITLE = "Fleet API, version 2"
DESCRIPTION = """\
For clients that speak PlayFlow's version 2; new ones should use version 3 (`/api/doc`). Each path answers under `/v2/…`
too, lobbies and the matchmaker also without any prefix, with or without a trailing slash. Every answer carries
`Deprecation` and a `Link` to the call that replaces it.

An error is `{"error","detail","status","message"}`, a 422 `{"detail":[{"loc","msg","type"}]}`;
lobbies and the matchmaker answer 400 in the first shape instead.
"""

described = APIRouter(generate_unique_id_function=operation_id)
for _part in (servers, builds, storage, projects, lobbies, matchmaker):
    described.include_router(_part.router)

all_routes = APIRouter()
all_routes.include_router(described)
MAY_CALL: Policy = {
    "document": Caller.ANYONE,
}


@cache
def openapi() -> dict[str, Any]:
    return get_openapi(
        title=TITLE,
        version="2.0.0",
        description=DESCRIPTION,
        routes=described.routes,
        separate_input_output_schemas=False,
    )


@all_routes.get(f"{PREFIX}/doc")
async def document() -> Response:
    return json_response(openapi())
