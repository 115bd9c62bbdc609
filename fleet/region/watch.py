"""Waiting for servers to change: one long poll per process and region, whatever the number of those who wait."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable

import structlog

from fleet.errors import FleetError
from fleet.region.feed import Changes
from fleet.telemetry.request_id import shared_task

log = structlog.get_logger(__name__)

_POLL_S = 25.0
_IDLE_POLLS = 2


class RegionWatch:
    """`poll(cursor, timeout_s)` is the manager's `changes`."""

    def __init__(self, poll: Callable[[str | None, float], Awaitable[Changes]]) -> None:
        self._poll = poll
        self._waiters: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._cursor: str | None = None
        self._listening = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def until(self, instance_id: str, reached: Callable[[], Awaitable[bool]], timeout_s: float) -> bool:
        """Return True once `reached()` holds, asked first and after each change of the server; False at the timeout.

        The feed is joined before the first look, so no change falls between.
        """
        changed = asyncio.Event()
        self._waiters[instance_id].add(changed)
        try:
            async with asyncio.timeout(timeout_s):
                if self._task is None or self._task.done():
                    self._task = shared_task(self._listen())
                await self._listening.wait()
                while not await reached():
                    await changed.wait()
                    changed.clear()
                return True
        except TimeoutError:
            return False
        finally:
            self._waiters[instance_id].discard(changed)
            if not self._waiters[instance_id]:
                del self._waiters[instance_id]

    async def _listen(self) -> None:
        idle = 0
        try:
            while idle < _IDLE_POLLS:
                try:
                    changes = await self._poll(self._cursor, _POLL_S)
                except FleetError as error:
                    log.warning("watch interrupted", error=error.detail)
                    self._cursor = None
                    await asyncio.sleep(0.2)
                    continue
                self._cursor = changes.cursor
                if self._listening.is_set():
                    self._wake(changes)
                self._listening.set()  # those who wait for this look for themselves
                idle = 0 if self._waiters else idle + 1
        finally:
            self._listening.clear()
            self._cursor = None

    def _wake(self, changes: Changes) -> None:
        names = list(self._waiters) if changes.lost else changes.ids
        for name in names:
            for waiter in self._waiters.get(name, ()):
                waiter.set()
