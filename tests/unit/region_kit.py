"""A region's manager in this process: everything is real but its agents, which are in memory."""

import asyncio
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select

from fleet.node.model import Hello, NodeShare, Page, RunState, RunView
from fleet.node.runtime import LaunchSpec, Port, RunKey
from fleet.region import manager as manager_module
from fleet.region import parts, reconciler
from fleet.region.manager import RegionManager
from fleet.settings import FleetSettings
from fleet.store.commit import row_values
from fleet.store.engine import Store
from fleet.store.tables import Build, Project, Server
from fleet.times import now_ms
from tests.unit.api_kit import make_schema

SHARE = NodeShare(4096, 4.0, 20_000, 20_100, "127.0.0.1", "127.0.0.1")
NODE = "us-east@m"
PERIOD_S = 0.05


class Agent:
    """A node's agent without Ray. `failing`: by method, so many of its next commands fail."""

    def __init__(self) -> None:
        self.runs: dict[RunKey, RunView] = {}
        self.configs: dict[RunKey, dict[str, Any]] = {}
        self.events: list[RunView] = []
        self.failing: dict[str, int] = {}
        self.told: list[str] = []
        self._news = asyncio.Event()

    def __getattr__(self, method: str) -> Any:
        class Method:
            @staticmethod
            async def remote(*arguments: Any) -> Any:
                return await getattr(self, f"do_{method}")(*arguments)

        return Method

    def set(self, key: RunKey, state: RunState, **values: Any) -> None:
        self.runs[key] = replace(self.runs[key], state=state, at=now_ms(), **values)
        self.events.append(self.runs[key])
        self._news.set()

    def _maybe_fail(self, method: str) -> None:
        self.told.append(method)
        if self.failing.get(method, 0) > 0:
            self.failing[method] -= 1
            raise OSError(f"{method} failed")

    async def do_hello(self, _epoch: int) -> Hello:
        return Hello("boot", len(self.events), NODE, "127.0.0.1", SHARE, "twin", tuple(self.runs.values()), "m")

    async def do_poll(self, _epoch: int, _boot_id: str, after: int, timeout_s: float) -> Page:
        if len(self.events) <= after:
            self._news.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._news.wait()
            except TimeoutError:
                pass
        return Page(len(self.events), tuple(self.events[after:]))

    async def do_launch(self, _epoch: int, spec: LaunchSpec) -> tuple[Port, ...]:
        self._maybe_fail("launch")
        if spec.key not in self.runs:
            ports = tuple(replace(port, external=20_000 + i) for i, port in enumerate(spec.ports))
            self.runs[spec.key] = RunView(spec.key, NODE, RunState.PREPARING, now_ms(), ports, spec.memory_mb)
            self.configs[spec.key] = spec.config
            self.set(spec.key, RunState.PREPARING)
        return self.runs[spec.key].ports

    async def do_do(self, epoch: int, orders: list[tuple[str, tuple[Any, ...]]]) -> list[bool]:
        done: list[bool] = []
        for method, arguments in orders:
            try:
                await getattr(self, f"do_{method}")(epoch, *arguments)
                done.append(True)
            except OSError:
                done.append(False)
        return done

    async def do_stop(self, _epoch: int, key: RunKey, _grace: float) -> None:
        self._maybe_fail("stop")
        if key in self.runs and not self.runs[key].state.ended:
            self.set(key, RunState.EXITED, exit_code=143)

    async def do_forget(self, _epoch: int, key: RunKey) -> None:
        self._maybe_fail("forget")
        self.runs.pop(key, None)

    async def do_rewrite_config(self, _epoch: int, key: RunKey, config: dict[str, Any]) -> None:
        self._maybe_fail("rewrite_config")
        self.configs[key] = config

    async def do_prepare(self, *_: Any) -> None: ...

    async def do_set_drain(self, *_: Any) -> None: ...


class Agents:
    """One node, whose agent exists already."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    def known(self) -> dict[str, Any]:
        return {"agent:us-east:shared:0": self.agent}

    def ask(self, node_class: str, _known: Collection[str]) -> tuple[str, Any]:
        raise AssertionError("one node is enough")

    def give_back(self, handle: Any) -> None: ...

    def dead(self, hello: Hello) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class Fleet:
    """The database, the node, and managers of `us-east` one after the other. `restart` leaves the old one behind."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_schema(folder / "fleet.db")
        self.settings = FleetSettings(home=folder, hung_s=0, database_url=f"sqlite+aiosqlite:///{folder}/fleet.db")
        self.store = Store(self.settings.database)
        self.agent = Agent()
        self.made = 0
        self.managers: list[Any] = []
        monkeypatch.setattr(parts, "agents_of", lambda *_: Agents(self.agent))
        monkeypatch.setattr(manager_module, "get_settings", lambda: self.settings)
        monkeypatch.setattr(manager_module, "setup_logging", lambda *_: None)
        monkeypatch.setattr(reconciler, "REPAIR_S", PERIOD_S)

    async def furnish(self) -> None:
        async with self.store.write() as session:
            session.add(Project(id="p", name="p", created_at=1, updated_at=1))
            await session.flush()
            session.add(
                Build(
                    build_id="b",
                    project_id="p",
                    name="default",
                    version=1,
                    status="ready",
                    build_type="zip",
                    content_hash="h",
                    executable_path="run",
                    created_at=1,
                    updated_at=1,
                )
            )

    async def begin(self) -> Any:
        """A manager that is coming up."""
        actor = RegionManager.__ray_metadata__.modified_class  # pyright: ignore[reportFunctionMemberAccess]
        made = actor.__new__(actor)
        self.managers.append(made)
        await made.__init__("us-east")
        return made

    def row(self, **values: Any) -> Server:
        self.made += 1
        now = now_ms()
        given: dict[str, Any] = {
            "instance_id": f"s{self.made:03}",
            "project_id": "p",
            "region": "us-east",
            "name": "s",
            "status": "launching",
            "step": "queued",
            "compute_size": "small",
            "build_id": "b",
            "version_tag": "default",
            "port_configs": [{"name": "game", "internal_port": 7777, "protocol": "udp"}],
            "created_at": now,
            "updated_at": now,
            "launched_at": now,
            "step_at": now,
        }
        return Server(**{**given, **values})

    async def stored(self, instance_id: str) -> Server:
        found = await self.store.first(select(Server).where(col(Server.instance_id) == instance_id))
        assert found is not None
        return found

    async def start(self, manager: Any, **values: Any) -> str:
        row = self.row(**values)
        await manager.command("", "start", (row_values(row),))
        return row.instance_id

    async def running(self, manager: Any, **values: Any) -> str:
        name = await self.start(manager, **values)
        await eventually(lambda: RunKey(name, 1) in self.agent.runs)
        self.agent.set(RunKey(name, 1), RunState.RUNNING)
        await eventually(lambda: manager._reconciler.status_of(name) == "running")
        return name

    async def close(self) -> None:
        for manager in self.managers:
            await manager._tasks.close()
            if manager._reconciler is not None:
                for link in manager._reconciler.leases._links.values():
                    if (task := getattr(link, "task", None)) is not None:
                        task.cancel()
                await manager._reconciler.close()
            if manager._store is not None:
                await manager._store.close()
        await self.store.close()


async def eventually(holds: Any, within_s: float = 5.0) -> None:
    """Return once it holds; fail if it does not within so many seconds."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110  it looks at memory, which tells nobody
            await asyncio.sleep(0.005)
