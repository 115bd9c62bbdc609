"""Locks between the agents of one machine. They end with their holder, however it ends; nobody waits for one without
end, since a holder may hang."""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from fleet.errors import Unavailable

_PAUSE_S = 0.05


@contextmanager
def held(path: Path, within_s: float) -> Generator[None]:
    """Hold the lock. Blocks; Unavailable if another process does not let it go in time."""
    fd = _open(path)
    try:
        end = time.monotonic() + within_s
        while not _locked(fd):
            _check(path, end - time.monotonic(), within_s)
            time.sleep(_PAUSE_S)
        yield
    finally:
        os.close(fd)


@asynccontextmanager
async def awaited(path: Path, within_s: float) -> AsyncGenerator[None]:
    """The same for the event loop."""
    fd = _open(path)
    try:
        end = time.monotonic() + within_s
        while not _locked(fd):
            _check(path, end - time.monotonic(), within_s)
            await asyncio.sleep(_PAUSE_S)
        yield
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check(path: Path, left_s: float, within_s: float) -> None:
    if left_s <= 0:
        raise Unavailable(f"Another process has held {path} for more than {within_s:.0f} s.")
