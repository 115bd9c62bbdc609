"""The archive of ended runs' logs: kept after the container is gone, for a configured time and size.

One compressed file per run; tokens are those of the live log, so a reader that began there goes on here.
"""

import asyncio
import gzip
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import structlog

from fleet.errors import BadRequest
from fleet.node import log_file
from fleet.node.log_tokens import page
from fleet.node.runtime import LogLine, RunKey, Runtime
from fleet.settings import LogLimits

log = structlog.get_logger(__name__)

_CHUNK = 256 << 10
_SAFE = re.compile(r"[A-Za-z0-9_-]{1,64}")


class LogArchive:
    """Logs of ended runs in `folder`."""

    def __init__(self, folder: Path, limits: LogLimits) -> None:
        self._folder = folder
        self._limits = limits

    def path(self, key: RunKey) -> Path:
        """File of a run. BadRequest for an id that cannot be ours, so that no id leads out of the folder."""
        if not _SAFE.fullmatch(key.instance_id):
            raise BadRequest(f"'{key.instance_id[:64]}' is not a server id.")
        return self._folder / key.instance_id / f"{key.generation}.log.gz"

    def holds(self, key: RunKey) -> bool:
        """Whether the run's whole log is here."""
        return self.path(key).exists()

    async def keep(self, runtime: Runtime, key: RunKey) -> None:
        """Copy the log of an ended run. Safe to repeat: the file appears whole or not at all."""
        if self.holds(key):
            return
        target = self.path(key)
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True, mode=0o700)
        draft = target.with_suffix(".part")
        with gzip.open(draft, "wb", compresslevel=3) as file:
            async with aclosing(_chunks(runtime, key, self._limits.max_mb << 20)) as chunks:
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk)
        draft.replace(target)

    async def page(self, key: RunKey, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        """As `Runtime.logs`, for a run that is gone; no lines if nothing was kept."""
        return await asyncio.to_thread(self._page, self.path(key), after, since_ms, limit)

    def _page(self, path: Path, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        try:
            with gzip.open(path, "rb") as file:
                return page(log_file.decode(file), after, since_ms, limit)
        except FileNotFoundError:
            return []

    async def sweep(self) -> int:
        """Delete what is older than the retention time; how many logs that were."""
        return await asyncio.to_thread(self._sweep, time.time() - self._limits.retention_days * 86400)

    def _sweep(self, oldest: float) -> int:
        swept = 0
        for path in self._folder.glob("*/*"):
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)
                swept += 1
        for folder in self._folder.glob("*"):
            if not any(folder.iterdir()) and folder.stat().st_mtime < oldest:
                folder.rmdir()
        if swept:
            log.info("logs_swept", count=swept)
        return swept


async def _chunks(runtime: Runtime, key: RunKey, limit: int) -> AsyncGenerator[bytes]:
    """The encoded log in pieces of ~256 KB, at most about `limit` bytes."""
    chunk = bytearray()
    size = 0
    async for line in runtime.follow(key, None):
        chunk += log_file.encode(line)
        if len(chunk) >= _CHUNK:
            size += len(chunk)
            yield bytes(chunk)
            chunk.clear()
        # The engine's own rotation keeps a log within its limit; tokens make the copy somewhat larger.
        if size > 4 * limit:
            log.warning("log_cut", key=str(key), bytes=size)
            break
    yield bytes(chunk)
