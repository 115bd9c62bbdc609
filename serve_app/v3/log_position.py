"""Where to begin reading a log: a time, a relative time, or a token of ours."""

import base64
import re
from datetime import UTC, datetime

from fleet.errors import BadRequest
from fleet.node.log_tokens import unix_ns
from fleet.servers.project_log import Position
from fleet.times import now_ms

_RELATIVE = re.compile(r"-(\d{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TOKEN_PREFIX = "t."
_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")
_LAST_MS = 250_000_000_000_000  # the year 9892: later ones have no text


def encode_token(token: str) -> str:
    """A runtime's token as clients see it: cannot be taken for a time, safe in URLs and SSE ids."""
    return _TOKEN_PREFIX + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


def decode_token(text: str) -> str:
    raw = text.removeprefix(_TOKEN_PREFIX)
    try:
        return base64.b64decode(raw + "=" * (-len(raw) % 4), altchars=b"-_", validate=True).decode()
    except ValueError as error:  # not base64, not ASCII, not UTF-8
        raise BadRequest("This is no token of ours; send next_token back as it came.", error="Bad token") from error


def parse_position(text: str | None) -> tuple[str | None, int | None]:
    """(token, since_ms) of a `start_time`: at most one is set. `BadRequest` if it is none of the three forms."""
    if not text:
        return None, None
    if text.startswith(_TOKEN_PREFIX):
        return decode_token(text), None
    relative = _RELATIVE.fullmatch(text)
    if relative:
        return None, max(0, now_ms() - int(relative[1]) * _SECONDS[relative[2]] * 1000)
    try:
        # A '+' of a UTC offset that was not escaped arrives as a space.
        moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return None, max(0, int(moment.timestamp() * 1000))
    except (ValueError, OverflowError) as error:
        raise BadRequest(
            "start_time is an ISO 8601 time, a relative one (-45s, -30m, -1h, -2d), or a next_token.",
            error="Bad start_time",
        ) from error


def encode_position(position: Position) -> str:
    """A place in the log of a whole project, as clients see it."""
    return encode_token(f"project|{position.at}|{position.instance_id}|{position.token}")


def parse_project_position(text: str) -> Position:
    """The `start_time` of a project's log: a time, a relative one, or a `next_token` of that log."""
    token, since_ms = parse_position(text)
    if since_ms is not None:
        return Position.since(min(since_ms, _LAST_MS))
    kind, _, rest = (token or "").partition("|")
    at, _, rest = rest.partition("|")
    instance_id, _, inner = rest.partition("|")
    if kind != "project" or not _AT.fullmatch(at):
        raise BadRequest(
            "start_time is an ISO 8601 time, a relative one (-45s, -30m, -1h, -2d), or a next_token of this log.",
            error="Bad start_time",
        )
    try:
        unix_ns(at)
    except ValueError as error:
        raise BadRequest("This is no token of ours; send next_token back as it came.", error="Bad token") from error
    return Position(at, instance_id, inner)


def parse_end(text: str | None) -> int:
    """Milliseconds of an `end_time`: a time or a relative one; now if there is none."""
    token, ms = parse_position(text)
    if token is not None:
        raise BadRequest(
            "end_time is an ISO 8601 time, or a relative one (-45s, -30m, -1h, -2d).", error="Bad end_time"
        )
    return now_ms() if ms is None else min(ms, _LAST_MS)
