"""The machine's own word that it will be taken away (a spot notice, a shutdown) reaches its agents without polling.

Each agent reads a named pipe in its home; `fleet node notice` writes to all of them. So a preemption handler needs
neither Ray nor a key: who may write the pipe may also stop the machine.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

SUFFIX = ".notice"


def listen(path: Path, heard: Callable[[int | None], None]) -> Callable[[], None]:
    """Call `heard(until)` for each notice, until in ms or None; the returned function ends it. Needs a running loop."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0o600)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # a writer of our own, so that the pipe never ends
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, lambda: _read(fd, heard))

    def close() -> None:
        loop.remove_reader(fd)
        os.close(fd)

    return close


def _read(fd: int, heard: Callable[[int | None], None]) -> None:
    for line in os.read(fd, 4096).splitlines():
        try:
            until = json.loads(line)["until"]
        except (ValueError, TypeError, KeyError):
            log.warning("a notice that is none", line=line.decode(errors="replace")[:200])
            continue
        heard(int(until) if isinstance(until, int | float) else None)


def send(folder: Path, until: int | None) -> list[str]:
    """Tell every agent of this machine; the names of those that listen."""
    told: list[str] = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads: that agent is gone
            continue
        try:
            os.write(fd, json.dumps({"until": until}).encode() + b"\n")
        finally:
            os.close(fd)
        told.append(path.name.removesuffix(SUFFIX))
    return told
