"""Work that nobody awaits: kept alive until it ends, its faults logged, ended with its owner."""

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import Any, TypeVar

import structlog

log = structlog.get_logger(__name__)
Result = TypeVar("Result")


class Background:
    """`of` and `context` say whose work it is when some of it fails."""

    def __init__(self, of: str, **context: Any) -> None:
        self._of = of
        self._context = context
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Awaitable[Result], **context: Any) -> asyncio.Task[Result]:
        """Begin; asyncio itself would keep only a weak reference."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, context))
        return task

    def _done(self, context: dict[str, Any], task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error(
                "background work failed", of=self._of, error=repr(error), exc_info=error, **self._context, **context
            )

    async def settled(self) -> None:
        """Return once nothing runs, and what that began has ended too."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Cancel what runs, and see it end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
