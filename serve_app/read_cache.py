"""Answers to reads, kept as bytes exactly as long as the database has not changed.

SQLite tells in microseconds whether any other connection has committed since the last look. While that number
stands still, the same question by the same key has the same answer, so serving the kept bytes is exact. Where the
database cannot tell (PostgreSQL), nothing is kept.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)

Headers = list[tuple[bytes, bytes]]
Key = tuple[bytes, str, bytes]  # api key, path, query string


@dataclass(frozen=True, slots=True)
class Kept:
    """A complete answer. `until` (monotonic): the caller's key must be looked up again then."""

    headers: Headers
    body: bytes
    route: str
    until: float


class ReadCache:
    """Bounded in entries and bytes; the oldest answers go first."""

    def __init__(
        self,
        version: Callable[[], int | None],
        *,
        max_entries: int = 4096,
        max_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        self._version = version
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._bytes = 0
        self._current: int | None = None
        self._flights: dict[Key, tuple[int, asyncio.Future[Kept | None]]] = {}

    def look(self) -> int | None:
        """The database's version now; forgets everything if it has changed. None: nothing may be kept."""
        try:
            version = self._version()
        except Exception as error:  # the database is away: nothing can be compared, so nothing is kept
            log.warning("database_version_unknown", error=repr(error))
            version = None
        if version != self._current:
            self._kept.clear()
            self._bytes = 0
            self._current = version
        return version

    def get(self, key: Key) -> Kept | None:
        """The kept answer; only right after `look()`."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept.until <= time.monotonic():
            self._drop(key)
            return None
        return kept

    def put(self, key: Key, kept: Kept, version: int) -> None:
        """Keep an answer that was computed after `look()` gave `version`."""
        if version != self._current or len(kept.body) > self._max_bytes // 8:
            return
        self._drop(key)
        self._kept[key] = kept
        self._bytes += len(kept.body)
        while len(self._kept) > self._max_entries or self._bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    async def join(self, key: Key, version: int) -> Kept | None:
        """The answer to the same question if it is being computed for this version; None: compute it yourself.

        Without this, every change would make all waiting readers ask the database the same at once.
        """
        flight = self._flights.get(key)
        if flight is None or flight[0] != version:
            return None
        return await asyncio.shield(flight[1])

    def begin(self, key: Key, version: int) -> "asyncio.Future[Kept | None]":
        """Announce that this question is being computed; `end` it whatever happens."""
        flight: asyncio.Future[Kept | None] = asyncio.get_running_loop().create_future()
        self._flights[key] = (version, flight)
        return flight

    def end(self, key: Key, flight: "asyncio.Future[Kept | None]", kept: Kept | None) -> None:
        flight.set_result(kept)
        current = self._flights.get(key)
        if current is not None and current[1] is flight:
            del self._flights[key]

    def _drop(self, key: Key) -> None:
        old = self._kept.pop(key, None)
        if old is not None:
            self._bytes -= len(old.body)
