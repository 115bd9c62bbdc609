"""How an actor comes up: its `__init__` never raises, since Ray starts an actor whose restart raised never again.

What it needs (database, engine, Ray's head) may be away for as long as it likes: coming up is tried again until it
succeeds, and meanwhile calls wait a little, then are told what is missing.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from fleet.actors.tasks import SupervisedTasks
from fleet.errors import Unavailable

log = structlog.get_logger(__name__)

READY_WAIT_S = 20.0


class Startup:
    """`work` may be tried many times, so it begins from nothing each time, or from what it has."""

    def __init__(self, who: str, tasks: SupervisedTasks) -> None:
        self._who = who
        self._tasks = tasks
        self._ready = asyncio.Event()
        self.missing: str | None = "It is starting."

    def begin(self, work: Callable[[], Awaitable[None]]) -> None:
        """Come up in the background."""

        async def attempt() -> None:
            try:
                await work()
            except Exception as error:
                self.missing = repr(error)
                raise
            self.missing = None
            self._ready.set()

        self._tasks.keep("come_up", attempt, most_s=5.0)

    @property
    def done(self) -> bool:
        return self._ready.is_set()

    async def ready(self, wait_s: float = READY_WAIT_S) -> None:
        """Return once it is up. `Unavailable`, with what is missing, after so many seconds."""
        if self._ready.is_set():
            return
        try:
            async with asyncio.timeout(wait_s):
                await self._ready.wait()
        except TimeoutError:
            raise Unavailable(f"{self._who} is starting and not ready yet: {self.missing} Try again.") from None
