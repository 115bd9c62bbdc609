"""Work that has one effect for one key, however many ask for it at the same time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Out = TypeVar("Out")


class Once(Generic[Out]):
    """Those who come while the work of their key is under way share its answer, or its error."""

    def __init__(self) -> None:
        self._under_way: dict[str, asyncio.Task[Out]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._under_way

    async def do(self, key: str, work: Callable[[], Coroutine[Any, Any, Out]]) -> Out:
        """A caller that goes away stops nothing."""
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(work())
            task.add_done_callback(lambda _: self._under_way.pop(key))
        return await asyncio.shield(task)
