"""An engine that is away, hangs or breaks off: games are untouched, what was ordered is done when it is back."""

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.node import engine as engine_module
from fleet.node.docker import DockerRuntime
from fleet.node.docker_spec import container_name
from fleet.node.engine import Engine
from fleet.node.model import NodeShare, RunState
from fleet.node.node import Node
from fleet.node.runtime import BuildRef, EngineUnavailable, LaunchSpec, RunKey
from fleet.node.server_folder import server_folder
from fleet.settings import NodeSettings
from tests import games
from tests.contract.runtime_stage import HOST, PORTS, Stage, ask, engine_problem
from tests.engine_proxy import EngineProxy, engine_proxy
from tests.waiting import soon

HABITS = NodeSettings(health_every_s=0.2, warm_networks=0, usage_every_s=0, reconcile_every_s=0.5)


class World:
    """A node on the real engine, behind a proxy."""

    def __init__(self, stage: Stage, proxy: EngineProxy) -> None:
        self.stage, self.proxy = stage, proxy
        self.place = replace(stage.place(), no_progress_s=2.0)
        self.node = self.another()

    def another(self) -> Node:
        async def nothing(_: BuildRef | RunKey) -> None: ...

        runtime = DockerRuntime(self.place, socket=str(self.proxy.path))
        share = NodeShare(4096, 4.0, 30600, 30700, HOST, HOST)
        return Node("n", share, runtime, nothing, nothing, HABITS)

    async def begin(self) -> Node:
        """The next life of the agent."""
        self.node = self.another()
        await self.node.start()
        return self.node

    def state(self, key: RunKey) -> RunState | None:
        return {run.key: run.state for run in self.node.hello(1).runs}.get(key)

    def spec(self) -> LaunchSpec:
        return self.stage.spec(self.stage.build(games.demo()))

    async def running(self) -> LaunchSpec:
        spec = self.spec()
        ports = await self.node.launch(1, spec)
        await soon(lambda: self.state(spec.key) is RunState.RUNNING, 30, "it runs")
        return replace(spec, ports=ports)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    if problem := await asyncio.to_thread(engine_problem):
        pytest.skip(f"no container engine: {problem}")
    stage = Stage("docker", tmp_path / secrets.token_hex(4), None)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(prefix="fl") as short:
        async with engine_proxy(Path(short)) as proxy:
            world = World(stage, proxy)
            await world.begin()
            yield world
            await proxy.back()
            await world.node.close()
    await stage.open()
    await stage.clear()
    await stage.die()


