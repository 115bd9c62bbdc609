"""Work that has one effect for one key, however many ask for it at the same time."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from contextvars import Context
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Out = TypeVar("Out")


class SingleFlight(Generic[Key, Out]):
    """Those who come while the work of their key is under way share its answer, or its error."""

    def __init__(self) -> None:
        self._under_way: dict[Key, asyncio.Task[Out]] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._under_way

    async def do(self, key: Key, work: Callable[[], Coroutine[Any, Any, Out]], *, for_all: bool = False) -> Out:
        """A caller that goes away stops nothing. `for_all`: the work's log lines carry the request id of none."""
        task = self._under_way.get(key)
        if task is None:
            context = Context() if for_all else None
            task = self._under_way[key] = asyncio.get_running_loop().create_task(work(), context=context)
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    def _ended(self, key: Key, task: asyncio.Task[Out]) -> None:
        self._under_way.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever asked has it; if all have gone away, nobody misses it

    async def close(self) -> None:
        """Cancel what is under way, and see it end."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
