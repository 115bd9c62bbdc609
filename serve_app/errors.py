"""Every error leaves in one shape: `{"error","detail","status"}`."""

import errno
from sqlite3 import OperationalError as SqliteError
from typing import Any

import structlog
from asyncpg import PostgresError
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from ray.exceptions import RayError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from fleet.errors import FleetError, TooMany
from fleet.servers.limits import Unprocessable
from fleet.store.engine import DATABASE_UNAVAILABLE, OutcomeUnknown, may_pass
from serve_app.json import CALLED, JSON, json_response

log = structlog.get_logger(__name__)

RETRY_LATER = {"retry-after": "2"}
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE})
NAMES = {
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    413: "Payload too large",
    415: "Unsupported media type",
    400: "Bad request",
}

# pydantic's error types, by the words in them, as the issue codes that clients of this API know.
_CODES = (
    ("too_short", "too_small"),
    ("greater_than", "too_small"),
    ("too_long", "too_big"),
    ("less_than", "too_big"),
    ("literal_error", "invalid_enum_value"),
    ("enum", "invalid_enum_value"),
    ("extra_forbidden", "unrecognized_keys"),
    ("string_pattern", "invalid_string"),
    ("string_unicode", "invalid_string"),
    ("datetime", "invalid_date"),
)


def issue_code(pydantic_type: str) -> str:
    """The code for a pydantic error type: `string_too_short` → `too_small`; `invalid_type` for the rest."""
    return next((code for part, code in _CODES if part in pydantic_type), "invalid_type")


def error_response(status: int, error: str, detail: object, headers: dict[str, str] | None = None) -> Response:
    return json_response({"error": error, "detail": detail, "status": status}, status, headers)


def _fleet_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, FleetError)
    return told(error)


def told(error: FleetError) -> Response:
    """The answer that says it."""
    detail: object = error.detail
    if isinstance(error, Unprocessable):
        loc = ["body", error.field] if error.field else ["body"]
        detail = [{"loc": loc, "msg": error.detail, "type": "custom"}]
    return error_response(error.status, error.error, detail, _retry(error))


def _retry(error: FleetError) -> dict[str, str] | None:
    """When it is worth while to ask again, if ever."""
    if error.status == 429:
        return {"retry-after": str(TooMany.retry_s)}
    return RETRY_LATER if error.status == 503 else None


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail: str = error.detail
    if error.status_code == 404 and detail == "Not Found":
        detail = f"There is nothing at {request.url.path[:200]}. The API is described at /api/doc."
    elif error.status_code == 405:
        detail = f"{request.method} is not possible at {request.url.path[:200]}."
    headers = dict(error.headers) if error.headers else None
    if error.status_code == 405:
        headers = {"allow": ", ".join(sorted(_methods_of(request)))}
    return error_response(error.status_code, NAMES.get(error.status_code, "Request failed"), detail, headers)


def _methods_of(request: Request) -> set[str]:
    """Of all routes with the path's template; Starlette names those of the first route alone."""
    template: str | None = None
    found: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        if template is None and (regex := getattr(route, "path_regex", None)) and regex.match(request.scope["path"]):
            template = route.path
        if template is not None and route.path == template:
            found |= route.methods or set()
    return found


def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    issues: list[dict[str, Any]] = list(error.errors())
    if any(issue["type"] == "json_invalid" for issue in issues):
        called = request.scope.get(CALLED)
        but = f" Its content-type is '{called[:100]}'; send JSON as {JSON}." if called else ""
        return error_response(400, "Invalid JSON", f"The body is not valid JSON.{but}")
    detail = [
        {"loc": [_plain(part) for part in issue["loc"]], "msg": issue["msg"], "type": issue_code(issue["type"])}
        for issue in issues[:50]
    ]
    return error_response(422, "Validation error", detail)


def _plain(part: object) -> str | int:
    return part if isinstance(part, int) else str(part)[:200]


def _passing_error(_request: Request, error: Exception) -> Response:
    """A part of the fleet restarts or is out of reach: that is said, and not taken for a fault of ours."""
    response = unavailable(error)
    if response is None:
        raise error
    return response


def unavailable(error: BaseException) -> Response | None:
    """503 for what may pass; None for a fault."""
    if isinstance(error, OutcomeUnknown):
        detail = "The database broke off while this was written. Look whether it was done before you repeat it."
    elif isinstance(error, OSError) and error.errno in _DISK:
        return _unavailable(error, "Disk unavailable", f"The fleet's disk does not serve now: {error.strerror}.")
    elif isinstance(error, OSError) and error.filename is not None:
        return None  # a file of ours that is missing is a fault
    elif isinstance(error, DBAPIError | SqliteError | PoolTimeout | PostgresError | OSError) and may_pass(error):
        detail = "The database does not answer now. Try again."
    elif isinstance(error, RayError):
        return _unavailable(error, "Temporarily unavailable", "A part of the fleet does not answer now. Try again.")
    else:
        return None
    return _unavailable(error, DATABASE_UNAVAILABLE, detail)


def _unavailable(error: BaseException, name: str, detail: str) -> Response:
    log.warning("request_unavailable", said=name, error=repr(error))
    return error_response(503, name, detail, RETRY_LATER)


def install_error_handlers(app: FastAPI) -> None:
    for kind in (DBAPIError, SqliteError, PoolTimeout, PostgresError, OSError, OutcomeUnknown, RayError):
        app.add_exception_handler(kind, _passing_error)
    app.add_exception_handler(FleetError, _fleet_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
