"""A node's runs: launches them, watches them boot and end, and tells the region.

This is the agent without Ray, so that tests drive it directly. Containers and their labels are the truth; what is
kept here is derived, rebuilt by `start()`, and compared with the engine's list again and again (`reconcile.py`).
Commands are idempotent by run key and carry the manager's epoch: an older one is refused. What the node was told to do
it does in the end, whatever fails meanwhile (`duty.py`).
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import structlog

from fleet.actors.health import process_health
from fleet.actors.tasks import SupervisedTasks
from fleet.errors import Fenced, NotFound, Unavailable
from fleet.node.disk_watch import LOOK_LIMIT_S as LOOK_DISKS_LIMIT_S
from fleet.node.disk_watch import LOOK_S as LOOK_DISKS_S
from fleet.node.disk_watch import DiskWatch
from fleet.node.ends import Ends
from fleet.node.hearing import LOOK_S, READY_BY, Hearing
from fleet.node.launcher import Launcher, TlsEnd
from fleet.node.model import Drain, Hello, NodeShare, Page, RunState, RunView
from fleet.node.node_ports import NodePorts
from fleet.node.outbox import Outbox
from fleet.node.ports import is_free
from fleet.node.run import Run, waiting_for
from fleet.node.runtime import (
    BuildRef,
    EngineUnavailable,
    LaunchSpec,
    LogLine,
    Observed,
    Port,
    Readiness,
    RunKey,
    Runtime,
)
from fleet.node.sampler import Sampler
from fleet.node.tenure import Tenure
from fleet.node.vigil import Vigil
from fleet.node.warm_networks import WarmNetworks
from fleet.node.words import Ready
from fleet.settings import NodeSettings
from fleet.times import now_ms

log = structlog.get_logger(__name__)
_BOOT_MS = 5_000
RECONCILE_LIMIT_S, SAMPLE_LIMIT_S = 120.0, 60.0
ORPHANS_EVERY_S, ORPHANS_LIMIT_S = 600.0, 300.0


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
        tenure: Tenure | None = None,
        tls: TlsEnd | None = None,
    ) -> None:
        self.node_id = node_id
        self.share = share
        self.tenure = tenure or Tenure()
        self._runtime = runtime
        self._tls = tls
        self._ports = NodePorts(share, free, *([tls.serves] if tls else []))
        self._runs: dict[RunKey, Run] = {}
        self._habits = habits
        self._outbox = Outbox()
        self._launcher = Launcher(runtime, self._ports, fetch, self, tls)
        self._tasks = SupervisedTasks("node", node=node_id)
        self._hearing = Hearing(self._runs.get, self.tell, self._hear_beats)
        runtime.hear(self._hearing.heard)
        self._sampler = Sampler(self._running, runtime.usage)
        self._disk_watch = DiskWatch(
            lambda: {key: self._runs[key] for key in self._running()},
            runtime.full_disks,
            lambda run, full: self.tell(run, disk_full=full),
        )
        networks, warm = runtime.networks, habits.warm_networks
        self._warm = WarmNetworks(networks, self._ports, warm, self._busy, self._networks_in_use, self._tasks)
        self._ends = Ends(runtime, archive, self, self._runs, self._tasks)
        self._boot_id = secrets.token_hex(8)
        self._epoch = 0

    async def start(self) -> None:
        """Adopt every container of ours, then follow the engine's exits. If that fails, the node is closed: another
        one may try again."""
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        await self._runtime.start()
        # Before the listing: what ends after it is told, what ended before it is listed.
        self._ends.follow()
        seen = await self._runtime.list()
        if self._tls is not None:
            await self._tls.adopt(any(port.tls for run in seen if run.running for port in run.ports))
        await self._warm.adopt({run.network for run in seen if run.running and run.network})
        for observed in seen:
            self.adopt(observed)
        self._ends.adopted()
        self._begin_habits()

    def _hear_beats(self) -> None:
        self._tasks.every("hear_beats", self._hearing.look, LOOK_S, limit_s=LOOK_S)

    def _begin_habits(self) -> None:
        every, habits = self._tasks.every, self._habits
        self._warm.begin()
        if habits.usage_every_s:
            every("sample_usage", self._sampler.sample, habits.usage_every_s, limit_s=SAMPLE_LIMIT_S)
        if habits.reconcile_every_s:
            every("reconcile", self._ends.reconcile, habits.reconcile_every_s, limit_s=RECONCILE_LIMIT_S)
            orphans = self._runtime.remove_orphans
            every("remove_orphans", orphans, ORPHANS_EVERY_S, limit_s=ORPHANS_LIMIT_S, at_once=True)
        every("look_at_disks", self._disk_watch.look, LOOK_DISKS_S, limit_s=LOOK_DISKS_LIMIT_S)
        if habits.health_every_s:
            look = self._runtime.readiness
            vigil = Vigil(lambda: list(self._runs.values()), look, self._health, habits.health_every_s)
            self._tasks.keep("vigil", vigil.run)

    async def close(self) -> None:
        """What runs here runs on. Also of a node that has not started, or only half."""
        await self._launcher.preparer.close()
        await self._tasks.close()
        if self._tls is not None:
            await (self._tls.end() if self.tenure.retired else self._tls.close())
        await self._runtime.close()

    # Commands of the manager ------------------------------------------------------------------------------------

    def hello(self, epoch: int) -> Hello:
        """Everything this node runs. From now on only this epoch or a newer one may command."""
        self._check(epoch)
        runs = tuple(run.view for run in self._runs.values() if not run.forgetting)
        host, seq, tenure = self.share.public_host, self._outbox.seq, self.tenure
        known = (tenure.ray_node, self._launcher.preparer.builds, tenure.drain, *self._state())
        return Hello(self._boot_id, seq, self.node_id, host, self.share, self._runtime.name, runs, *known)

    async def poll(self, epoch: int, boot_id: str, after: int, timeout_s: float) -> Page | None:
        """Events after a number; None when this is another life of the agent (say hello again)."""
        self._check(epoch)
        if boot_id != self._boot_id:
            return None
        page = await self._outbox.after(after, timeout_s)
        warnings, failures, failing = self._state()
        return replace(page, drain=self.tenure.drain, warnings=warnings, failures=failures, failing=failing)

    def _state(self) -> tuple[tuple[str, ...], dict[str, int], tuple[str, ...]]:
        """Warnings, and the background failures of this process."""
        failing = process_health.failing()
        told = tuple(f"the agent's task {one.task} fails without end: {one.error}" for one in failing)
        return (*self._runtime.warnings(), *told), process_health.counts(), tuple(one.task for one in failing)

    async def prepare(self, epoch: int, build: BuildRef) -> None:
        """Have the build ready before its first server comes. LaunchFailed or FleetError if that cannot be."""
        self._check(epoch)
        try:
            await self._launcher.preparer.ensure(build)
        except EngineUnavailable as error:
            raise Unavailable(str(error)) from error

    def set_drain(self, epoch: int, drain: Drain | None) -> None:
        self._check(epoch)
        self.tenure.set_drain(drain)

    def notice(self, until: int | None) -> None:
        """The machine will be taken away: the region hears of it at once."""
        self.tenure.drain = Drain("notice", until)
        self._outbox.wake()

    def retire(self, epoch: int) -> None:
        """The region gives this node back. Conflict if something runs here after all."""
        self._check(epoch)
        self.tenure.retire(sum(not run.view.state.ended for run in self._runs.values()))

    async def launch(self, epoch: int, spec: LaunchSpec) -> tuple[Port, ...]:
        """Reserve host ports and begin the launch; its progress comes as events. Same key again: same ports."""
        self._check(epoch)
        known = self._runs.get(spec.key)
        if known is not None:
            return known.view.ports
        warm = self._warm.take(spec)
        spec = warm or replace(spec, ports=self._launcher.reserve(spec.key, spec.ports))
        spec = replace(spec, region=self.tenure.scope or spec.region)
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
        run = self._runs[spec.key] = Run(view, ready_by_game=spec.labels.get(READY_BY) == "game")
        self._outbox.put(view)
        run.network = spec.network
        # One attempt: it waits for the engine by itself, and what it cannot do is told as the run's failure.
        run.task = self._tasks.once("launch", self._launcher.launch(run, spec), run=str(spec.key))
        return spec.ports

    def stop(self, epoch: int, key: RunKey, grace_s: float) -> None:
        """Begin to end a run; the end comes as an event. It is tried until it has ended; asked for again, a try that
        was to come later is made now."""
        self._check(epoch)
        run = self._runs.get(key)
        if run is not None and not run.view.state.ended:
            self._ends.stop(run, grace_s)

    def ready(self, epoch: int, key: RunKey) -> None:
        """The project says for its game that it takes players: as if the game had said so itself."""
        self._check(epoch)
        self._runtime.say(key, Ready())

    async def freeze(self, epoch: int, key: RunKey) -> None:
        """Let a running game stand still; an event says so. One that ends or has not begun is left alone."""
        self._check(epoch)
        run = self._runs.get(key)
        if run is not None and run.view.state is RunState.RUNNING and not run.stopping:
            async with run.temperature:
                await self._runtime.freeze(key)
                self.tell(run, frozen=True)

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
            self.tell(run, frozen=False)

    def forget(self, epoch: int, key: RunKey) -> None:
        """The region has recorded this run's end: keep its log, remove the rest; tried until nothing is left."""
        self._check(epoch)
        run = self._runs.get(key)
        if run is not None and run.view.state.ended:
            self._ends.forget(run)

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

    def usage(self, key: RunKey, period_s: int, step_s: int) -> dict[str, Any]:
        """What a run used over time (see `Sampler.read`), and `players` as it said last."""
        return self._sampler.read(key, period_s, step_s) | {"players": self._hearing.players(key)}

    def _running(self) -> list[RunKey]:
        alive = (RunState.BOOTING, RunState.RUNNING)
        return [key for key, run in self._runs.items() if run.view.state in alive]

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

    # Ends -------------------------------------------------------------------------------------------------------

    def end(self, run: Run, state: RunState, *, at: int | None = None, **facts: Any) -> None:
        if run.view.state.ended:
            return
        if run.task is not None and run.task is not asyncio.current_task():
            run.task.cancel()
        run.view = replace(run.view, state=state, at=at or now_ms(), **facts)
        run.ended.set()
        self._ports.release(str(run.view.key))
        self.leave_network(run)
        self._outbox.put(run.view)

    def forgotten(self, run: Run) -> None:
        """Nothing is left of it."""
        self._runs.pop(run.key, None)
        self._hearing.forget(run.key)

    def found(self, seen: Observed) -> None:
        """The engine has one that nobody knows here: adopted, and told, so that the region says what becomes of it."""
        self.adopt(seen)
        self._outbox.put(self._runs[seen.key].view)

    def leave_network(self, run: Run) -> None:
        """The run is not on its warm network any more, and nobody will be again."""
        if run.network is not None:
            self._warm.drop(run.network)
            run.network = None

    def _networks_in_use(self) -> set[str]:
        return {run.network for run in self._runs.values() if run.network is not None}

    def _busy(self) -> bool:
        """Whether somebody waits for a game to start, or to boot, if that does not take long."""
        waited_for = (RunState.CREATING, RunState.BOOTING)
        return any(run.view.state in waited_for and now_ms() - run.view.at < _BOOT_MS for run in self._runs.values())

    def move(self, run: Run, state: RunState) -> None:
        if not run.view.state.ended:
            run.view = replace(run.view, state=state, at=now_ms(), message="")
            self._outbox.put(run.view)
            self._warm.poke()

    def tell(self, run: Run, **facts: Any) -> None:
        """Tell a change of a run that goes on, if it is one."""
        view = replace(run.view, **facts)
        if not run.view.state.ended and view != run.view:
            run.view = view
            self._outbox.put(view, urgent=True)

    def _health(self, run: Run, seen: Readiness) -> None:
        log.warning("health changed", node=self.node_id, run=str(run.view.key), healthy=seen.ready)
        self.tell(run, healthy=seen.ready, message=waiting_for(seen))

    # Adoption ---------------------------------------------------------------------------------------------------

    def adopt(self, seen: Observed) -> None:
        """A container that is there and not known: its run goes on, or its end waits for the region."""
        if seen.key in self._runs or (not seen.running and seen.exit_code is None):
            return  # created but never started: the region launches it again, or it is removed after a while
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
        run = self._runs[seen.key] = Run(view, ready_by_game=seen.labels.get(READY_BY) == "game")
        if seen.running:
            run.network = seen.network
            for port in seen.ports if seen.network is None else ():  # else its network holds them
                self._ports.adopt(port, str(seen.key))
            run.task = self._tasks.keep("until_ready", lambda: self._launcher.until_ready(run, seen.ports))
            self._tasks.keep("serve", lambda: self._runtime.serve(seen.key), run=str(seen.key))
        else:
            run.ended.set()
