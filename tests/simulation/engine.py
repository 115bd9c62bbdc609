"""A machine's engine: containers that outlive the agents, and the runtime by which an agent reaches them.

What a game does follows from its build's name (`GAMES`). Every call may fail before or after it had its effect, hang,
or come late; ends may be told twice, or while nobody listens.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from fleet.errors import NotFound
from fleet.node.runtime import (
    BuildRef,
    EngineUnavailable,
    Exited,
    LaunchFailed,
    LaunchSpec,
    LogLine,
    Network,
    Observed,
    Port,
    PortTaken,
    Readiness,
    RunKey,
)
from fleet.times import now_ms
from tests.simulation.faults import Weather
from tests.simulation.loop import nobodys_context


@dataclass(frozen=True, slots=True)
class Game:
    """Seconds. `boot_s` None: it never opens its ports. `lives_s`: at most so long in the mean, then it exits."""

    boot_s: float | None = 2.0
    lives_s: float | None = None
    exit_code: int = 1
    stop_s: float = 0.2


GAMES = {
    "good": Game(),
    "slow": Game(boot_s=25.0, stop_s=20.0),
    "crashy": Game(lives_s=40.0),
    "short": Game(lives_s=60.0, exit_code=0),
    "deaf": Game(boot_s=None),
    "broken": Game(),  # its launch is refused
}


@dataclass(slots=True)
class Container:
    key: RunKey
    game: Game
    ports: tuple[Port, ...]
    labels: dict[str, str]
    memory_mb: int
    cpus: float
    network: str | None
    config: dict[str, Any]
    started_at: int
    ready_at: int | None
    ended_at: int | None = None
    exit_code: int = 0
    frozen: bool = False


def _later(delay_s: float, work: Callable[..., None], *arguments: Any) -> None:
    """By the machine itself: no agent's death keeps it from happening."""
    asyncio.get_running_loop().call_later(delay_s, work, *arguments, context=nobodys_context())


