"""What a node must do in the end (a stop, a forget): tried until it is done, sooner if it is asked for again."""

from collections.abc import Awaitable, Callable
from typing import Any

from fleet.actors.tasks import SupervisedTasks

MOST_PAUSE_S = 10.0


class Duty:
    """One duty of one run. `name` and `context` as of `SupervisedTasks.keep`."""

    def __init__(self, name: str, **context: Any) -> None:
        self._name, self._context = name, context
        self._cancel: Callable[[], object] | None = None
        self._trying = False

    def ask(self, tasks: SupervisedTasks, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` until it succeeds or the tasks are closed. While a try is under way nothing is added to it; while
        one is waited for, it is made now."""
        if self._trying:
            return
        if self._cancel is not None:
            self._cancel()

        async def attempt() -> None:
            self._trying = True
            try:
                await work()
            finally:
                self._trying = False

        self._cancel = tasks.keep(self._name, attempt, most_s=MOST_PAUSE_S, **self._context).cancel
