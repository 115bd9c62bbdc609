"""A node's runs: launches them, watches them boot and end, and tells the region.

This is the agent without Ray, so that tests drive it directly. Containers and their labels are the truth; what is
kept here is derived and rebuilt by `start()`. Commands are idempotent by run key and carry the manager's epoch: an
older one is refused.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import structlog

from fleet.errors import Fenced, FleetError, NotFound
from fleet.node.model import Hello, NodeShare, Page, RunState, RunView
from fleet.node.outbox import Outbox
from fleet.node.ports import PortAllocator, is_free
from fleet.node.run import Run, start_refused, waiting_for
from fleet.node.runtime import (
    BuildRef,
    EngineUnavailable,
    LaunchFailed,
    LaunchSpec,
    LogLine,
    Observed,
    Port,
    PortTaken,
    Readiness,
    RunKey,
    Runtime,
)
from fleet.node.vigil import Vigil
from fleet.settings import NodeSettings
from fleet.times import now_ms

log = structlog.get_logger(__name__)
T = TypeVar("T")

_ENGINE_PATIENCE_S = 120.0
_PORT_ATTEMPTS = 20


class Node:
    """All coroutines are safe to call concurrently; one Node per runtime place."""

    def __init__(
        self,
        node_id: str,
        share: NodeShare,
        runtime: Runtime,
        fetch: Callable[[BuildRef], Awaitable[None]],
        archive: Callable[[RunKey], Awaitable[None]],
        habits: NodeSettings,
        free: Callable[[str, int], bool] = is_free,
    ) -> None:
        self.node_id = node_id
        self.share = share
        self._runtime = runtime
        self._fetch = fetch
        self._archive = archive
        self._ports = PortAllocator(share.port_first, share.port_last, share.bind_host, free=free)
        self._runs: dict[RunKey, Run] = {}
        self._habits = habits
        self._outbox = Outbox()
        self._boot_id = secrets.token_hex(8)
        self._epoch = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Adopt every container of ours, then follow the engine's exits."""
        await self._patiently(self._runtime.start)
        self._spawn(self._follow_exits())
        for observed in await self._patiently(self._runtime.list):
            self._adopt(observed)
        if self._habits.health_every_s:
            every_s = self._habits.health_every_s
            vigil = Vigil(lambda: list(self._runs.values()), self._runtime.readiness, self._health, every_s)
            self._spawn(vigil.run())

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._runtime.close()

    # Commands of the manager ------------------------------------------------------------------------------------

    def hello(self, epoch: int) -> Hello:
        """Everything this node runs. From now on only this epoch or a newer one may command."""
        self._check(epoch)
        runs = tuple(run.view for run in self._runs.values() if not run.forgetting)
        host, seq = self.share.public_host, self._outbox.seq
        return Hello(self._boot_id, seq, self.node_id, host, self.share, self._runtime.name, runs)

    async def poll(self, epoch: int, boot_id: str, after: int, timeout_s: float) -> Page | None:
        """Events after a number; None when this is another life of the agent (say hello again)."""
        self._check(epoch)
        if boot_id != self._boot_id:
            return None
        return await self._outbox.after(after, timeout_s)

    async def launch(self, epoch: int, spec: LaunchSpec) -> tuple[Port, ...]:
        """Reserve host ports and begin the launch; its progress comes as events. Same key again: same ports."""
        self._check(epoch)
        known = self._runs.get(spec.key)
        if known is not None:
            return known.view.ports
        spec = replace(spec, ports=self._reserve(spec.key, spec.ports))
        cores = spec.cpus if spec.dedicated else 0.0
        view = RunView(
            spec.key,
            self.node_id,
            RunState.PREPARING,
            now_ms(),
            spec.ports,
            spec.memory_mb,
            cores,
        )
        run = self._runs[spec.key] = Run(view)
        self._outbox.put(view)
        run.task = self._spawn(self._launch(run, spec))
        return spec.ports

    def stop(self, epoch: int, key: RunKey, grace_s: float) -> None:
        """Begin to end a run; the end comes as an event. Unknown or already ending: nothing to do."""
        self._check(epoch)
        run = self._runs.get(key)
        if run is not None and not run.stopping and not run.view.state.ended:
            run.stopping = True
            self._spawn(self._stop(run, grace_s))

    async def freeze(self, epoch: int, key: RunKey) -> None:
        """Let a running game stand still; an event says so. One that ends or has not begun is left alone."""
        self._check(epoch)
        run = self._runs.get(key)
        if run is not None and run.view.state is RunState.RUNNING and not run.stopping:
            async with run.temperature:
                await self._runtime.freeze(key)
                self._tell(run, frozen=True)

    async def thaw(self, epoch: int, key: RunKey) -> None:
        """Let a frozen game go on. NotFound if it does not run: whoever wants to play needs to know."""
        self._check(epoch)
        run = self._runs.get(key)
        if run is None or run.view.state.ended:
            raise NotFound("The server's run does not run any more.", error="Server gone")
        await self._thaw(run)

    async def _thaw(self, run: Run) -> None:
        async with run.temperature:
            await self._runtime.thaw(run.view.key)
            self._tell(run, frozen=False)

    def forget(self, epoch: int, key: RunKey) -> None:
        """The region has recorded this run's end: keep its log, remove the rest."""
        self._check(epoch)
        run = self._runs.get(key)
        if run is not None and run.view.state.ended and not run.forgetting:
            run.forgetting = True
            self._spawn(self._forget(run))

    async def rewrite_config(self, epoch: int, key: RunKey, config: dict[str, Any]) -> None:
        """Replace playflow.json. A frozen game is thawed: it is told something because it is wanted."""
        self._check(epoch)
        run = self._runs.get(key)
        if run is None:
            return
        await self._runtime.rewrite_config(key, config)
        if run.view.frozen or run.temperature.locked():  # a claim may overtake a freeze that is under way
            await self._thaw(run)

    async def logs(self, key: RunKey, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        return await self._runtime.logs(key, after, since_ms, limit)

    def has(self, key: RunKey) -> bool:
        return key in self._runs

    async def wait_logs(self, key: RunKey, after: str | None, timeout_s: float) -> tuple[list[LogLine], bool]:
        """Lines after a token, waiting up to the timeout for one, and whether the run has ended."""
        run = self._runs.get(key)
        if run is None or run.view.state.ended:
            return [], True
        lines: list[LogLine] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                async for line in self._runtime.follow(key, after):
                    lines.append(line)
                    break
        if lines:  # what came with the first line need not wait for another call
            lines += await self._runtime.logs(key, lines[-1].token, None, 500)
        return lines, run.view.state.ended

    def _check(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise Fenced(f"Epoch {epoch} is replaced by {self._epoch} on node {self.node_id}.")
        self._epoch = epoch

    # Launching --------------------------------------------------------------------------------------------------

    def _reserve(self, key: RunKey, wanted: tuple[Port, ...]) -> tuple[Port, ...]:
        return tuple(replace(port, external=self._ports.take(str(key))) for port in wanted)

    async def _launch(self, run: Run, spec: LaunchSpec) -> None:
        try:
            await self._fetch(spec.build)
            await self._patiently(lambda: self._runtime.prepare(spec.build))
            self._move(run, RunState.CREATING)
            ports = await self._launch_on_free_ports(run, spec)
            self._move(run, RunState.BOOTING)
            await self._until_ready(run, ports)
        except LaunchFailed as failure:
            self._end(run, RunState.FAILED, reason=failure.reason, message=str(failure))
        except FleetError as failure:
            self._end(
                run,
                RunState.FAILED,
                reason="STARTUP_FAILURE_DOWNLOAD",
                message=failure.detail,
            )
        except asyncio.CancelledError:
            raise
        except Exception as fault:
            log.exception("launch failed", run=str(spec.key), node=self.node_id)
            self._end(
                run,
                RunState.FAILED,
                reason="STARTUP_FAILURE_URL",
                message=f"The node failed: {fault!r}",
            )

    async def _launch_on_free_ports(self, run: Run, spec: LaunchSpec) -> tuple[Port, ...]:
        for _ in range(_PORT_ATTEMPTS):
            try:
                await self._patiently(lambda spec=spec: self._runtime.launch(spec))
            except PortTaken as taken:
                log.warning(
                    "host port taken by something else",
                    run=str(spec.key),
                    error=str(taken),
                )
                for port in taken.ports or spec.ports:
                    self._ports.exclude(port.external)
                self._ports.release(str(spec.key))
                spec = replace(spec, ports=self._reserve(spec.key, spec.ports))
                run.view = replace(run.view, ports=spec.ports)
                self._outbox.put(run.view, urgent=True)
            else:
                return spec.ports
        raise LaunchFailed("STARTUP_FAILURE_PORTS", "No free host port could be found on the node.")

    async def _until_ready(self, run: Run, ports: tuple[Port, ...]) -> None:
        """The kernel gives no event for a bound socket, so look, often at first, then less."""
        delay = 0.002
        while True:
            seen = await self._runtime.readiness(ports, run.view.key)
            if run.view.state.ended:
                return
            if seen.ready:
                self._move(run, RunState.RUNNING)
                return
            message = waiting_for(seen)
            if seen.loopback and message != run.view.message:
                run.view = replace(run.view, message=message)
                self._outbox.put(run.view)
            run.view = replace(run.view, message=message)
            await asyncio.sleep(delay)
            delay = min(delay * 1.3, 0.25)

    async def _patiently(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Call, and call again while the engine is out of reach (it may be restarting)."""
        delay, waited = 0.2, 0.0
        while True:
            try:
                return await call()
            except EngineUnavailable as error:
                if waited >= _ENGINE_PATIENCE_S:
                    raise
                log.warning(
                    "engine unavailable, trying again",
                    node=self.node_id,
                    error=str(error),
                )
                await asyncio.sleep(delay)
                waited += delay
                delay = min(delay * 1.5, 5.0)

    # Ends -------------------------------------------------------------------------------------------------------

    async def _follow_exits(self) -> None:
        async for exited in self._runtime.exits():
            run = self._runs.get(exited.key)
            if run is None:
                continue
            refusal = start_refused(exited) if run.view.state in (RunState.CREATING, RunState.BOOTING) else None
            if refusal:
                self._end(run, RunState.FAILED, at=exited.at, reason="STARTUP_FAILURE_EXECUTABLE", message=refusal)
                continue
            facts = {"exit_code": exited.exit_code, "oom": exited.oom, "message": exited.tail}
            self._end(run, RunState.EXITED, at=exited.at, **facts)

    async def _stop(self, run: Run, grace_s: float) -> None:
        key = run.view.key
        if run.task is not None and not run.task.done():
            run.task.cancel()
            await asyncio.gather(run.task, return_exceptions=True)
        await self._patiently(lambda: self._runtime.stop(key, grace_s))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await run.ended.wait()
        # A launch that was called off before its process ran has no exit to report.
        self._end(run, RunState.EXITED, message="Stopped before it ran.")

    async def _forget(self, run: Run) -> None:
        key = run.view.key
        if run.view.state is RunState.EXITED:
            try:
                await self._archive(key)
            except Exception:  # the log is worth less than the room that its container holds
                log.exception("log not kept", run=str(key))
        await self._patiently(lambda: self._runtime.remove(key))
        self._runs.pop(key, None)

    def _end(self, run: Run, state: RunState, *, at: int | None = None, **facts: Any) -> None:
        if run.view.state.ended:
            return
        if run.task is not None and run.task is not asyncio.current_task():
            run.task.cancel()
        run.view = replace(run.view, state=state, at=at or now_ms(), **facts)
        run.ended.set()
        self._ports.release(str(run.view.key))
        self._outbox.put(run.view)

    def _move(self, run: Run, state: RunState) -> None:
        if not run.view.state.ended:
            run.view = replace(run.view, state=state, at=now_ms(), message="")
            self._outbox.put(run.view)

    def _tell(self, run: Run, **facts: Any) -> None:
        """Tell a change of a run that goes on, if it is one."""
        view = replace(run.view, **facts)
        if not run.view.state.ended and view != run.view:
            run.view = view
            self._outbox.put(view, urgent=True)

    def _health(self, run: Run, seen: Readiness) -> None:
        log.warning("health changed", node=self.node_id, run=str(run.view.key), healthy=seen.ready)
        self._tell(run, healthy=seen.ready, message=waiting_for(seen))

    # Adoption ---------------------------------------------------------------------------------------------------

    def _adopt(self, seen: Observed) -> None:
        if seen.key in self._runs or (not seen.running and seen.exit_code is None):
            return  # created but never started: the manager launches it again
        state = RunState.BOOTING if seen.running else RunState.EXITED
        at = (seen.started_at if seen.running else seen.ended_at) or now_ms()
        view = RunView(
            seen.key,
            self.node_id,
            state,
            at,
            seen.ports,
            seen.memory_mb,
            seen.cpus,
            seen.exit_code,
            seen.oom,
            frozen=seen.frozen,
        )
        run = self._runs[seen.key] = Run(view)
        if seen.running:
            for port in seen.ports:
                self._ports.adopt(port.external, str(seen.key))
            run.task = self._spawn(self._until_ready(run, seen.ports))
        else:
            run.ended.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error(
                "background work of the node failed",
                node=self.node_id,
                error=repr(error),
                exc_info=error,
            )
