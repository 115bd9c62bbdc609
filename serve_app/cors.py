"""Which web pages may call. Browser games ship with the client key and run on any site, so a client key may be used
from everywhere unless its project names origins. Server keys are for back ends: no page is let read what they get.

A preflight carries no key, so it is answered for all; what counts is the real request.
"""

from typing import Any, cast

from starlette.responses import Response
from starlette.types import Scope

from fleet.limits.limiter import Gate

Headers = list[tuple[bytes, bytes]]
_ALL = (b"access-control-allow-origin", b"*")
_VARY = (b"vary", b"origin")
_EXPOSED = (
    b"access-control-expose-headers",
    b"x-request-id, x-ratelimit-limit, x-ratelimit-remaining, x-ratelimit-reset, retry-after, idempotency-replayed, "
    b"deprecation, link",
)
_PREFLIGHT = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
    "access-control-allow-headers": "api-key, content-type, idempotency-key, last-event-id, x-player-id, "
    "x-player-token, x-request-id, client-auth-token",
    "access-control-max-age": "7200",
    "vary": "origin, access-control-request-method, access-control-request-headers",
}


def preflight(scope: Scope) -> Response | None:
    """The answer to a browser that asks whether it may ask; None for any other request."""
    if scope["method"] != "OPTIONS":
        return None
    names = {name for name, _ in scope["headers"]}
    if not {b"origin", b"access-control-request-method"} <= names:
        return None
    return Response(status_code=204, headers=_PREFLIGHT)


def may_call(origin: bytes, gate: Gate | None) -> bool:
    """False for a page that the project has not named. Only for client keys: a page of our own, on this origin, sends
    its origin with writes too."""
    return gate is None or gate.caller.is_server or _is_named(origin, gate)


def cors_headers(origin: bytes, gate: Gate | None) -> Headers:
    """What lets the page read the answer. Requests without a (known) key tell nothing, so any page may read that."""
    if gate is None:
        return [_ALL, _EXPOSED]
    if gate.caller.is_server or not _is_named(origin, gate):
        return [_VARY]
    if not _named(gate):
        return [_ALL, _EXPOSED]
    return [(b"access-control-allow-origin", origin), _VARY, _EXPOSED]


def _named(gate: Gate) -> list[str]:
    return cast("list[str]", cast("dict[str, Any]", gate.caller.settings).get("allowed_origins") or [])


def _is_named(origin: bytes, gate: Gate) -> bool:
    named = _named(gate)
    return not named or "*" in named or origin.decode("latin-1").lower() in named
