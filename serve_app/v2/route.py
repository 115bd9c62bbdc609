"""How v2 routes refuse: FastAPI's own 422, and the errors that they document."""

from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from serve_app.errors import error_response
from serve_app.json import StrictJsonRoute, json_response
from serve_app.v3.common import ErrorOut, Issue, Responses, errors

MOST_ISSUES = 50


class LegacyErrorOut(ErrorOut):
    """The shape of every error but a 422."""

    message: str


class LegacyIssuesOut(BaseModel):
    """A 422, as FastAPI writes it."""

    detail: list[Issue]


class LegacyRoute(StrictJsonRoute):
    """A route whose bad input is told as FastAPI tells it, a body that is no JSON included."""

    def get_route_handler(self) -> Any:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                return json_response({"detail": [_issue(found) for found in error.errors()[:MOST_ISSUES]]}, 422)

        return handle


class LegacyLobbyRoute(StrictJsonRoute):
    """A route of the old lobby service, which told bad input as 400 with a text."""

    def get_route_handler(self) -> Any:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                issues = [_issue(found) for found in error.errors()[:MOST_ISSUES]]
                text = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in issues)
                return error_response(400, "Bad request", text)

        return handle


def _issue(found: dict[str, Any]) -> dict[str, Any]:
    loc = [part if isinstance(part, int) else str(part)[:200] for part in found["loc"]]
    return {"loc": loc, "msg": found["msg"], "type": found["type"]}


def lobby_errors(*statuses: int) -> Responses:
    """The same for routes of the old lobby service."""
    known = legacy_errors(400, 401, *statuses)
    return {status: text for status, text in known.items() if status != 422}


def legacy_errors(*statuses: int) -> Responses:
    """Documentation of the error answers of a v2 route."""
    known = {status: {**text, "model": LegacyErrorOut} for status, text in errors(*statuses).items()}
    known[422]["model"] = LegacyIssuesOut
    return known
