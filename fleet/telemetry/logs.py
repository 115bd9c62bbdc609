"""Structured logs: one JSON object a line, in `<home>/logs/<component>.log`, bounded in size."""

import errno
import os
import re
import threading
from pathlib import Path

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MAX_BYTES = 64 * 1024 * 1024
CHECK_EVERY = 256


class AppendLog:
    """A log file that several processes may share: whole lines are appended, and one old file is kept.

    Nothing is raised to who logs, who may be in the midst of anything: what a full disk does not take is counted, and
    told (`log_lines_lost`) before the next line that there is room for.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max = max_bytes
        self._lock = threading.Lock()
        self._lines = 0
        self._lost = 0
        self._torn = False  # the last line is there in part
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = self._open()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)

    def write(self, line: bytes) -> None:
        with self._lock:
            try:
                if self._lost:
                    self._append(orjson.dumps({"event": "log_lines_lost", "level": "error", "count": self._lost}))
                    self._lost = 0
                self._append(line)
                self._lines += 1
                if self._lines % CHECK_EVERY == 0:
                    self._turn_over()
            except OSError:
                self._lost += 1

    def _append(self, line: bytes) -> None:
        """OSError if there is no room for the whole line."""
        data = b"\n" + line + b"\n" if self._torn else line + b"\n"
        written = os.write(self._fd, data)
        self._torn = self._torn if not written else written < len(data)
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _turn_over(self) -> None:
        mine = os.fstat(self._fd)
        current = self._path.stat() if self._path.exists() else None
        moved_by_other = current is None or current.st_ino != mine.st_ino
        if not moved_by_other and mine.st_size < self._max:
            return
        if not moved_by_other:
            self._path.replace(self._path.with_suffix(".log.1"))
        os.close(self._fd)
        self._fd = self._open()

    # What structlog calls on a logger, by level.
    def msg(self, message: bytes) -> None:
        self.write(message)

    debug = info = warning = error = critical = exception = msg


# What must never be in a log, wherever in a line it stands: keys, secrets of webhooks, signatures of upload links,
# bearer tokens and player tokens (JWTs), passwords in URLs. All that is left is what it was.
_SECRET = re.compile(
    rb"(\b(?:pf|pfclient|pfadmin|whsec)_)[A-Za-z0-9_-]{6,}"
    rb"|(\b(?:signature|ticket|player-token|player_token|client-auth-token|api-key)=)[^&\s\"\\]+"
    rb"|(\b[Bb]earer )[^\s\"\\]+"
    rb"|(\beyJ)[\w-]+\.[\w-]+\.[\w-]*"
    rb"|(://[^/\s:@\"\\]*:)[^@/\s\"\\]+(?=@)"
)
_SECRET_FIELDS = frozenset(
    {"api_key", "api-key", "authorization", "password", "secret", "token", "signature", "environment"}
)


def _json(_logger: WrappedLogger, _name: str, event: EventDict) -> bytes:
    return redacted(orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS))


def redacted(line: bytes) -> bytes:
    """The line without secrets that can be told by their looks."""
    return _SECRET.sub(lambda found: (found[found.lastindex or 0] or b"") + b"***", line)


def _hide_fields(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Fields whose names say that they are secret."""
    for name in _SECRET_FIELDS & event.keys():
        event[name] = "***"
    return event


def _of_process(component: str) -> Processor:
    """Says which process logs. Not by context variables: each call of an actor's method begins with none.

    A line of many requests says `request_id=None`, and then shows none.
    """
    process = {"component": component, "pid": os.getpid()}

    def add(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
        if event.get("request_id") is None:
            event.pop("request_id", None)
        return {**process, **event}

    return add


def setup_logging(component: str, home: Path, level: str = "info") -> Path:
    """Send this process's structured logs to the component's file; returns its path. Call once per process."""
    path = home / "logs" / f"{component}.log"
    log = AppendLog(path)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _of_process(component),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _hide_fields,
            _json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_args: log,
        cache_logger_on_first_use=True,
    )
    return path
