"""Background work: every loop and every task that nobody awaits is named, logged, counted, and begun again after a
back-off. Nothing else in the fleet makes tasks of its own (`tests/unit/test_no_bare_tasks.py`).

Three kinds, by what happens after an error:

- `every`: passes of a periodic work. A pass that fails is followed by the next, soon at first, then less often.
- `keep`: work that goes on until it returns (a follower, a delivery that must succeed). It is begun again.
- `once`: one attempt. Its owner plans again what it did not do, and says there who that is.

A task that fails without end makes its process unhealthy (`health.py`), so that it is seen, not only logged.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any, TypeVar

import structlog

from fleet.actors.health import STEADY_S, TaskHealth, process_health

log = structlog.get_logger(__name__)
Result = TypeVar("Result")
Work = Callable[[], Awaitable[object]]

BACKOFF_FIRST_S = 0.2
BACKOFF_MOST_S = 30.0


def backoff_s(failures: int, first_s: float = BACKOFF_FIRST_S, most_s: float = BACKOFF_MOST_S) -> float:
    """The pause after so many failures in a row: doubles from `first_s`, at most `most_s`."""
    return min(most_s, first_s * 2.0 ** min(failures - 1, 32))


class SupervisedTasks:
    """The background work of one owner. `owner` and `context` say whose it is in logs; `<owner>.<name>` is the label
    `task` of the metrics, so names must be few and never ids.

    Tasks begin without the context of who began them: a request's id must not stay in the log lines of a loop.
    `once` is the exception, since it is mostly a part of a request's work.
    """

    def __init__(self, owner: str, *, health: TaskHealth = process_health, **context: Any) -> None:
        self._owner = owner
        self._context = context
        self._health = health
        self._tasks: set[asyncio.Task[Any]] = set()

    def every(
        self, name: str, work: Work, seconds: float | Callable[[], float], *, limit_s: float, at_once: bool = False
    ) -> asyncio.Task[None]:
        """Do `work` every so many seconds until closed. A pass that takes longer than `limit_s` seconds is cancelled
        and counts as failed. `at_once`: the first pass is now, not after the first pause."""
        return self._begin(name, partial(self._repeat, name, work, seconds, limit_s, at_once), {})

    def keep(
        self,
        name: str,
        work: Work,
        *,
        first_s: float = BACKOFF_FIRST_S,
        most_s: float = BACKOFF_MOST_S,
        **context: Any,
    ) -> asyncio.Task[None]:
        """Do `work` until it returns; whenever it raises, it is begun again after a back-off, which begins anew once
        an attempt has gone on for `STEADY_S` seconds."""
        return self._begin(name, partial(self._persist, name, work, first_s, most_s, context), context)

    def once(self, name: str, work: Coroutine[Any, Any, Result], **context: Any) -> asyncio.Task[Result]:
        """Begin; an error is logged and counted, and whoever awaits the task has it too."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._done_once, name, context))
        return task

    async def settled(self) -> None:
        """Return once nothing runs, and what that began has ended too. For tests and shutdown."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Cancel what runs, and see it end."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._health.forget_owner(self)

    # What a task does --------------------------------------------------------------------------------------------

    def _begin(
        self, name: str, work: Callable[[], Coroutine[Any, Any, None]], context: dict[str, Any]
    ) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work(), name=f"{self._owner}.{name}", context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)

    async def _repeat(
        self, name: str, work: Work, seconds: float | Callable[[], float], limit_s: float, at_once: bool
    ) -> None:
        failures = 0
        wait = 0.0 if at_once else _seconds(seconds)
        while True:
            await asyncio.sleep(wait)
            if await self._attempt(name, work, failures, {}, limit_s):
                failures, wait = 0, _seconds(seconds)
            else:
                failures += 1
                # Sooner than the next regular pass while it may be a hiccup, later when it is not; never a busy loop.
                wait = min(backoff_s(failures), max(_seconds(seconds), BACKOFF_FIRST_S))

    async def _persist(self, name: str, work: Work, first_s: float, most_s: float, context: dict[str, Any]) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            if await self._attempt(name, work, failures, context, None):
                return
            failures = 1 if loop.time() - began >= STEADY_S else failures + 1
            await asyncio.sleep(backoff_s(failures, first_s, most_s))

    async def _attempt(
        self, name: str, work: Work, failures: int, context: dict[str, Any], limit_s: float | None
    ) -> bool:
        """One try; whether it ended well. Only a cancellation of the task itself gets out."""
        label = f"{self._owner}.{name}"
        with self._health.attempt(label, self, lasting=limit_s is None):
            try:
                async with asyncio.timeout(limit_s):
                    await work()
                self._health.succeeded(label, self)
                return True
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                self._failed(name, error, context, failures)  # what it waited for was cancelled, not this task
            except Exception as error:
                self._failed(name, error, context, failures)
        return False

    def _done_once(self, name: str, context: dict[str, Any], task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(name, error, context, 0)
            self._health.forget(f"{self._owner}.{name}", self)

    def _failed(self, name: str, error: BaseException, context: dict[str, Any], failures: int) -> None:
        label = f"{self._owner}.{name}"
        self._health.failed(label, self, error)
        facts = {**self._context, **context}
        log.error(
            "background_task_failed",
            task=label,
            failures=failures + 1,
            error=repr(error),
            exc_info=error if failures == 0 else None,  # one trace a series; the count tells the rest
            **facts,
        )


def _seconds(given: float | Callable[[], float]) -> float:
    return given() if callable(given) else given


async def first_done(*works: Coroutine[Any, Any, Any]) -> None:
    """Return when one of them has ended, the others cancelled and seen to end. Raises what the first raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
