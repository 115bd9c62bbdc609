"""One simulated fleet: the real managers, nodes, keepers and clients, with simulated edges, under faults."""

import asyncio
import contextlib
import gc
import random
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import structlog
import yaml

from fleet import times
from fleet.region import agents, head_actor
from fleet.region.nodes_config import load_nodes_config
from fleet.settings import FleetSettings, get_settings
from fleet.telemetry import logs
from tests.simulation.cloud import Actor, Cloud, CloudAgents, Handle, Machine
from tests.simulation.database import Database, installed
from tests.simulation.faults import Fault, Weather
from tests.simulation.invariants import Invariants
from tests.simulation.loop import Clock, Process, VirtualLoop, virtual
from tests.simulation.workload import Workload

REGIONS = ("us-east", "eu-west")
MACHINES = 3  # of each region, at most
SETTINGS: dict[str, Any] = {
    "servers": {"queue_deadline_s": 120.0, "ready_deadline_s": 60.0},
    "node": {"warm_networks": 1, "usage_every_s": 0, "health_every_s": 10.0},
    "scaling": {"surplus_s": 120.0},
    "lobbies": {"shards": 1},
}
NODES: dict[str, Any] = {
    "regions": list(REGIONS),
    "node": {
        "memory_mb": 6144,
        "cores": 4,
        "max_nodes": MACHINES,
        "min_nodes": 0,
        "lead_time_s": 10,
        "ports": {"first": 20000, "per_region": 60},
    },
}


@dataclass
class Result:
    """`broken`: what never may be, or has not become true in time; with virtual times."""

    seed: int
    broken: list[str]
    log: list[str]
    faults: Sequence[Fault]
    facts: dict[str, Any] = field(default_factory=dict[str, Any])


