"""The one error base. Each error knows its HTTP status and says what to do about it."""


class FleetError(Exception):
    """An error a caller may see: `error` names it in a few words, `detail` says the remedy."""

    status = 500
    error = "Internal error"

    def __init__(self, detail: str, *, error: str | None = None, status: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.error = error or type(self).error
        self.status = status or type(self).status

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword arguments are lost by the default pickling; actors raise these across processes.
        return _rebuild, (type(self), self.detail, self.error, self.status)


def _rebuild(kind: type[FleetError], detail: str, error: str, status: int) -> FleetError:
    return kind(detail, error=error, status=status)


class BadRequest(FleetError):
    status = 400
    error = "Bad request"


class Unauthorized(FleetError):
    status = 401
    error = "Unauthorized"


class Forbidden(FleetError):
    status = 403
    error = "Forbidden"


class NotFound(FleetError):
    status = 404
    error = "Not found"


class Conflict(FleetError):
    status = 409
    error = "Conflict"


class PayloadTooLarge(FleetError):
    status = 413
    error = "Payload too large"


class Unavailable(FleetError):
    """A part of the fleet does not answer now; trying again is right."""

    status = 503
    error = "Temporarily unavailable"


class TooMany(Unavailable):
    """More of something at once than a project may have; what it has under way ends sooner or later."""

    status = 429
    error = "Too many at once"
    retry_s = 2


class Fenced(FleetError):
    """A writer with an older epoch tried to act; it has been replaced and must stop."""

    status = 503
    error = "Writer replaced"
