"""Builds on this node: fetched and made ready once, however many launches and preparations ask at the same time."""

import asyncio
from collections.abc import Awaitable, Callable

from fleet.node.runtime import BuildRef


class Preparer:
    """`work` fetches a build and makes it ready; whoever asks while that goes on waits for the same work.

    `builds`: those that have been made ready in this life of the agent.
    """

    def __init__(self, work: Callable[[BuildRef], Awaitable[None]]) -> None:
        self._work = work
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self.builds: frozenset[str] = frozenset()

    async def ensure(self, build: BuildRef) -> None:
        """Return when the build is ready here; the error of the work otherwise, for everybody who waits."""
        task = self._under_way.get(build.build_id)
        if task is None:
            task = self._under_way[build.build_id] = asyncio.create_task(self._run(build))
            task.add_done_callback(lambda done: self._finished(build, done))
        await asyncio.shield(task)

    async def _run(self, build: BuildRef) -> None:
        await self._work(build)
        self.builds |= {build.build_id}

    def _finished(self, build: BuildRef, task: asyncio.Task[None]) -> None:
        del self._under_way[build.build_id]
        if not task.cancelled():
            task.exception()  # told to those who waited, who may all have gone

    async def close(self) -> None:
        for task in list(self._under_way.values()):
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
