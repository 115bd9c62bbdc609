"""Tokens of log lines: `<time>~<n>`, the n-th line (from 0) with exactly that time in the log's own order.

Live and archived logs give the same tokens, so a reader that stopped anywhere resumes without loss or repetition.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from fleet.errors import BadRequest
from fleet.node.runtime import LogLine

TIME_LENGTH = len("2026-01-31T12:00:00.123456789Z")
OVERLAP_NS = 250_000_000
MOST_HELD = 10_000


@dataclass(slots=True)
class Counter:
    """Numbers lines of equal time. Times need not ascend strictly: two streams may interleave by microseconds."""

    last: str = ""
    n: int = -1

    def token(self, at: str) -> str:
        self.n = self.n + 1 if at == self.last else 0
        self.last = at
        return f"{at}~{self.n}"


def parse_token(token: str) -> tuple[str, int]:
    """(time, n) of a token; BadRequest if it is not one of ours."""
    at, mark, n = token.partition("~")
    if not mark or not n.isdigit() or len(n) > 9 or len(at) != TIME_LENGTH:
        raise BadRequest(f"'{token[:64]}' is not a log token. Use the token of a line you were given.")
    try:
        datetime.fromisoformat(at[:26] + "Z")
    except ValueError:
        raise BadRequest(f"'{token[:64]}' is not a log token. Use the token of a line you were given.") from None
    return at, int(n)


def format_ns(ns: int) -> str:
    """Nanoseconds since the epoch as the engine writes them: always nine digits, so text order is time order."""
    moment = datetime.fromtimestamp(ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns % 1_000_000_000:09d}Z"


def unix_ns(at: str) -> int:
    """The reverse of `format_ns`."""
    seconds = int(datetime.fromisoformat(at[:19] + "+00:00").timestamp())
    return seconds * 1_000_000_000 + int(at[20:29])


class Resume:
    """Lets pass what a reader still has to see: lines after token `after`, or from `since_ms`, or all.

    Lines of the two streams may be stored out of order by microseconds, so a newer line may stand before the
    token's own: newer lines are held back until the token is met (they were seen then) or surely gone (rotated
    away; they are new then).
    """

    def __init__(self, after: str | None, since_ms: int | None = None) -> None:
        self._after = after
        self._since = "" if after or since_ms is None else format_ns(since_ms * 1_000_000)
        self._held: list[LogLine] = []
        if after:
            at, self._n = parse_token(after)
            self._time, self._surely = at, format_ns(unix_ns(at) + OVERLAP_NS)

    def feed(self, line: LogLine) -> list[LogLine]:
        """The lines to show now that `line` has been read."""
        if self._after is None:
            return [line] if line.at >= self._since else []
        if line.token == self._after:
            self._after = None
            self._held.clear()
            return []
        if (line.at, int(line.token.rpartition("~")[2])) > (self._time, self._n):
            self._held.append(line)
        if line.at > self._surely or len(self._held) > MOST_HELD:
            self._after = None
            return self.finish()
        return []

    def finish(self) -> list[LogLine]:
        """What is still held back when the log has ended."""
        held, self._held = self._held, []
        return held


def page(lines: Iterable[LogLine], after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
    """Up to `limit` of `lines` (in the log's order) by the rules of `Resume`."""
    resume = Resume(after, since_ms)
    selected: list[LogLine] = []
    for line in lines:
        if len(selected) >= limit:
            break
        selected += resume.feed(line)
    selected += resume.finish()
    return selected[:limit]
