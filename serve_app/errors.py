"""Every error leaves in one shape: `{"error","detail","status"}`."""

from typing import Any

import structlog
from asyncpg import PostgresError
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from fleet.errors import FleetError
from fleet.servers.limits import Unprocessable
from fleet.store.engine import DATABASE_UNAVAILABLE, may_pass
from serve_app.json import json_response

log = structlog.get_logger(__name__)

NAMES = {404: "Not found", 405: "Method not allowed", 413: "Payload too large", 400: "Bad request"}

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
    detail: object = error.detail
    if isinstance(error, Unprocessable):
        loc = ["body", error.field] if error.field else ["body"]
        detail = [{"loc": loc, "msg": error.detail, "type": "custom"}]
    return error_response(error.status, error.error, detail)


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


def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    issues: list[dict[str, Any]] = list(error.errors())
    if any(issue["type"] == "json_invalid" for issue in issues):
        return error_response(400, "Invalid JSON", "The body is not valid JSON.")
    detail = [
        {"loc": [_plain(part) for part in issue["loc"]], "msg": issue["msg"], "type": issue_code(issue["type"])}
        for issue in issues[:50]
    ]
    return error_response(422, "Validation error", detail)


def _plain(part: object) -> str | int:
    return part if isinstance(part, int) else str(part)[:200]


def _database_error(_request: Request, error: Exception) -> Response:
    """The database restarts or is out of reach: that is said, and not taken for a fault of the request or of ours."""
    if not may_pass(error):
        raise error
    return database_unavailable(error)


def database_unavailable(error: Exception) -> Response:
    log.warning("database_unavailable", error=repr(error))
    return error_response(
        503, DATABASE_UNAVAILABLE, "The database does not answer now. Try again.", {"retry-after": "2"}
    )


def install_error_handlers(app: FastAPI) -> None:
    for kind in (DBAPIError, PoolTimeout, PostgresError, ConnectionError):
        app.add_exception_handler(kind, _database_error)
    app.add_exception_handler(FleetError, _fleet_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
