"""Ray's edge: actors that are called by handle, die and are started again; machines that come and go.

A call is carried by nobody's process: it may be late, lost, done twice, or done though its answer is lost. An actor
whose process dies is begun anew after a moment; one whose beginning raises is dead for ever, as Ray has it.
"""

import asyncio
import inspect
import pickle
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from fleet.node.agent import Agent
from fleet.node.logs import LogArchive
from fleet.node.model import Hello, NodeShare
from fleet.node.node import Node
from fleet.node.tenure import Tenure
from fleet.region import agents
from fleet.region.names import agent_name, agent_prefix
from fleet.settings import FleetSettings
from tests.simulation.engine import Engine, SimRuntime
from tests.simulation.faults import Weather
from tests.simulation.loop import Process, VirtualLoop, nobodys_context

RAY_NOTICES_S = 30.0  # a machine that does not answer for so long is dead to Ray
IDLE_S = 90.0  # a machine that nobody has leased for so long is taken back
MACHINE_S = 8.0  # the autoscaler has another machine within about so long

Make = Callable[[Process], Awaitable[Any]]


@dataclass(slots=True, eq=False)
class Machine:
    """`cut`: nobody reaches it. `dead`: Ray has said so of this life of its raylet. `gone`: it is no more."""

    name: str
    region: str
    engine: Engine
    share: NodeShare
    life: int = 0
    cut: int = 0
    dead: bool = False
    gone: bool = False
    taken_back: bool = False
    idle_since: float = 0.0
    agent: "Actor | None" = None

    @property
    def ray_node(self) -> str:
        return f"{self.name}/{self.life}"

    @property
    def free(self) -> bool:
        return (self.agent is None or self.agent.state == "dead") and not self.gone and not self.cut


@dataclass(eq=False)
class Actor:
    """`state`: coming (it has never been up), restarting, up, dead. `away`: it is not begun again before that ends."""

    name: str
    make: Make
    repeats: bool
    process: Process
    state: str = "coming"
    body: Any = None
    away: int = 0
    lives: int = 0
    up_at: float = 0.0
    machine: Machine | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def moved(self, state: str) -> None:
        self.state = state
        self.changed.set()
        self.changed = asyncio.Event()


