"""A browser game client at /play: three files that use the public API as any game would, with the project's client key.

The key comes in the URL's fragment, which browsers keep to themselves. The page runs its own script only and puts what
players typed into text nodes; `connect-src` has ws: and wss:, since a game is on any host and port.
"""

from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from serve_app.policy import Caller, Policy

_FOLDER = Path(__file__).parent / "web"
_FILES = {"play.js": "text/javascript", "play.css": "text/css"}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}

router = APIRouter(include_in_schema=False)
MAY_CALL: Policy = {
    "page": Caller.ANYONE,
    "asset": Caller.ANYONE,
}


@router.get("/play")
async def page() -> Response:
    return FileResponse(_FOLDER / "play.html", media_type="text/html", headers=_HEADERS)


@router.get("/play/{name}")
async def asset(name: str) -> Response:
    if name not in _FILES:
        raise HTTPException(404)
    return FileResponse(_FOLDER / name, media_type=_FILES[name], headers=_HEADERS)
