"""Request ids: on every response, and in every log line written while the request is served."""

import re
import uuid

import structlog

_SANE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def accept_request_id(sent: str | None) -> str:
    """The caller's own id if it is short and plain, else a new one."""
    return sent if sent and _SANE.fullmatch(sent) else uuid.uuid4().hex


def bind_request_id(request_id: str) -> None:
    """Put the id into every log line of the current task."""
    structlog.contextvars.bind_contextvars(request_id=request_id)