class Engine:
    """`broken_rule(text)`: something happened that never may."""

    def __init__(self, name: str, memory_mb: int, weather: Weather, broken_rule: Callable[[str], None]) -> None:
        self.note: Callable[[str], None] = lambda _text: None
        self.name, self.memory_mb, self.weather, self._broken_rule = name, memory_mb, weather, broken_rule
        self.containers: dict[RunKey, Container] = {}
        self.networks: dict[str, Network] = {}
        self.away = self.hung = 0
        self._listeners: list[asyncio.Queue[RunKey]] = []
        self._untold: list[RunKey] = []

    # What happens on the machine ------------------------------------------------------------------------------------

    def running(self) -> list[Container]:
        return [one for one in self.containers.values() if one.ended_at is None]

    def create(self, spec: LaunchSpec) -> None:
        known = self.containers.get(spec.key)
        if known is not None and known.ended_at is None:
            return
        taken = tuple(port for port in spec.ports if self._taken(port, spec.network))
        if taken:
            raise PortTaken(taken, "in use")
        game = GAMES.get(spec.build.build_id.split("-")[-1], GAMES["good"])
        now = now_ms()
        ready_at = None if game.boot_s is None else now + int(self.weather.uniform(0.5, 1.5) * game.boot_s * 1000)
        self.containers[spec.key] = made = Container(
            spec.key,
            game,
            spec.ports,
            spec.labels,
            spec.memory_mb,
            spec.cpus if spec.dedicated else 0.0,
            spec.network,
            spec.config,
            now,
            ready_at,
        )
        self.note(f"  {self.name}: {spec.key} runs")
        if game.lives_s is not None:
            _later(self.weather.uniform(1.0, 2 * game.lives_s), self.end, made, game.exit_code)
        used = sum(one.memory_mb for one in self.running())
        if used > self.memory_mb:
            held = ", ".join(f"{one.key} {one.memory_mb}" for one in self.running())
            self._broken_rule(f"{self.name} is overfilled: {used} of {self.memory_mb} MB: {held}")

    def _taken(self, port: Port, own: str | None) -> bool:
        held = [other for one in self.running() for other in one.ports]
        held += [other for network in self.networks.values() if network.name != own for other in network.ports]
        return any((other.external, other.protocol) == (port.external, port.protocol) for other in held)

    def end(self, container: Container, exit_code: int) -> None:
        if container.ended_at is not None or self.containers.get(container.key) is not container:
            return
        container.ended_at, container.exit_code, container.frozen = now_ms(), exit_code, False
        self.note(f"  {self.name}: {container.key} ends with {exit_code}")
        self._tell(container.key)
        if self.weather.strikes("engine_flaky", 0.2):
            self._tell(container.key)

    def _tell(self, key: RunKey) -> None:
        if self.away or self.hung:
            self._untold.append(key)
            return
        for queue in self._listeners:
            _later(self.weather.latency(0.005), queue.put_nowait, key)

    def back(self) -> None:
        """What ended while it could not tell, it tells now."""
        untold, self._untold = self._untold, []
        for key in untold:
            self._tell(key)

    def listen(self) -> "asyncio.Queue[RunKey]":
        queue: asyncio.Queue[RunKey] = asyncio.Queue()
        self._listeners.append(queue)
        return queue

    def vanish(self, key: RunKey) -> None:
        """Somebody has removed it by hand."""
        self.containers.pop(key, None)

    def lose_all(self) -> None:
        """The machine is gone, or starts anew."""
        self.containers.clear()
        self.networks.clear()
        self._listeners.clear()
        self._untold.clear()

    # Its doors ------------------------------------------------------------------------------------------------------

    async def reach(self) -> None:
        await self._drag()
        await asyncio.sleep(self.weather.latency(0.01))
        while self.hung:  # noqa: ASYNC110  many things end it
            await asyncio.sleep(0.5)
        if self.away:
            raise EngineUnavailable("connection refused (simulated)")
        if self.weather.strikes("engine_flaky", 0.2):
            if self.weather.pick("fail", "slow") == "fail":
                raise EngineUnavailable("read timed out (simulated)")
            await asyncio.sleep(self.weather.uniform(0.2, 10))

    async def _drag(self) -> None:
        if self.weather.open["engine_slow"]:  # overloaded, as with hundreds of containers
            await asyncio.sleep(self.weather.uniform(0.1, 8))

    async def answer(self) -> None:
        """The answer on its way: what it says may be old when it comes."""
        await self._drag()
        if self.weather.strikes("engine_flaky", 0.2):
            if self.weather.pick("lost", "late") == "lost":
                raise EngineUnavailable("the answer was lost (simulated)")
            await asyncio.sleep(self.weather.uniform(0.2, 10))


