"""A runtime whose containers a test moves by hand and whose calls fail, or hang, when the test says so."""

import asyncio
import copy
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import replace
from typing import Any

from fleet.errors import Conflict
from fleet.node.model import NodeShare
from fleet.node.node import Node
from fleet.node.runtime import (
    BuildRef,
    EngineUnavailable,
    Exited,
    LaunchSpec,
    LogLine,
    Network,
    Observed,
    Port,
    Readiness,
    RunKey,
)
from fleet.settings import NodeSettings

PORT = Port("game", 7777, 20000, "udp")
SHARE = NodeShare(4096, 4.0, 20000, 20100, "127.0.0.1", "127.0.0.1")
AWAY = EngineUnavailable("the engine does not answer")


class StubRuntime:
    """`containers` are what the engine would list. `faults` maps a method's name to what it raises, or to a coroutine
    function that it awaits first; `calls` counts them."""

    name = "stub"

    def __init__(self, networks: "StubNetworks | None" = None) -> None:
        self.containers: dict[RunKey, Observed] = {}
        self.faults: dict[str, Exception | Callable[[], Awaitable[None]]] = {}
        self.calls: Counter[str] = Counter()
        self.networks = networks
        self.open: set[RunKey] = set()
        self._ends: asyncio.Queue[Exited | Exception] = asyncio.Queue()

    async def _call(self, name: str) -> None:
        self.calls[name] += 1
        fault = self.faults.get(name)
        if isinstance(fault, Exception):
            raise copy.copy(fault)
        if fault is not None:
            await fault()

    # What a test does to it ---------------------------------------------------------------------------------------

    def put(self, key: RunKey, *, running: bool = True, ports: tuple[Port, ...] = (PORT,)) -> None:
        self.containers[key] = Observed(key, running, ports, {}, started_at=1 if running else None)
        self.open.add(key)

    def die(self, key: RunKey, code: int = 137, *, told: bool = True) -> None:
        """The game ends; `told`: the engine's stream says so."""
        seen = self.containers[key]
        self.containers[key] = replace(seen, running=False, ended_at=2, exit_code=code)
        self.open.discard(key)
        if told:
            self._ends.put_nowait(Exited(key, 2, code, tail="last words"))

    def cut(self, error: Exception) -> None:
        """The stream of ends breaks."""
        self._ends.put_nowait(error)

    # The protocol -------------------------------------------------------------------------------------------------

    def warnings(self) -> tuple[str, ...]:
        return ()

    def hear(self, heard: Any) -> None: ...

    def say(self, key: RunKey, word: Any) -> None: ...

    async def start(self) -> None:
        await self._call("start")

    async def close(self) -> None:
        self.calls["close"] += 1

    async def prepare(self, build: BuildRef) -> None:
        await self._call("prepare")

    async def launch(self, spec: LaunchSpec) -> None:
        await self._call("launch")
        self.put(spec.key, ports=spec.ports)

    async def readiness(self, spec_ports: tuple[Port, ...], key: RunKey) -> Readiness:
        await self._call("readiness")
        return Readiness() if key in self.open else Readiness(missing=spec_ports)

    async def exits(self) -> AsyncIterator[Exited]:
        self.calls["exits"] += 1
        while True:
            told = await self._ends.get()
            if isinstance(told, Exception):
                raise told
            yield told

    async def stop(self, key: RunKey, grace_s: float) -> None:
        await self._call("stop")
        if key in self.containers and self.containers[key].running:
            self.die(key, 0)

    async def remove(self, key: RunKey) -> None:
        await self._call("remove")
        seen = self.containers.get(key)
        if seen is not None and seen.running:
            raise Conflict("The server still runs; stop it first.")
        self.containers.pop(key, None)

    async def remove_orphans(self) -> int:
        await self._call("remove_orphans")
        return 0

    async def freeze(self, key: RunKey) -> None:
        await self._call("freeze")

    async def thaw(self, key: RunKey) -> None:
        await self._call("thaw")

    async def full_disks(self, keys: Collection[RunKey]) -> frozenset[RunKey]:
        return frozenset()

    async def usage(self, keys: Collection[RunKey]) -> dict[RunKey, Any]:
        await self._call("usage")
        return {}

    async def serve(self, key: RunKey) -> None:
        await self._call("serve")

    async def rewrite_config(self, key: RunKey, config: dict[str, Any]) -> None: ...

    async def logs(self, key: RunKey, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        return []

    async def follow(self, key: RunKey, after: str | None) -> AsyncIterator[LogLine]:
        for line in ():
            yield line

    async def list(self) -> list[Observed]:
        found = list(self.containers.values())
        await self._call("list")
        return found


class StubNetworks:
    """`listing` is awaited by each listing; `there` are the networks of the engine."""

    def __init__(self) -> None:
        self.there: dict[str, Network] = {}
        self.listing: Callable[[], Awaitable[None]] | None = None
        self.dropped: list[str] = []
        self.fault: Exception | None = None

    async def make(self, name: str, bind_host: str, ports: tuple[Port, ...]) -> None:
        if self.fault is not None:
            raise self.fault
        self.there[name] = Network(name, bind_host, ports, taken=False)

    def take(self, name: str) -> None:
        self.there[name] = replace(self.there[name], taken=True)

    async def drop(self, name: str) -> None:
        if self.fault is not None:
            raise self.fault
        self.there.pop(name, None)
        self.dropped.append(name)

    async def alive(self) -> None: ...

    async def list(self) -> list[Network]:
        if self.listing is not None:
            await self.listing()
        return list(self.there.values())


async def nothing(_: Any) -> None: ...


def node_on(runtime: Any, **habits: Any) -> Node:
    """A node that looks often, so that bounds are short."""
    quick = {"health_every_s": 0.0, "usage_every_s": 0.0, "warm_networks": 0, "reconcile_every_s": 0.05}
    return Node("n", SHARE, runtime, nothing, nothing, NodeSettings(**(quick | habits)))


def launch_spec(key: RunKey, ports: tuple[Port, ...] = (PORT,)) -> LaunchSpec:
    return LaunchSpec(
        key, "us-east", "p", BuildRef("b", "zip", "hash"), 256, 1.0, False, ports, "127.0.0.1", None, {}, {}, {}
    )
