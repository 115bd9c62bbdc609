"""Request ids: on every response, and in every log line written while the request is served."""

import contextvars
import re
import uuid

import structlog

_current: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
_SANE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def accept_request_id(sent: str | None) -> str:
    """The caller's own id if it is short and plain, else a new one."""
    return sent if sent and _SANE.fullmatch(sent) else uuid.uuid4().hex


def bind_request_id(request_id: str) -> None:
    """The current task works for that request now: its id is in every log line. Empty: for none in particular."""
    _current.set(request_id)
    if request_id:
        structlog.contextvars.bind_contextvars(request_id=request_id)
    else:
        structlog.contextvars.unbind_contextvars("request_id")


def current_request_id() -> str:
    """The id of the request that the current task works for; empty if for none."""
    return _current.get()