class World:
    def __init__(self, seed: int, faults: Sequence[Fault], folder: Path, span_s: float) -> None:
        self.seed, self.faults, self.folder, self.span_s = seed, faults, folder, span_s
        self.clock = Clock()
        self.loop = VirtualLoop(self.clock, random.Random(f"loop/{seed}"))
        self.weather = Weather(random.Random(f"weather/{seed}"))
        self.log: list[str] = []
        self.calm_since = 0.0
        self._active = 0
        (folder / "nodes.yaml").write_text(yaml.safe_dump(NODES))
        self.settings = FleetSettings(home=folder, node_config=folder / "nodes.yaml", runtime="simulated", **SETTINGS)
        nodes = load_nodes_config(self.settings.node_config)
        shares = {region: {"default": nodes.node(region)} for region in REGIONS}
        self.invariants = Invariants(self)
        self.database = Database(folder / "fleet.db", self.weather, self.invariants.committed)
        self.cloud = Cloud(self.loop, self.weather, self.settings, shares, MACHINES, self.invariants.broke)
        self.cloud.log = self.note
        self.workload = Workload(self, random.Random(f"workload/{seed}"))

    def note(self, text: str) -> None:
        self.log.append(f"{self.clock.now:8.2f} s  {text}")

    @property
    def calm(self) -> float:
        """Seconds since anything went wrong."""
        return 0.0 if self._active else self.clock.now - self.calm_since

    # The run --------------------------------------------------------------------------------------------------------

    async def run(self, quiet_s: float) -> None:
        """Commands and faults; then only time, until everything is as it should be, for `quiet_s` at most."""
        self.database.make()
        await self.workload.prepare()
        working = asyncio.ensure_future(self.workload.run(self.span_s))
        troubles = [asyncio.ensure_future(self._befall(fault)) for fault in self.faults]
        watching = asyncio.ensure_future(self.invariants.watch())
        machines = asyncio.ensure_future(self.cloud.keep_machines())
        recovering = asyncio.ensure_future(self.workload.recover())
        await working
        await asyncio.gather(*troubles)
        self.note("no more faults, no more commands")
        self.calm_since = self.clock.now
        await self.invariants.settle(quiet_s)
        if not self.invariants.broken:
            await self.workload.canary(self.invariants.broke)
        for task in (watching, recovering, machines):
            task.cancel()
        await asyncio.gather(watching, recovering, machines, return_exceptions=True)
        self.invariants.at_end()

    async def _befall(self, fault: Fault) -> None:
        await asyncio.sleep(max(0.0, fault.at - self.clock.now))
        self._active += 1
        try:
            await getattr(self, f"_{fault.kind}", self._window)(fault)
        finally:
            self._active -= 1
            self.calm_since = self.clock.now

    # Faults ---------------------------------------------------------------------------------------------------------

    async def _window(self, fault: Fault) -> None:
        self.note(f"{fault.kind} for {fault.for_s:.1f} s")
        self.weather.open[fault.kind] += 1
        await asyncio.sleep(fault.for_s)
        self.weather.open[fault.kind] -= 1
        self.note(f"{fault.kind} ends")

    async def _clock_step(self, fault: Fault) -> None:
        step = 3600.0 if fault.where % 2 else -3600.0
        self.note(f"the clock steps by {step:+.0f} s")
        self.clock.wall_offset += step

    def _actors(self, prefix: str) -> list[Actor]:
        return [one for name, one in self.cloud.actors.items() if name.startswith(prefix) and one.state != "dead"]

    def _target(self, fault: Fault, prefix: str) -> Actor | None:
        found = self._actors(prefix)
        return found[fault.where % len(found)] if found else None

    async def _kill(self, fault: Fault, prefix: str) -> None:
        actor = self._target(fault, prefix)
        if actor is None:
            return
        if fault.steps:
            actor.process.steps_left = fault.steps
            self.note(f"{actor.name} is killed after {fault.steps} steps")
        else:
            actor.process.kill()
            self.note(f"{actor.name} is killed")
        await asyncio.sleep(1.0)

    async def _manager_kill(self, fault: Fault) -> None:
        await self._kill(fault, "region:")

    async def _keeper_kill(self, fault: Fault) -> None:
        await self._kill(fault, "lobbies:")

    async def _agent_kill(self, fault: Fault) -> None:
        await self._kill(fault, "agent:")

    async def _head_away(self, fault: Fault) -> None:
        actors = [*self._actors("region:"), *self._actors("lobbies:")]
        self.note(f"the head is away for {fault.for_s:.1f} s")
        for actor in actors:
            actor.away += 1
            actor.process.kill()
        await asyncio.sleep(fault.for_s)
        for actor in actors:
            actor.away -= 1
        self.note("the head is back")

    async def _agent_hang(self, fault: Fault) -> None:
        actor = self._target(fault, "agent:")
        if actor is None:
            return
        process: Process = actor.process
        process.stop()
        self.note(f"{process.name} on {actor.machine and actor.machine.name} stands still for {fault.for_s:.1f} s")
        if fault.for_s < float("inf"):
            await asyncio.sleep(fault.for_s)
            process.go_on()
            self.note(f"{process.name} goes on")

    async def _manager_hang(self, fault: Fault) -> None:
        """Its watchdog kills it after `hung_s`; keepers of lobbies have the same."""
        actor = self._target(fault, "region:" if fault.where % 3 else "lobbies:")
        if actor is None:
            return
        process: Process = actor.process
        process.stop()
        self.note(f"{process.name} stands still for {fault.for_s:.1f} s")
        await asyncio.sleep(min(fault.for_s, self.settings.hung_s))
        if fault.for_s > self.settings.hung_s:
            process.kill()
        process.go_on()

    async def _agent_gone(self, fault: Fault) -> None:
        actor = self._target(fault, "agent:")
        if actor is not None:
            self.note(f"{actor.name} on {actor.machine and actor.machine.name} is dead for good")
            self.cloud.end(actor)

    def _machine(self, fault: Fault) -> Machine | None:
        found = [one for one in self.cloud.machines if not one.gone]
        return found[fault.where % len(found)] if found else None

    async def _engine_away(self, fault: Fault) -> None:
        await self._engine(fault, "away")

    async def _engine_hang(self, fault: Fault) -> None:
        await self._engine(fault, "hung")

    async def _engine(self, fault: Fault, how: str) -> None:
        machine = self._machine(fault)
        if machine is None:
            return
        engine = machine.engine
        self.note(f"the engine of {machine.name} is {how} for {fault.for_s:.1f} s")
        setattr(engine, how, getattr(engine, how) + 1)
        await asyncio.sleep(fault.for_s)
        setattr(engine, how, getattr(engine, how) - 1)
        if not engine.away and not engine.hung:
            engine.back()

    async def _machine_freeze(self, fault: Fault) -> None:
        machine = self._machine(fault)
        if machine is None:
            return
        self.note(f"{machine.name} is frozen for {fault.for_s:.1f} s")
        process = machine.agent.process if machine.agent else None
        if process is not None:
            process.stop()
        await self.cloud.cut(machine, fault.for_s, lost=False)
        if process is not None:
            process.go_on()
        self.note(f"{machine.name} is back")

    async def _machine_cut(self, fault: Fault) -> None:
        machine = self._machine(fault)
        if machine is not None:
            self.note(f"{machine.name} is cut off for {fault.for_s:.1f} s")
            await self.cloud.cut(machine, fault.for_s, lost=False)
            self.note(f"{machine.name} is back")

    async def _machine_lost(self, fault: Fault) -> None:
        machine = self._machine(fault)
        if machine is not None:
            self.note(f"{machine.name} is lost")
            await self.cloud.cut(machine, 31.0, lost=True)

    async def _container_vanishes(self, fault: Fault) -> None:
        machine = self._machine(fault)
        running = machine.engine.running() if machine else []
        if machine is not None and running:
            one = running[fault.where % len(running)]
            self.note(f"container {one.key} vanishes from {machine.name}")
            machine.engine.vanish(one.key)

    # Edges ----------------------------------------------------------------------------------------------------------

    def on_head(self, kind: Any, name: str, *arguments: Any, repeats: bool, **_options: Any) -> Handle:
        """As `fleet.region.head_actor.on_head`: the actor of that name, made if there is none."""
        actor = self.cloud.actors.get(name)
        if actor is None or actor.state == "dead":
            body = kind.__ray_metadata__.modified_class

            async def make(_process: Process) -> Any:
                one = body.__new__(body)
                await one.__init__(*arguments)
                return one

            actor = self.cloud.begin(name, make, repeats=repeats)
        return Handle(self.cloud, actor)

    @contextlib.contextmanager
    def edges(self) -> Generator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(virtual(self.clock, self.seed))
            stack.enter_context(installed(self.database))
            stack.enter_context(_steady(self.clock))
            for original, replacement in (
                (get_settings, lambda: self.settings),
                (logs.setup_logging, lambda *_args, **_named: None),
                (head_actor.on_head, self.on_head),
                (agents.agents_of, lambda _settings, _nodes, region: CloudAgents(self.cloud, region)),
            ):
                _replace(stack, original, replacement)
            for name in ("freeze", "set_threshold"):
                stack.enter_context(mock.patch.object(gc, name))
            structlog.configure(processors=[self._logged])
            yield

    def _logged(self, _logger: Any, level: str, event: dict[str, Any]) -> Any:
        if level in ("warning", "error", "exception", "critical"):
            fault = event.pop("exc_info", None)
            shown = " ".join(f"{key}={value}" for key, value in event.items())
            self.note(f"  {level}: {shown}" + (f" {fault!r}" if isinstance(fault, BaseException) else ""))
        raise structlog.DropEvent


def _replace(stack: contextlib.ExitStack, original: Any, replacement: Any) -> None:
    """In every module of the fleet that has it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("fleet."):
            for attribute in [key for key, value in vars(module).items() if value is original]:
                stack.enter_context(mock.patch.object(module, attribute, replacement))


@contextlib.contextmanager
def _steady(clock: Clock) -> Generator[None]:
    if not hasattr(times, "use_clock"):  # an older fleet: it reads the wall clock
        yield
        return
    before = times._clock
    times.use_clock(times.SteadyClock(wall=clock.wall_ns, steady=clock.steady_ns))
    yield
    times.use_clock(before)
