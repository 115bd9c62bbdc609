"""The API's own description: OpenAPI 3.1 at /api/doc, and a page to read and try it at /api/reference.

The page's files come from an installed package, so it works with no internet.
"""

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, Response

from serve_app.policy import Caller, Policy

TITLE = "Fleet API, PlayFlow compatible"
DESCRIPTION = """\
Upload a build, start servers of it in a region, let players connect to `host:external_port`.

Send your project's key in the `api-key` header. A **server key** (`pf_…`) may do everything; a **client key**
(`pfclient_…`) may ship with the game and may only list, get and start servers.

Every answer carries an `x-request-id`. Every error is `{"error","detail","status"}`.
"""
TAGS = [
    {"name": "Servers", "description": "Running games: start, watch, change, stop, and their logs."},
    {"name": "Lobbies", "description": "Players who gather, look for a match and play; live."},
    {"name": "Pools", "description": "Warm servers that wait for players: how many, and why."},
    {"name": "Projects", "description": "Settings: ports, environment, pools."},
    {"name": "Builds", "description": "Versions of a game: a ZIP with a Linux server, or a container image."},
    {"name": "Events", "description": "What happens in the project: one stream, and webhooks."},
    {
        "name": "Administration",
        "description": "For the fleet's operator: projects, plans, keys, audit log. Needs the `admin-key` header.",
    },
    {"name": "Usage", "description": "What ran for how long, what it costs, and budgets."},
    {"name": "Health", "description": "Is the fleet there."},
]
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Fleet API reference</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="/api/reference/favicon.png">
<link rel="stylesheet" href="/api/reference/swagger-ui.css"></head>
<body><p style="margin:1em auto;max-width:1460px;padding:0 20px;font-family:sans-serif">
<a href="/api/reference">v3</a> · <a href="/api/reference?v2">v2, for older clients</a></p><div id="page"></div>
<script src="/api/reference/swagger-ui-bundle.js"></script>
<script>
const old = location.search === "?v2";
SwaggerUIBundle({url: old ? "/api/v2/doc" : "/api/doc", dom_id: "#page", deepLinking: true,
  persistAuthorization: false, tryItOutEnabled: true, defaultModelsExpandDepth: 0});</script>
</body></html>
"""

router = APIRouter(include_in_schema=False)
MAY_CALL: Policy = {
    "page": Caller.ANYONE,
    "asset": Caller.ANYONE,
}


def _assets() -> Path:
    spec = find_spec("fastapi_offline")  # not imported: only its files are of use
    if spec is None or spec.origin is None:
        raise HTTPException(404, "The reference page's files are not installed; /api/doc has the same content.")
    return Path(spec.origin).parent / "static"


@router.get("/api/reference")
async def page() -> Response:
    return HTMLResponse(_PAGE)


@router.get("/api/reference/{name}")
async def asset(name: str) -> Response:
    if name not in _ASSETS:
        raise HTTPException(404)
    return FileResponse(_assets() / name, media_type=_ASSETS[name], headers={"cache-control": "max-age=3600"})


def describe(app: FastAPI) -> None:
    """Titles and texts of the OpenAPI document."""
    app.title, app.description, app.openapi_tags = TITLE, DESCRIPTION, TAGS