class SimRuntime:
    """The `Runtime` of one life of an agent."""

    name = "virtual"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.networks = SimNetworks(engine)
        self._queue: asyncio.Queue[RunKey] | None = None

    async def _call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        await self._engine.reach()
        result = work(*arguments)
        await self._engine.answer()
        return result

    def warnings(self) -> tuple[str, ...]:
        return ()

    async def start(self) -> None:
        await self._engine.reach()
        self._queue = self._engine.listen()

    async def close(self) -> None: ...

    async def prepare(self, build: BuildRef) -> None:
        await self._engine.reach()
        await asyncio.sleep(self._engine.weather.latency(1.0))
        if build.build_id.endswith("broken"):
            raise LaunchFailed("STARTUP_FAILURE_EXECUTABLE", "There is no such file.")

    async def launch(self, spec: LaunchSpec) -> None:
        await self._engine.reach()
        await asyncio.sleep(self._engine.weather.latency(0.3))
        await self._call(self._engine.create, spec)

    async def readiness(self, spec_ports: tuple[Port, ...], key: RunKey) -> Readiness:
        one = self._engine.containers.get(key)
        ready = one is not None and one.ended_at is None and one.ready_at is not None and now_ms() >= one.ready_at
        return Readiness() if ready else Readiness(missing=spec_ports)

    async def exits(self) -> AsyncIterator[Exited]:
        queue = self._queue or self._engine.listen()
        while True:
            one = self._engine.containers.get(await queue.get())
            if one is not None and one.ended_at is not None:
                yield Exited(
                    one.key, one.ended_at, one.exit_code, tail="" if one.exit_code == 0 else "Segmentation fault"
                )

    async def stop(self, key: RunKey, grace_s: float) -> None:
        await self._engine.reach()
        one = self._engine.containers.get(key)
        if one is not None and one.ended_at is None:
            polite = one.game.stop_s <= grace_s
            wait_s = min(one.game.stop_s, grace_s)
            _later(wait_s, self._engine.end, one, 0 if polite else 137)
            await asyncio.sleep(wait_s + 0.01)
        await self._engine.answer()

    async def remove(self, key: RunKey) -> None:
        def remove() -> None:
            one = self._engine.containers.get(key)
            if one is not None:
                self._engine.end(one, 137)
                del self._engine.containers[key]

        await self._call(remove)

    async def remove_orphans(self, *_known: Any) -> int:
        return 0

    def _running(self, key: RunKey) -> Container:
        one = self._engine.containers.get(key)
        if one is None or one.ended_at is not None:
            raise NotFound(f"Run {key} does not run.")
        return one

    async def freeze(self, key: RunKey) -> None:
        await self._call(lambda: setattr(self._running(key), "frozen", True))

    async def thaw(self, key: RunKey) -> None:
        await self._call(lambda: setattr(self._running(key), "frozen", False))

    async def rewrite_config(self, key: RunKey, config: dict[str, Any]) -> None:
        await self._call(lambda: setattr(self._running(key), "config", config))

    async def full_disks(self, keys: Collection[RunKey]) -> frozenset[RunKey]:
        return frozenset()

    async def usage(self, keys: Collection[RunKey]) -> dict[RunKey, Any]:
        return {}

    def hear(self, heard: Any) -> None: ...

    def say(self, key: RunKey, word: Any) -> None: ...

    async def serve(self, key: RunKey) -> None: ...

    async def logs(self, key: RunKey, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        return []

    async def follow(self, key: RunKey, after: str | None) -> AsyncIterator[LogLine]:
        for line in ():
            yield line

    async def list(self) -> list[Observed]:
        def seen(one: Container) -> Observed:
            code = None if one.ended_at is None else one.exit_code
            return Observed(
                one.key,
                one.ended_at is None,
                one.ports,
                one.labels,
                one.started_at,
                one.ended_at,
                code,
                memory_mb=one.memory_mb,
                cpus=one.cpus,
                frozen=one.frozen,
                network=one.network,
            )

        return await self._call(lambda: [seen(one) for one in self._engine.containers.values()])


@dataclass(slots=True)
class SimNetworks:
    engine: Engine
    _taken: set[str] = field(default_factory=set[str])

    async def _call(self, work: Callable[[], Any]) -> Any:
        await self.engine.reach()
        return work()

    async def make(self, name: str, bind_host: str, ports: tuple[Port, ...]) -> None:
        def make() -> None:
            if taken := tuple(port for port in ports if self.engine._taken(port, name)):
                raise PortTaken(taken, "in use")
            self.engine.networks[name] = Network(name, bind_host, ports, taken=False)

        await self._call(make)

    def take(self, name: str) -> None:
        if (one := self.engine.networks.get(name)) is not None:
            self.engine.networks[name] = Network(name, one.bind_host, one.ports, taken=True)

    async def drop(self, name: str) -> None:
        await self._call(lambda: self.engine.networks.pop(name, None))

    async def alive(self) -> None:
        await self.engine.reach()

    async def list(self) -> list[Network]:
        return await self._call(lambda: list(self.engine.networks.values()))