def quick(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Calls that hang end sooner than in production."""
    monkeypatch.setattr(Engine.call, "__kwdefaults__", {**Engine.call.__kwdefaults__, "timeout_s": seconds})
    monkeypatch.setattr(engine_module, "CONNECT_S", seconds)


@pytest.mark.parametrize("how", ["away", "hangs"])
async def test_what_was_ordered_while_the_engine_was_away_is_done(
    world: World, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop and a launch wait for it; nothing is told as failed, no game is told as ended."""
    quick(monkeypatch, 1.0)
    stopped, bystander = await world.running(), await world.running()
    await world.proxy.away() if how == "away" else world.proxy.hang()
    launched = world.spec()
    world.node.stop(1, stopped.key, 1.0)
    await world.node.launch(1, launched)
    await asyncio.sleep(3)
    assert world.state(launched.key) is RunState.CREATING
    assert world.state(stopped.key) is RunState.RUNNING
    assert await asyncio.to_thread(ask, bystander, "ping 1")
    await world.proxy.back()
    await soon(lambda: world.state(stopped.key) is RunState.EXITED, 15, "the stop is done")
    await soon(lambda: world.state(launched.key) is RunState.RUNNING, 15, "the launch is done")
    assert world.state(bystander.key) is RunState.RUNNING


async def test_an_end_while_the_stream_was_cut_is_told_after_it(world: World) -> None:
    dying, removed, alive = await world.running(), await world.running(), await world.running()
    await world.proxy.away()
    assert await asyncio.to_thread(ask, dying, "crash 6") == "crashing"
    direct = Engine()
    await direct.call(
        "DELETE", f"/containers/{container_name(world.place.fleet_id, removed.key)}", params={"force": "1"}
    )
    await direct.close()
    await asyncio.sleep(0.5)
    await world.proxy.back()
    for key, code in ((dying.key, 6), (removed.key, -1)):
        await soon(lambda key=key: world.state(key) is RunState.EXITED, 15, "its end is told")
        assert {run.key: run.exit_code for run in world.node.hello(1).runs}[key] == code
    assert world.state(alive.key) is RunState.RUNNING


async def test_an_agent_that_begins_while_the_engine_is_away_takes_no_other_runtime(world: World) -> None:
    """Its start fails and leaves nothing behind; tried again, it adopts what runs."""
    alive = await world.running()
    await world.node.close()
    await world.proxy.away()
    for _ in range(3):
        with pytest.raises(EngineUnavailable):
            await world.begin()
    await world.proxy.back()
    await world.begin()
    await soon(lambda: world.state(alive.key) is RunState.RUNNING, 15, "it is adopted")
    assert await asyncio.to_thread(ask, alive, "ping 1")


async def test_a_pull_that_stands_still_ends(world: World) -> None:
    """Told by progress, not by size: the engine says nothing for `no_progress_s`."""
    digest = f"sha256:{'0' * 64}"
    build = BuildRef("b" + secrets.token_hex(4), "image", digest, image="127.0.0.1:1/none:1", packed_bytes=1)
    runtime = DockerRuntime(world.place, socket=str(world.proxy.path))
    asked = runtime._engine.stream

    def hang_then_ask(*arguments: object, **named: object) -> object:
        world.proxy.hang()
        return asked(*arguments, **named)  # type: ignore[arg-type]

    runtime._engine.stream = hang_then_ask  # type: ignore[assignment]
    async with asyncio.timeout(10):
        with pytest.raises(EngineUnavailable, match="stood still"):
            await runtime.prepare(build)
    await world.proxy.back()
    await runtime.close()


async def test_what_runs_left_behind_is_removed_and_nothing_else(world: World) -> None:
    """Two looks, minutes apart in production, must both find it."""
    alive = await world.running()
    servers = world.place.servers_dir
    orphan, hidden = server_folder(servers, RunKey("gone", 3)), servers / ".networks-us-east" / "fleet-net-gone"
    orphan.mkdir()
    (orphan / "playflow.json").write_text("{}")
    hidden.parent.mkdir(exist_ok=True)
    hidden.touch()
    runtime = world.node._runtime
    assert await runtime.remove_orphans() == 0
    late = server_folder(servers, RunKey("late", 1))
    late.mkdir()
    assert await runtime.remove_orphans() == 2
    assert not orphan.exists()
    assert not hidden.exists()
    assert late.exists()
    assert server_folder(servers, alive.key).exists()


@asynccontextmanager
async def created_only(world: World) -> AsyncIterator[RunKey]:
    """A container as an agent leaves it that is killed between creating and starting it."""
    runtime = DockerRuntime(world.place)
    await runtime.start()
    spec = replace(world.spec(), ports=(replace(world.spec().ports[0], external=PORTS.take("x")),))
    runtime._start = _nothing  # type: ignore[method-assign,assignment]
    await runtime.launch(spec)
    await runtime.close()
    yield spec.key


async def _nothing(_name: str, _spec: LaunchSpec) -> None: ...


async def test_a_container_that_no_launch_came_for_is_removed_with_its_folder(world: World) -> None:
    async with created_only(world) as key:
        folder = server_folder(world.place.servers_dir, key)
        assert folder.exists()
        await soon(lambda: not folder.exists(), 20, "it is removed")
        assert key not in {run.key for run in await world.node._runtime.list()}
