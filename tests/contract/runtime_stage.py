"""A stage for runtimes under test: a place, a runtime with its exits collected, and games to put on it."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import Conflict
from fleet.node.docker import DockerRuntime
from fleet.node.docker_spec import container_name
from fleet.node.engine import Engine
from fleet.node.health import until_ready
from fleet.node.ports import PortAllocator
from fleet.node.process import ProcessRuntime
from fleet.node.process_folder import RunFolder, family
from fleet.node.runtime import (
    BuildRef,
    EngineUnavailable,
    Exited,
    LaunchSpec,
    Port,
    RunKey,
    Runtime,
    RuntimePlace,
)
from fleet.node.server_folder import server_folder
from fleet.node.simulated import SimulatedRuntime
from fleet.settings import SimulatedSettings
from tests import games

HOST = "127.0.0.1"
PATIENCE = 60.0
SESSION = f"t{secrets.token_hex(4)}"
PORTS = PortAllocator(31000, 32700, HOST)


def engine_problem() -> str | None:
    async def ask() -> str | None:
        runtime = DockerRuntime(RuntimePlace("none", "none", Path("none"), Path("none")))
        try:
            await runtime.ping()
        except EngineUnavailable as error:
            return str(error)
        finally:
            await runtime.close()
        return None

    return asyncio.run(ask())


def make_runtime(kind: str, place: RuntimePlace) -> Runtime:
    if kind == "simulated":
        return SimulatedRuntime(place, SimulatedSettings(create_s=0.05, boot_s=0.1, stop_s=0.05))
    return DockerRuntime(place) if kind == "docker" else ProcessRuntime(place)


@dataclass
class Stage:
    """A runtime under test, with its exits collected, and what a test needs to put games on it."""

    kind: str
    folder: Path
    runtime: Runtime
    exits: dict[RunKey, Exited] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    reports: list[Exited] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    door_port: int = 7350

    def place(self) -> RuntimePlace:
        return RuntimePlace(
            f"{SESSION}{self.folder.name}",
            "us-east",
            self.folder / "servers",
            self.folder / "bundles",
            door_port=self.door_port,
        )

    def build(self, files: games.Files, *, writable: bool = False, root: str = "") -> BuildRef:
        content = secrets.token_hex(16)
        games.make_bundle(self.folder / "bundles" / content, files, str(Path(root) / games.EXECUTABLE))
        size = sum(len(data) for data, _ in files.values())
        return BuildRef(f"b{content}", "zip", content, root, writable=writable, unpacked_bytes=size)

    def spec(self, build: BuildRef, *, ports: tuple[Port, ...] | None = None, **changes: Any) -> LaunchSpec:
        key = changes.get("key") or RunKey(secrets.token_hex(8), 1)
        if ports is None:
            ports = (Port("game", 7777, PORTS.take(str(key)), "udp"),)
        fields: dict[str, Any] = {
            "key": key, "region": "us-east", "project_id": "p", "build": build, "memory_mb": 256, "cpus": 1.0,
            "dedicated": False, "ports": ports, "bind_host": HOST, "startup_args": None, "environment": {},
            "config": {"instance_id": key.instance_id, "custom_data": {"map": "arena"}}, "labels": {"fleet.test": "1"},
            "pids": 64, "tmpfs_mb": 8, "log_mb": 1, "writable_extra_mb": 8,
        }  # fmt: skip
        return LaunchSpec(**(fields | changes))

    async def running(self, files: games.Files, **changes: Any) -> LaunchSpec:
        """A game, launched and ready."""
        spec = self.spec(self.build(files), **changes)
        await self.runtime.launch(spec)
        await self.ready(spec)
        return spec

    async def ready(self, spec: LaunchSpec) -> None:
        state = await until_ready(lambda: self.runtime.readiness(spec.ports, spec.key), PATIENCE)
        assert state.ready, state

    async def exit_of(self, key: RunKey) -> Exited:
        async with asyncio.timeout(PATIENCE):
            while key not in self.exits:
                self.changed.clear()
                await self.changed.wait()
        return self.exits[key]

    async def pids(self, key: RunKey) -> list[int]:
        """Processes of a run, as the host numbers them."""
        if self.kind == "process":
            return [*family(RunFolder(server_folder(self.folder / "servers", key)).game_pid())]
        engine = Engine()
        name = container_name(self.place().fleet_id, key)
        top = await engine.call("GET", f"/containers/{name}/top")
        await engine.close()
        return [int(row[top["Titles"].index("PID")]) for row in top["Processes"]]

    async def listen(self) -> None:
        async for exited in self.runtime.exits():
            self.exits[exited.key] = exited
            self.reports.append(exited)
            self.changed.set()

    async def open(self) -> None:
        self.runtime = make_runtime(self.kind, self.place())
        await self.runtime.start()
        self.task = asyncio.create_task(self.listen())

    async def die(self) -> None:
        """What a killed agent leaves: nothing in memory."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.runtime.close()
        self.exits.clear()
        self.reports.clear()

    async def clear(self) -> None:
        for run in await self.runtime.list():
            await self.runtime.stop(run.key, 0)
            await gone(lambda key=run.key: self.runtime.remove(key))
        networks = self.runtime.networks
        for network in await networks.list() if networks else ():
            await networks.drop(network.name)  # type: ignore[union-attr]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what has no event to wait for."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def gone(remove: Callable[[], Any]) -> None:
    """Remove a run that is just ending."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await remove()
            except Conflict:
                await asyncio.sleep(0.05)


def docker_only(stage: Stage, why: str) -> None:
    if stage.kind != "docker":
        pytest.skip(f"the process runtime does not isolate: {why}")


def ask(spec: LaunchSpec, text: str) -> str:
    return games.udp_ask(HOST, spec.ports[0].external, text.encode()).decode()
