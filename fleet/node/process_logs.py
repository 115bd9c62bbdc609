"""Reading the rotated log that the keeper of a run writes: log.1 (older), then log.0."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from fleet.node import log_file
from fleet.node.log_tokens import page
from fleet.node.runtime import LogLine

_LOOK_S = 0.1
_FOLLOW_PAGE = 1000
TAIL_LINES, TAIL_BYTES = 20, 4096


def read_lines(folder: Path) -> Iterator[LogLine]:
    """All lines, oldest first."""
    with ExitStack() as stack:
        for file in _open(folder, stack):
            yield from log_file.decode(file)


def _open(folder: Path, stack: ExitStack) -> list[BinaryIO]:
    """Both files, as they stood together at one moment (a rotation renames log.0 to log.1)."""
    while True:
        newer, older = _try(folder / "log.0", stack), _try(folder / "log.1", stack)
        if newer is None or _is_still(folder / "log.0", newer):
            return [file for file in (older, newer) if file is not None]


def _try(path: Path, stack: ExitStack) -> BinaryIO | None:
    try:
        return stack.enter_context(path.open("rb"))
    except FileNotFoundError:
        return None


def _is_still(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def tail_of(folder: Path) -> str:
    """The last lines as text, at most 4 KiB."""
    lines = [line.message for line in read_lines(folder)][-TAIL_LINES:]
    return "\n".join(lines)[-TAIL_BYTES:]


async def follow_lines(folder: Path, alive: Callable[[], bool], after: str | None) -> AsyncGenerator[LogLine]:
    """Lines after `after` as they come, until the run has ended and all is read.

    A plain file gives no event, so it is looked at ten times a second, and only while somebody follows.
    """
    seen = (-1, -1)
    while True:
        last = not alive()
        now = _size(folder)
        if now != seen or last:
            seen = now
            while lines := await asyncio.to_thread(_page_after, folder, after):
                for line in lines:
                    yield line
                after = lines[-1].token
        if last:
            return
        await asyncio.sleep(_LOOK_S)


def _page_after(folder: Path, after: str | None) -> list[LogLine]:
    return page(read_lines(folder), after, None, _FOLLOW_PAGE)


def _size(folder: Path) -> tuple[int, int]:
    try:
        stat = (folder / "log.0").stat()
    except FileNotFoundError:
        return (0, 0)
    return (stat.st_ino, stat.st_size)
