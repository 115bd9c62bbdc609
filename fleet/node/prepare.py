"""Builds on this node: fetched and made ready once, however many launches and preparations ask at the same time."""

from collections.abc import Awaitable, Callable

from fleet.actors.single_flight import SingleFlight
from fleet.limits.fair import FairGate, Places
from fleet.node.runtime import BuildRef

FETCHES = Places(6, 2, 2)  # at the same time: in all, of one project, for projects that have none under way
_MOST_WAITING = 10_000


class Preparer:
    """`work` fetches a build and makes it ready; whoever asks while that goes on waits for the same work.

    `builds`: those that have been made ready in this life of the agent.
    """

    def __init__(self, work: Callable[[BuildRef], Awaitable[None]]) -> None:
        self._work = work
        self._gate = FairGate("fetches", FETCHES, queue=_MOST_WAITING, wait_s=None)
        self._under_way: SingleFlight[str, None] = SingleFlight()
        self.builds: frozenset[str] = frozenset()

    async def ensure(self, build: BuildRef) -> None:
        """Return when the build is ready here; the error of the work otherwise, for everybody who waits."""
        await self._under_way.do(build.build_id, lambda: self._run(build))

    async def _run(self, build: BuildRef) -> None:
        async with self._gate.place(build.project_id):
            await self._work(build)
        self.builds |= {build.build_id}

    async def close(self) -> None:
        await self._under_way.close()
