"""Server-sent events, one way for all of our streams.

A comment goes out every 15 s so that nothing between us and the client times out. A client that takes nothing for
half a minute is let go: it comes back with the id of what it saw last.
"""

from collections.abc import AsyncIterator
from typing import Any

import orjson
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from fleet.limits.shares import Hold

PING_S = 15
SEND_TIMEOUT_S = 30.0
EVENT_SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("event", "id", "data")},
    "required": ["event", "data"],
}
COMMENT = ServerSentEvent(comment="ping", sep="\n")
OPEN = b": open\n\n"  # so that the client hears at once that it is heard


class _HeldStream(EventSourceResponse):
    def __init__(self, hold: Hold, content: AsyncIterator[bytes], **how: Any) -> None:
        super().__init__(content, **how)
        self._hold = hold

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._hold.release()


def event_stream(
    content: AsyncIterator[bytes],
    *,
    ping_s: float = PING_S,
    ping: ServerSentEvent | None = None,
    hold: Hold,
) -> EventSourceResponse:
    """`ping`: what goes out every `ping_s`, in place of the comment. `hold` is released when the stream has ended,
    however: also where its client goes away before it has begun."""
    said = ping or COMMENT
    return _HeldStream(
        hold,
        content,
        headers={"cache-control": "no-store"},
        sep="\n",
        ping=ping_s,
        ping_message_factory=lambda: said,
        send_timeout=SEND_TIMEOUT_S,
    )


def message(event: str, data: object, id: str | None = None) -> bytes:
    """One event; its data is one line of JSON."""
    return text_message(event, orjson.dumps(data), id)


def text_message(event: str, text: bytes, id: str | None = None) -> bytes:
    """The same, of JSON that is rendered already."""
    head = f"event: {event}\n" + (f"id: {id}\n" if id is not None else "")
    return head.encode() + b"data: " + text + b"\n\n"
