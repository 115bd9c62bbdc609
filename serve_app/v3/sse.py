"""Server-sent events, one way for all of our streams.

A comment goes out every 15 s so that nothing between us and the client times out. A client that takes nothing for
half a minute is let go: it comes back with the id of what it saw last.
"""

from collections.abc import AsyncIterator

import orjson
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse

PING_S = 15
SEND_TIMEOUT_S = 30.0
EVENT_SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("event", "id", "data")},
    "required": ["event", "data"],
}
COMMENT = ServerSentEvent(comment="ping", sep="\n")
OPEN = b": open\n\n"  # so that the client hears at once that it is heard


def event_stream(
    content: AsyncIterator[bytes],
    *,
    ping_s: float = PING_S,
    ping: ServerSentEvent | None = None,
) -> EventSourceResponse:
    """`ping`: what goes out every `ping_s`, in place of the comment."""
    said = ping or COMMENT
    return EventSourceResponse(
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
