"""Reading a container's log from the engine: frames → lines with tokens, pages, following.

The engine cuts lines at 16 KiB; pieces come as frames without a newline and are joined again here, per stream,
up to `LONGEST_LINE`.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Literal

import aiohttp

from fleet.node.engine import Engine, EngineError
from fleet.node.log_tokens import OVERLAP_NS, TIME_LENGTH, Counter, Resume, parse_token, unix_ns
from fleet.node.runtime import EngineUnavailable, LogLine

LONGEST_LINE = 64 << 10
PAGE_BYTES = 8 << 20
TAIL_BYTES = 4096
SILENCE_S = 30.0  # while a log is read that is there
_HEADER = 8
_PIECE = 16 << 10


class FrameParser:
    """Bytes of the engine's multiplexed stream in, lines out. Holds at most one unfinished line per stream."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._counter = Counter()
        self._partial: dict[int, tuple[str, bytearray]] = {}

    def feed(self, data: bytes) -> Iterator[LogLine]:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _HEADER:
            end = start + _HEADER + int.from_bytes(buffer[start + 4 : start + 8], "big")
            if end > len(buffer):
                break
            yield from self._frame(buffer[start], bytes(buffer[start + _HEADER : end]))
            start = end
        del buffer[:start]

    def _frame(self, stream: int, payload: bytes) -> Iterator[LogLine]:
        at = payload[:TIME_LENGTH].decode("ascii", "replace")
        text = payload[TIME_LENGTH + 1 :]
        first, pieces = self._partial.pop(stream, (at, bytearray()))
        if first != at:  # pieces of one line have one time, so that line ended with its last full piece
            yield self._line(stream, first, pieces)
            pieces = bytearray()
        pieces += text
        # Some engines end the last piece of a cut line without a newline; being shorter tells it too.
        if text.endswith(b"\n") or len(text) < _PIECE or len(pieces) >= LONGEST_LINE:
            yield self._line(stream, at, pieces)
        else:
            self._partial[stream] = (at, pieces)

    def finish(self) -> Iterator[LogLine]:
        """The unfinished lines of a log that has ended."""
        for stream, (at, pieces) in sorted(self._partial.items()):
            yield self._line(stream, at, pieces)
        self._partial.clear()

    def _line(self, stream: int, at: str, text: bytes | bytearray) -> LogLine:
        name: Literal["stdout", "stderr"] = "stderr" if stream == 2 else "stdout"
        message = text.decode("utf-8", "replace").rstrip("\r\n")
        return LogLine(at, message, name, self._counter.token(at))


async def read_lines(
    engine: Engine, name: str, after: str | None, since_ms: int | None, *, follow: bool
) -> AsyncGenerator[LogLine]:
    """Lines of container `name` in order. A log that does not exist (any more) has no lines."""
    resume = Resume(after, since_ms)
    params = {"stdout": "1", "stderr": "1", "timestamps": "1", "follow": "1" if follow else "0"}
    since = _since(after, since_ms)
    if since:
        params["since"] = since
    parser = FrameParser()
    try:
        silence_s = None if follow else SILENCE_S
        async with engine.stream("GET", f"/containers/{name}/logs", params, silence_s=silence_s) as answer:
            async for line in _parsed(answer, parser):
                for shown in resume.feed(line):
                    yield shown
            for shown in resume.finish():
                yield shown
    except EngineError as error:
        if error.status not in (404, 409):
            raise EngineUnavailable(error.message) from error


async def follow_lines(engine: Engine, name: str, after: str | None) -> AsyncGenerator[LogLine]:
    """Lines after that token, until the container ends. Of one that has ended its log is read, not followed: an engine
    that was away when it ended never ends the stream."""
    try:
        found = await engine.call("GET", f"/containers/{name}/json")
    except EngineError as error:
        if error.status != 404:
            raise EngineUnavailable(error.message) from error
        return
    async with aclosing(read_lines(engine, name, after, None, follow=found["State"]["Running"])) as lines:
        async for line in lines:
            yield line


async def _parsed(answer: aiohttp.ClientResponse, parser: FrameParser) -> AsyncGenerator[LogLine]:
    async for data in answer.content.iter_any():
        for line in parser.feed(data):
            yield line
    for line in parser.finish():
        yield line


def _since(after: str | None, since_ms: int | None) -> str | None:
    if after:
        ns = unix_ns(parse_token(after)[0]) - OVERLAP_NS
    elif since_ms is not None:
        ns = since_ms * 1_000_000
    else:
        return None
    return f"{max(ns, 0) // 1_000_000_000}.{max(ns, 0) % 1_000_000_000:09d}"


async def read_page(engine: Engine, name: str, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
    """Up to `limit` lines and about 8 MB; stops reading the log there. Only an empty page means the end."""
    lines: list[LogLine] = []
    size = 0
    async with aclosing(read_lines(engine, name, after, since_ms, follow=False)) as source:
        async for line in source:
            if len(lines) >= limit or size > PAGE_BYTES:
                break
            lines.append(line)
            size += len(line.message)
    return lines


async def read_tail(engine: Engine, name: str, lines: int = 20) -> str:
    """The last lines as text, at most 4 KiB; empty if there is no log."""
    params = {"stdout": "1", "stderr": "1", "timestamps": "1", "tail": str(lines)}
    parser = FrameParser()
    try:
        async with engine.stream("GET", f"/containers/{name}/logs", params, silence_s=SILENCE_S) as answer:
            text = "\n".join([line.message async for line in _parsed(answer, parser)])
    except EngineError:
        return ""
    return text[-TAIL_BYTES:]