class Cloud:
    def __init__(
        self,
        loop: VirtualLoop,
        weather: Weather,
        settings: FleetSettings,
        shares: Mapping[str, Mapping[str, NodeShare]],
        most: int,
        broken_rule: Callable[[str], None],
    ) -> None:
        self.loop, self.weather, self.settings, self.shares, self.most = loop, weather, settings, shares, most
        self.broken_rule = broken_rule
        self.actors: dict[str, Actor] = {}
        self.machines: list[Machine] = []
        self.log: Callable[[str], None] = lambda _text: None
        self._numbers = count(1)
        self._dead: list[Any] = []  # what killed processes were doing; kept, so that Python does not clear up after it

    # Actors ---------------------------------------------------------------------------------------------------------

    def begin(self, name: str, make: Make, *, repeats: bool) -> Actor:
        actor = self.actors[name] = Actor(name, make, repeats, Process(name, self.loop))
        self.spawn(self._live(actor))
        return actor

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Of no process."""
        return self.loop.create_task(work, context=nobodys_context())

    async def _live(self, actor: Actor) -> None:
        """One life after the other."""
        while actor.state != "dead":
            if actor.machine is None and actor.name.startswith("agent:"):
                actor.machine = await self._machine_for(actor)
            while actor.away or (actor.machine is not None and actor.machine.cut and not actor.machine.dead):  # noqa: ASYNC110  many things end it
                await asyncio.sleep(0.5)
            if actor.state == "dead":
                break
            if actor.machine is not None and (actor.machine.dead or actor.machine.gone):
                actor.machine.agent = None
                actor.machine = None
                continue
            actor.process = process = Process(f"{actor.name}#{actor.lives}", self.loop)
            ended = asyncio.Event()
            process.on_end.append(ended.set)
            actor.lives += 1
            beginning = self.loop.create_task(actor.make(process), context=process.context())
            dying = asyncio.ensure_future(ended.wait())
            await asyncio.wait([beginning, dying], return_when=asyncio.FIRST_COMPLETED)
            if not process.dead:
                error = beginning.exception()
                if error is not None:
                    dying.cancel()
                    self.log(f"{actor.name} could not begin, and is dead for good: {error!r}")
                    self.end(actor)
                    return
                actor.body = beginning.result()
                actor.up_at = self.loop.time()
                actor.moved("up")
                await dying
            if actor.state == "dead":
                return
            actor.body = None
            actor.moved("restarting" if actor.state == "up" else actor.state)
            await asyncio.sleep(self.weather.uniform(0.3, 3.0))

    def end(self, actor: Actor) -> None:
        """For good."""
        actor.moved("dead")
        actor.process.kill()
        if actor.machine is not None and actor.machine.agent is actor:
            actor.machine.agent = None

    def call(self, actor: Actor, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        answer = self.loop.create_future()
        work = self._carry(actor, method, pickle.dumps((arguments, named)), answer)
        self.spawn(work)
        return answer

    async def _carry(self, actor: Actor, method: str, packed: bytes, answer: Any) -> None:
        weather = self.weather
        await asyncio.sleep(weather.latency(0.002))
        lost = twice = False
        if weather.strikes("calls_flaky", 0.15):
            match weather.pick("refused", "hang", "late", "twice", "lost"):
                case "refused":
                    return _give(answer, error=ActorUnavailableError("simulated", None))
                case "hang":
                    return  # never done, never answered
                case "late":
                    await asyncio.sleep(weather.uniform(1, 30))
                case "twice":
                    twice = True
                case _:
                    lost = True
        while True:
            if actor.state == "dead":
                return _give(answer, error=ActorDiedError())
            if actor.state != "up":
                if actor.state == "restarting" and not actor.repeats:
                    return _give(answer, error=ActorUnavailableError("restarting", None))
                await actor.changed.wait()
                continue
            if actor.machine is not None and actor.machine.cut:
                await asyncio.sleep(weather.uniform(5, 20))  # the network's own patience
                return _give(answer, error=ActorUnavailableError("no route (simulated)", None))
            process = actor.process
            outcome = await self._do(process, actor.body, method, packed)
            if twice:
                self.spawn(self._do(process, actor.body, method, packed))
            if outcome is None:  # it died meanwhile
                if actor.repeats:
                    await asyncio.sleep(0.1)
                    continue
                return _give(answer, error=ActorUnavailableError("died", None))
            break
        await asyncio.sleep(weather.latency(0.002))
        if lost:
            return _give(answer, error=ActorUnavailableError("the answer was lost (simulated)", None))
        result, error = outcome
        if error is not None:
            error = RayTaskError(method, "simulated", error).as_instanceof_cause()
        return _give(answer, result, error)

    async def _do(self, process: Process, body: Any, method: str, packed: bytes) -> tuple[Any, Exception | None] | None:
        """What the method gave or raised; None if the process has died."""
        arguments, named = pickle.loads(packed)
        done = self.loop.create_future()

        async def run() -> None:
            try:
                result = await getattr(body, method)(*arguments, **named)
            except Exception as error:
                outcome: Any = (None, error)
            else:
                outcome = (pickle.loads(pickle.dumps(result)), None)
            if not done.done():
                done.set_result(outcome)

        def died() -> None:
            if not done.done():
                done.set_result(None)

        if process.dead:
            return None
        process.on_end.append(died)
        work = run()
        self.loop.create_task(work, context=process.context())
        outcome = await done
        if outcome is None:
            work.close() if inspect.getcoroutinestate(work) == inspect.CORO_CREATED else self._dead.append(work)
        if died in process.on_end:
            process.on_end.remove(died)
        return outcome

    # Machines -------------------------------------------------------------------------------------------------------

    def of(self, region: str) -> list[Machine]:
        return [one for one in self.machines if one.region == region and not one.gone]

    async def _machine_for(self, actor: Actor) -> Machine:
        region = actor.name.split(":")[1]
        while True:
            free = next((one for one in self.of(region) if one.free), None)
            if free is None and len(self.of(region)) < self.most:
                free = self._another(region)
                free.agent = actor
                await asyncio.sleep(self.weather.uniform(0.5, 2 * MACHINE_S))
            if free is not None and not free.gone:
                free.agent = actor
                if free.dead:  # its raylet comes back as another one
                    free.dead, free.life = False, free.life + 1
                return free
            if actor.state == "dead":
                raise asyncio.CancelledError
            await asyncio.sleep(1.0)

    async def keep_machines(self) -> None:
        """The autoscaler takes machines back that nobody leases, whatever still lies there."""
        while True:
            await asyncio.sleep(5.0)
            for machine in self.machines:
                if not machine.free:
                    machine.idle_since = self.loop.time()
                elif self.loop.time() - machine.idle_since > IDLE_S:
                    self._take_back(machine)

    def _take_back(self, machine: Machine) -> None:
        self.log(f"{machine.name} is taken back")
        machine.gone = machine.taken_back = True
        machine.engine.lose_all()

    def _another(self, region: str) -> Machine:
        name = f"m{next(self._numbers)}"
        share = next(iter(self.shares[region].values()))
        engine = Engine(name, share.memory_mb, self.weather, self.broken_rule)
        engine.note = self.log
        machine = Machine(name, region, engine, share)
        self.machines.append(machine)
        return machine

    async def cut(self, machine: Machine, for_s: float, *, lost: bool) -> None:
        """Nobody reaches it for so long; then Ray, too, calls it dead. `lost`: what ran there is gone at once."""
        machine.cut += 1
        agent = machine.agent
        if lost:
            machine.gone = True
            machine.engine.lose_all()
            if agent is not None:
                agent.process.kill()
        await asyncio.sleep(min(RAY_NOTICES_S, for_s))
        if for_s > RAY_NOTICES_S or lost:
            machine.dead = True
            if agent is not None:  # its raylet is fenced, and takes its actors with it
                agent.process.kill()
        await asyncio.sleep(max(0.0, min(for_s, 1e9) - RAY_NOTICES_S))
        machine.cut -= 1


def _give(answer: Any, result: Any = None, error: BaseException | None = None) -> None:
    if not answer.done():
        answer.set_exception(error) if error is not None else answer.set_result(result)
        answer.exception()


class Handle:
    """What code holds of an actor."""

    def __init__(self, cloud: Cloud, actor: Actor) -> None:
        self.cloud, self.actor = cloud, actor

    def __getattr__(self, method: str) -> "_Method":
        if method.startswith("__"):
            raise AttributeError(method)
        return _Method(self.cloud, self.actor, method)


@dataclass(slots=True)
class _Method:
    cloud: Cloud
    actor: Actor
    name: str

    def remote(self, *arguments: Any, **named: Any) -> Any:
        return self.cloud.call(self.actor, self.name, arguments, named)


class CloudAgents:
    """`Agents` (fleet/region/agents.py) of one region."""

    def __init__(self, cloud: Cloud, region: str) -> None:
        self._cloud, self._region = cloud, region
        self._marks = count()

    def known(self) -> dict[str, Any]:
        prefix = agent_prefix(self._region)
        found = {name: actor for name, actor in self._cloud.actors.items() if name.startswith(prefix)}
        return {name: Handle(self._cloud, actor) for name, actor in found.items() if actor.state != "dead"}

    def ask(self, node_class: str, known: Collection[str]) -> tuple[str, Any]:
        taken = {*known, *self._cloud.actors}
        name = next(n for mark in self._marks if (n := agent_name(self._region, node_class, f"{mark:x}")) not in taken)
        cloud = self._cloud

        async def make(process: Process) -> Agent:
            machine = actor.machine
            assert machine is not None
            runtime = SimRuntime(machine.engine)

            async def nothing(_of: Any) -> None: ...

            archive = LogArchive(cloud.settings.home / "logs", cloud.settings.logs)
            tenure = Tenure(machine.ray_node, self._region)
            node_id = f"{self._region}@{machine.name}"
            node = Node(
                node_id,
                machine.share,
                runtime,
                nothing,
                nothing,
                cloud.settings.node,
                lambda _host, _port: True,
                tenure,
            )
            await node.start()
            return Agent(node, archive)

        actor = cloud.begin(name, make, repeats=False)
        return name, Handle(cloud, actor)

    def give_back(self, handle: Any) -> None:
        self._cloud.end(handle.actor)

    def restart(self, handle: Any) -> None:
        """Its raylet kills the process, if anybody can reach that."""
        machine = handle.actor.machine
        if machine is None or not machine.cut:
            self._cloud.log(f"{handle.actor.name} is begun anew")
            handle.actor.process.kill()

    async def presence(self, handle: Any) -> Any:
        """What Ray says of it."""
        actor: Actor = handle.actor
        await asyncio.sleep(self._cloud.weather.latency(0.01))
        if actor.state != "up":
            return agents.Presence.GONE if actor.state == "dead" else agents.Presence.WAITING
        if actor.process.stopped or (actor.machine is not None and actor.machine.cut):
            await asyncio.sleep(5.0)
            return agents.Presence.HANGS
        return agents.Presence.ANSWERS

    def dead(self, hello: Hello) -> bool:
        machine = next((one for one in self._cloud.machines if one.name == hello.ray_node.split("/")[0]), None)
        if hasattr(agents, "Presence"):  # known for sure: only the autoscaler's own doing
            return machine is not None and machine.taken_back
        return machine is None or machine.gone or machine.dead or machine.ray_node != hello.ray_node
