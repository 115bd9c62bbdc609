"""What the client raises: the API's refusals, and what it could not do itself. All are `FleetError`s."""

from typing import Any, cast

import httpx

from fleet.client.retry import retry_after_s
from fleet.errors import FleetError


class ApiError(FleetError):
    """The API refused; `error` and `detail` are its own words, `request_id` finds the request in the fleet's logs."""

    status = 500
    error = "The API refused"

    def __init__(
        self, detail: str, *, error: str | None = None, status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(detail, error=error, status=status)
        self.request_id = request_id
        self.retry_after: float | None = None
        self.issues: list[dict[str, Any]] = []

    def __str__(self) -> str:
        where = f" [request {self.request_id}]" if self.request_id else ""
        return f"{self.error} ({self.status}): {self.detail}{where}"


class BadRequest(ApiError):
    status = 400


class Unauthorized(ApiError):
    """The key is missing or unknown."""

    status = 401


class Forbidden(ApiError):
    """The key, or the project's plan, does not allow this."""

    status = 403


class NotFound(ApiError):
    status = 404


class Conflict(ApiError):
    """Not possible in the present state."""

    status = 409


class TooLarge(ApiError):
    status = 413


class Invalid(ApiError):
    """A field is missing, malformed or out of bounds: `issues` has `loc`, `msg` and `type` of each."""

    status = 422


class RateLimited(ApiError):
    """Too many requests, also after all repetitions. `retry_after`: the seconds that the API asks for."""

    status = 429


class Unavailable(ApiError):
    """A part of the fleet did not answer, also after all repetitions."""

    status = 503


class Unreachable(FleetError):
    """No answer came, also after all repetitions."""

    status = 503
    error = "No answer"


class WaitFailed(FleetError):
    """What was waited for did not come. `last` is the server or build as it was last."""

    status = 504
    error = "Not reached"

    def __init__(self, detail: str, last: Any, *, error: str | None = None) -> None:
        super().__init__(detail, error=error)
        self.last = last


_NAMED: tuple[type[ApiError], ...] = (
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    Conflict,
    TooLarge,
    Invalid,
    RateLimited,
    Unavailable,
)
_KINDS = {kind.status: kind for kind in _NAMED} | {502: Unavailable, 504: Unavailable}


def error_of(response: httpx.Response, now: float) -> ApiError:
    """The error that an answer is. `now`: seconds since 1970, for a Retry-After that is a date."""
    error, detail, issues = _words(response)
    kind = _KINDS.get(response.status_code, ApiError)
    made = kind(detail, error=error, status=response.status_code, request_id=response.headers.get("x-request-id"))
    made.issues = issues
    made.retry_after = retry_after_s(response.headers.get("retry-after"), now)
    return made


def _words(response: httpx.Response) -> tuple[str, str, list[dict[str, Any]]]:
    try:
        body: Any = response.json()
        error, detail = str(body["error"]), body["detail"]
    except (ValueError, KeyError, TypeError):  # not the API's own: a proxy in between
        return f"HTTP {response.status_code}", response.text[:500] or response.reason_phrase, []
    if not isinstance(detail, list):
        return error, str(detail), []
    issues = cast(list[dict[str, Any]], detail)
    text = "; ".join(f"{'.'.join(map(str, issue.get('loc', [])))}: {issue.get('msg', '')}" for issue in issues)
    return error, text, issues
