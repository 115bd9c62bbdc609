"""What holds for every v2 call, plain ASGI and outermost, so that errors of all layers inside get it too.

`/v2/…` is another spelling of `/api/v2/…`. Every answer says that it is deprecated (RFC 9745) and names the call that
replaces it; every error has its text under `message` as well, but a 422, which is FastAPI's `{"detail":[…]}`.
"""

import re
from typing import Any, cast
from urllib.parse import quote

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "/api/v2"
SHORT_PREFIX = "/v2"
# The service that had lobbies and the matchmaker of old had no prefix at all.
BARE = ("/lobbies", "/lobbies-sse", "/matchmaker")
HEALTH = "/health"
# 1 January 2026: the clients' own kit speaks v3 since the end of 2025.
DEPRECATION = (b"deprecation", b"@1767225600")

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
_OTHERS = {
    "/builds/builds/upload": "/api/v3/builds/upload-url",
    "/storage/hook": "/api/v3/builds",
    "/project": "/api/v3/projects/settings",
}


class LegacyFace:
    """Wraps everything else; other paths than v2's pass untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and is_legacy(scope["path"]):
            lengthen(scope)
            send = _Answer(send, scope["path"]).send
        await self.app(scope, receive, send)


def is_legacy(path: str) -> bool:
    return _under(path, SHORT_PREFIX) or _under(path, PREFIX) or _is_bare(path) or path.rstrip("/") == HEALTH


def _is_bare(path: str) -> bool:
    return any(_under(path, prefix) for prefix in BARE)


def _under(path: str, prefix: str) -> bool:
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/")


def lengthen(scope: Scope) -> None:
    """Let the routes see one spelling."""
    path = scope["path"]
    if _under(path, SHORT_PREFIX) or _is_bare(path):
        scope["path"] = ("/api" if _under(path, SHORT_PREFIX) else PREFIX) + path
        scope.pop("raw_path", None)


def successor(path: str) -> str:
    """The v3 path that does what this v2 path does; the description of v3 if there is none."""
    path = path.rstrip("/")
    if path == HEALTH:
        return "/api/health"
    rest = path.removeprefix(PREFIX)
    if rest in _OTHERS:
        return _OTHERS[rest]
    if _is_bare(rest):
        return "/api/v3/lobbies"
    if _under(rest, "/servers"):
        return "/api/v3" + quote(rest)
    if _under(rest, "/builds/builds"):
        return _build_successor(rest.removeprefix("/builds/builds/"))
    return "/api/doc"


def _build_successor(which: str) -> str:
    """v3 knows a build by its id alone; a name becomes a filter of the list."""
    if which == "upload-url" or _ID.fullmatch(which):
        return f"/api/v3/builds/{which}"
    return "/api/v3/builds" + ("" if which.startswith("/") else f"?name={quote(which, safe='')}")


def legacy_error(body: dict[str, Any]) -> dict[str, Any]:
    """An error's body as v2 clients read it."""
    detail = body.get("detail")
    if isinstance(detail, list):
        return {"detail": cast("list[object]", detail)}
    if "message" in body:
        return body
    return {**body, "message": f"{body.get('error', 'Error')}: {detail}"}


class _Answer:
    """Passes an answer on with the headers; a JSON error is held until its body is whole."""

    def __init__(self, send: Send, path: str) -> None:
        self._send = send
        self._headers = [DEPRECATION, (b"link", f'<{successor(path)}>; rel="successor-version"'.encode())]
        self._held: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
            if message["status"] >= 400 and _is_json(message):
                self._held = message
                return
        elif self._held is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._release(self._held)
            return
        await self._send(message)

    async def _release(self, start: Message) -> None:
        body = orjson.dumps(legacy_error(orjson.loads(self._body))) if self._body else b""
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _is_json(start: Message) -> bool:
    return any(name.lower() == b"content-type" and b"json" in value for name, value in start["headers"])
