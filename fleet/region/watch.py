"""Waiting for servers to reach a status: one question under way per process and region, for all who wait.

What is waited for goes to the manager in one call, which is answered when the first is reached. Somebody new who
waits makes another call with everything; the manager then lets go of the one before. When nobody waits, nothing is
asked.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextvars import Context

import structlog

from fleet.actors.tasks import SupervisedTasks
from fleet.region.feed import Want

log = structlog.get_logger(__name__)

_POLL_S = 25.0
_AGAIN_S = 0.2
_MANY = 50  # who wait: from here on newcomers wait a moment for company, since each call names all
_LINGER_S = 0.02


class RegionWatch:
    """`ask(who, wants, timeout_s)` is the manager's `reached`."""

    def __init__(self, ask: Callable[[str, list[Want], float], Awaitable[list[str]]]) -> None:
        self._ask = ask
        self._who = secrets.token_hex(8)
        self._waiters: dict[asyncio.Future[None], Want] = {}
        self._tasks = SupervisedTasks("region_watch")
        self._asking: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def until(
        self, instance_id: str, statuses: frozenset[str], reached: Callable[[], Awaitable[bool]], timeout_s: float
    ) -> bool:
        """Return True once the manager says so and `reached()`, which reads the row, holds; False at the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    await self._told((instance_id, statuses))
                    if await reached():
                        return True
                    await asyncio.sleep(_AGAIN_S)  # told of a row that changed again since, or after a broken call
        except TimeoutError:
            return False

    async def _told(self, want: Want) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[future] = want
        self._schedule()
        try:
            await future
        finally:
            self._waiters.pop(future, None)

    def _schedule(self) -> None:
        """Ask soon, with all who wait by then."""
        if self._scheduled:
            return
        self._scheduled = True
        asyncio.get_running_loop().call_later(_LINGER_S if len(self._waiters) > _MANY else 0, self._start)

    def _start(self) -> None:
        self._scheduled = False
        if self._waiters:
            # For many requests, so its log lines carry the id of none. Whatever ends it, `_answered` asks again.
            task = Context().run(self._tasks.once, "ask", self._carry())
            self._asking.add(task)
            task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        """Those who wait on ask again. Two questions may end in the same turn of the loop, so it is counted here."""
        self._asking.discard(task)
        if self._waiters and not self._asking:
            self._schedule()

    async def _carry(self) -> None:
        wants: dict[str, frozenset[str]] = {}
        for name, statuses in self._waiters.values():
            wants[name] = wants.get(name, frozenset()) | statuses
        told = set(wants)  # unless the manager says better, they look for themselves
        try:
            told = set(await self._ask(self._who, list(wants.items()), _POLL_S))
        except Exception as error:
            log.warning("watch_interrupted", error=getattr(error, "detail", repr(error)))
            await asyncio.sleep(_AGAIN_S)
        finally:  # also when what it waits for was cancelled: nobody waits for a question that has ended
            for future, (name, _) in list(self._waiters.items()):
                if name in told and not future.done():
                    future.set_result(None)
                    del self._waiters[future]
