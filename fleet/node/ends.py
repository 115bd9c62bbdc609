"""How runs end here: what the engine tells, what the region orders, and what neither told but the engine's list shows.

Stops and forgets are duties (`duty.py`): tried until they are done. The engine tells each end once, perhaps while the
node is still adopting, perhaps into a stream that has just broken; so early ends are kept, and the engine's list is
compared with what is known again and again (`reconcile.py`).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import structlog

from fleet.actors.tasks import SupervisedTasks
from fleet.errors import Conflict
from fleet.node.model import RunState
from fleet.node.reconcile import Finding, Suspicions, compare, end_of
from fleet.node.run import Run, start_refused
from fleet.node.runtime import EngineUnavailable, Exited, Observed, RunKey, Runtime
from fleet.times import now_ms

log = structlog.get_logger(__name__)

EXIT_TOLD_S = 2.0  # after a stop, by then the engine has told the end
LOG_KEPT_S = 120.0  # copying a log takes longer only if the engine hangs
FOLLOW_AGAIN_MOST_S = 5.0


class Told(Protocol):
    """Who is told of ends."""

    def end(self, run: Run, state: RunState, *, at: int | None = None, **facts: Any) -> None: ...

    def forgotten(self, run: Run) -> None: ...

    def found(self, seen: Observed) -> None: ...


class Ends:
    """`archive` keeps the log of an ended run; `runs` are those that are known."""

    def __init__(
        self,
        runtime: Runtime,
        archive: Callable[[RunKey], Awaitable[None]],
        told: Told,
        runs: Mapping[RunKey, Run],
        tasks: SupervisedTasks,
    ) -> None:
        self._runtime, self._archive, self._told, self._runs, self._tasks = runtime, archive, told, runs, tasks
        self._suspicions = Suspicions()
        self._early: dict[RunKey, Exited] | None = {}  # told before adoption was done; None from then on

    # What the engine tells --------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Hear of ends from now on."""
        self._tasks.keep("follow_exits", self._follow, most_s=FOLLOW_AGAIN_MOST_S)

    async def _follow(self) -> None:
        async for exited in self._runtime.exits():
            self._ended(exited)

    def adopted(self) -> None:
        """All that was there is known: what was told meanwhile counts now."""
        early, self._early = self._early or {}, None
        for exited in early.values():
            self._ended(exited)

    def _ended(self, exited: Exited) -> None:
        run = self._runs.get(exited.key)
        if run is None:
            if self._early is not None:
                self._early[exited.key] = exited
            return
        refusal = start_refused(exited) if run.view.state in (RunState.CREATING, RunState.BOOTING) else None
        if refusal:
            self._told.end(run, RunState.FAILED, at=exited.at, reason="STARTUP_FAILURE_EXECUTABLE", message=refusal)
            return
        facts = {"exit_code": exited.exit_code, "oom": exited.oom, "message": exited.tail}
        self._told.end(run, RunState.EXITED, at=exited.at, **facts)

    # What the region orders -------------------------------------------------------------------------------------

    def stop(self, run: Run, grace_s: float) -> None:
        run.stopping = True
        run.stop.ask(self._tasks, lambda: self._stop(run, grace_s))

    async def _stop(self, run: Run, grace_s: float) -> None:
        if run.task is not None and not run.task.done():
            run.task.cancel()
            await asyncio.gather(run.task, return_exceptions=True)
        if run.view.state is RunState.PREPARING:  # the engine has been asked for nothing, so it need not be there
            self._told.end(run, RunState.EXITED, message="Stopped before it ran.")
            return
        await self._runtime.stop(run.key, grace_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_TOLD_S):
                await run.ended.wait()
        if not run.view.state.ended:
            self._end_untold(run, {seen.key: seen for seen in await self._runtime.list()}.get(run.key))

    def _end_untold(self, run: Run, seen: Observed | None) -> None:
        """A stop has been carried out, and no event told an end. Conflict if there is none."""
        if seen is not None and seen.running:
            raise Conflict(f"Run {run.key} has been stopped and still runs.")
        if seen is not None and seen.exit_code is not None:
            self._ended(end_of(run.key, seen, now_ms()))
        else:  # called off before its process ran
            self._told.end(run, RunState.EXITED, message="Stopped before it ran.")

    def forget(self, run: Run) -> None:
        run.forgetting = True
        run.forget.ask(self._tasks, lambda: self._forget(run))

    async def _forget(self, run: Run) -> None:
        if run.view.state is RunState.EXITED:
            try:
                async with asyncio.timeout(LOG_KEPT_S):
                    await self._archive(run.key)
            except EngineUnavailable:  # then it cannot be removed either, and its log is worth another try
                raise
            except Exception:  # the log is worth less than the room that its container holds
                log.exception("log_not_kept", run=str(run.key))
        try:
            await self._runtime.remove(run.key)
        except Conflict:  # it was told as ended and runs
            await self._runtime.stop(run.key, 0)
            await self._runtime.remove(run.key)
        self._told.forgotten(run)

    # What nobody told -------------------------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Compare what is known with the engine's list, and put right what passes in a row have found wrong."""
        seen = await self._runtime.list()
        found = compare(seen, {key: run.view.state for key, run in self._runs.items()})
        for (finding, key), observed in self._suspicions.confirm(found).items():
            log.warning("run_put_right", run=str(key), finding=finding.name.lower())
            self._put_right(finding, key, observed)

    def _put_right(self, finding: Finding, key: RunKey, observed: Observed | None) -> None:
        run = self._runs.get(key)
        if finding in (Finding.ENDED, Finding.VANISHED):
            self._ended(end_of(key, observed, now_ms()))
        elif finding is Finding.UNDEAD and run is not None:
            run.stop.ask(self._tasks, lambda: self._runtime.stop(key, 0))
        elif finding is Finding.UNKNOWN and observed is not None:
            self._told.found(observed)
        elif finding is Finding.HALF_MADE:
            # One attempt: the next pass finds what is left.
            self._tasks.once("remove_half_made", self._remove_half_made(key), run=str(key))

    async def _remove_half_made(self, key: RunKey) -> None:
        if key not in self._runs:  # no launch has come since
            await self._runtime.remove(key)
