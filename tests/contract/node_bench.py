"""A node under test on the real engine, without Ray, and a region that polls it."""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.node.agent import tls_of
from fleet.node.model import NodeShare, RunState, RunView
from fleet.node.node import Node
from fleet.node.runtime import BuildRef, Port, RunKey
from fleet.settings import FleetSettings, NodeSettings
from tests import games
from tests.contract.runtime_stage import HOST, PATIENCE, Stage, engine_problem, make_runtime

GAME = Port("game", 7777, 0, "udp")
FIRST, LAST = 30400, 30500
HABITS = NodeSettings(health_every_s=0.1, warm_networks=0, usage_every_s=0.2)


class Bench:
    """A node under test with a region that polls it."""

    def __init__(self, stage: Stage, habits: NodeSettings = HABITS, tls_ports: int = 0) -> None:
        self.stage = stage
        self.habits = habits
        self.share = NodeShare(4096, 4.0, FIRST, LAST, HOST, HOST, tls_ports=tls_ports)
        self.archived: list[RunKey] = []
        self.views: list[RunView] = []
        self._unread: deque[RunView] = deque()

    async def open(self) -> Node:
        async def fetched(_build: BuildRef) -> None:
            return None

        async def archive(key: RunKey) -> None:
            self.archived.append(key)

        runtime = make_runtime(self.stage.kind, self.stage.place())
        settings = FleetSettings(home=self.stage.folder)
        share, self.tls = tls_of(self.share, settings, "us-east", runtime.name)
        self.node = Node("n", share, runtime, fetched, archive, self.habits, tls=self.tls)
        await self.node.start()
        self.hello = self.node.hello(1)
        self.seq = self.hello.seq
        self._unread.clear()
        return self.node

    async def until(self, wanted: Callable[[RunView], bool]) -> RunView:
        """The next event that fits, after those that were asked for before; all that came are kept in `views`."""
        async with asyncio.timeout(PATIENCE):
            while True:
                while self._unread:
                    view = self._unread.popleft()
                    if wanted(view):
                        return view
                page = await self.node.poll(1, self.hello.boot_id, self.seq, 5)
                assert page is not None
                self.seq = page.seq
                self.views += page.events
                self._unread += page.events

    def runs(self) -> dict[RunKey, RunView]:
        return {run.key: run for run in self.node.hello(1).runs}

    def state(self, key: RunKey) -> RunState:
        return self.runs()[key].state

    async def running(self, files: games.Files, port: Port = GAME) -> tuple[RunKey, tuple[Port, ...]]:
        spec = replace(self.stage.spec(self.stage.build(files)), ports=(port,))
        ports = await self.node.launch(1, spec)
        assert await self.node.launch(1, spec) == ports, "the same launch again is one run"
        view = await self.until(lambda v: v.key == spec.key and v.state in (RunState.RUNNING, RunState.FAILED))
        assert view.state is RunState.RUNNING, view
        return spec.key, view.ports


@asynccontextmanager
async def open_bench(
    folder: Path, habits: NodeSettings, kind: str = "docker", tls_ports: int = 0
) -> AsyncGenerator[Bench]:
    """A bench with its node; afterwards nothing of it is left."""
    if kind == "docker" and (problem := await asyncio.to_thread(engine_problem)):
        pytest.skip(f"no container engine: {problem}")
    stage = Stage(kind, folder / secrets.token_hex(4), None)  # type: ignore[arg-type]
    bench = Bench(stage, habits, tls_ports)
    await bench.open()
    yield bench
    await bench.node.close()
    if bench.tls is not None:
        await bench.tls.end()
    await stage.open()
    await stage.clear()
    await stage.die()
