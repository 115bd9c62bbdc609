"""The region under random events: whatever crashes, restarts and races happen, it converges to the truth.

Plan, books and executor are the real ones; the nodes are an in-memory twin that launches, crashes, loses its agent,
and loses its containers as the machine says. Time is virtual.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fleet.catalog import load_catalog
from fleet.errors import Unavailable
from fleet.node.model import Hello, NodeShare, RunState, RunView
from fleet.node.runtime import BuildRef, LaunchSpec, Port, RunKey
from fleet.region import execute
from fleet.region.books import Books
from fleet.region.execute import Executor
from fleet.region.model import NodeView, Policy
from fleet.region.plan import current, plan
from fleet.region.runs import Runs
from fleet.settings import FleetSettings
from fleet.store.tables import Server

POLICY = Policy(
    ready_deadline_ms=60_000,
    queue_deadline_ms=300_000,
    node_lost_ms=30_000,
    node_unseen_ms=180_000,
    backoff_first_ms=1_000,
    backoff_max_ms=60_000,
    max_crashes=3,
    crash_window_ms=300_000,
    watching_since=0,
)
SHARE = NodeShare(4096, 4.0, 20_000, 20_100, "127.0.0.1", "127.0.0.1")
ORDER = [RunState.PREPARING, RunState.CREATING, RunState.BOOTING, RunState.RUNNING]


class TwinNodes:
    """Leases and nodes in one: `containers` is what really runs, `synced` whether the region hears of it."""

    def __init__(self) -> None:
        self.containers: dict[RunKey, RunView] = {}
        self.synced = True
        self.known = True
        self.since: int | None = None
        self.now = 1_000_000
        self.next_port = 20_000
        self.pending = False
        self.told: dict[RunKey, RunView] = {}

    def grow(self) -> bool:
        return False

    def views(self) -> dict[str, NodeView]:
        if not self.known:
            return {}
        since = None if self.synced else self.since
        return {"n": NodeView("n", "127.0.0.1", SHARE.memory_mb, SHARE.cores, self.synced, since)}

    def hello(self, _node_id: str) -> Hello | None:
        runs = tuple(self.containers.values())
        return Hello("boot", 0, "n", "127.0.0.1", SHARE, "twin", runs) if self.known else None

    async def call(self, node_id: str, method: str, _epoch: int, *arguments: Any) -> Any:
        if not (self.synced and self.known):
            raise Unavailable("no agent")
        return getattr(self, method)(*arguments)

    def do(self, orders: list[tuple[str, tuple[Any, ...]]]) -> list[bool]:
        for method, arguments in orders:
            getattr(self, method)(*arguments)
        return [True] * len(orders)

    def launch(self, spec: LaunchSpec) -> tuple[Port, ...]:
        if spec.key not in self.containers:
            ports = []
            for port in spec.ports:
                ports.append(replace(port, external=self.next_port))
                self.next_port += 1
            view = RunView(
                spec.key,
                "n",
                RunState.PREPARING,
                self.now,
                tuple(ports),
                spec.memory_mb,
            )
            self.containers[spec.key] = view
            self.used()
        return self.containers[spec.key].ports

    def used(self) -> None:
        alive = [v for v in self.containers.values() if not v.state.ended]
        assert sum(v.memory_mb for v in alive) <= SHARE.memory_mb, "node overfilled"

    def stop(self, key: RunKey, _grace: float) -> None:
        if key in self.containers and not self.containers[key].state.ended:
            self.set(key, state=RunState.EXITED, exit_code=143)

    def forget(self, key: RunKey) -> None:
        if key in self.containers and self.containers[key].state.ended:
            del self.containers[key]

    def set(self, key: RunKey, **values: Any) -> None:
        self.containers[key] = replace(self.containers[key], at=self.now, **values)


class RegionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        self.nodes = TwinNodes()
        self.disk: dict[str, dict[str, Any]] = {}
        self.stopped_by_user: set[str] = set()
        self.vanished: set[str] = set()
        self.long_silence = False
        self.silence = 0
        self.started = 0
        self.boot_manager()
        self.nodes.known = True

    def boot_manager(self) -> None:
        self.books = Books()
        self.books.load([Server(**row) for row in self.disk.values() if row["step"] != "stopped"])
        self.runs = Runs()
        fleet = FleetSettings(home=Path("nowhere"))
        self.executor = Executor(
            1,
            fleet,
            load_catalog(),
            self.books,
            self.runs,
            self.nodes,
            settle=self.settle,
            builds=self.build,
        )
        self.nodes.known = False
        self.policy = replace(POLICY, watching_since=self.nodes.now)

    async def build(self, build_id: str) -> BuildRef:
        return BuildRef(build_id, "zip", "hash")

    async def settle(self) -> None:
        await self.executor.launch_queued()
        self.commit()

    def commit(self) -> None:
        """What the group commit does: rows to disk, then commands to nodes."""
        live = dict(self.books.live)
        for name in self.books.take().touched:
            row = live.get(name) or self.rows.get(name)
            if row is not None:
                self.disk[name] = {c: getattr(row, c) for c in Server.model_fields}
        self.executor.command(self.executor.take_commands())

    @property
    def rows(self) -> dict[str, Server]:
        return {**getattr(self, "_seen", {}), **self.books.live}

    async def _round(self) -> None:
        self._seen = self.rows
        if self.nodes.synced and self.nodes.known:
            self.runs.clear()
            self.runs.update(self.nodes.containers)
        self.executor.adopt_ports(self.runs.values())
        views = self.nodes.views()
        self.executor.carry_out(plan(list(self.books.live.values()), self.runs, views, self.nodes.now, self.policy))
        await self.settle()
        await self.executor.tasks.settled()

    def converge(self, rounds: int = 6) -> None:
        for _ in range(rounds):
            self.loop.run(self._round())

    @rule(
        size=st.sampled_from(["micro", "small", "medium"]),
        auto_restart=st.booleans(),
        ttl=st.sampled_from([None, 60, 600]),
    )
    def start(self, size: str, auto_restart: bool, ttl: int | None) -> None:
        now = self.nodes.now
        self.started += 1
        server = Server(
            instance_id=f"s{self.started:04}",
            project_id="p",
            region="us-east",
            name="s",
            status="launching",
            step="queued",
            compute_size=size,
            build_id="b",
            version_tag="default",
            auto_restart=auto_restart,
            ttl=ttl,
            port_configs=[{"name": "game", "internal_port": 7777, "protocol": "udp"}],
            created_at=now,
            updated_at=now,
            launched_at=now,
            step_at=now,
        )
        self.books.add(server, now)
        self.converge(1)

    @precondition(lambda self: self.alive())
    @rule(data=st.data())
    def stop(self, data: Any) -> None:
        server = self.books.live[data.draw(st.sampled_from(self.alive()))]
        self.stopped_by_user.add(server.instance_id)
        self.executor.end(server, self.nodes.now, "requested", "SHUTDOWN_SIGNAL", "", None, gone=False)
        self.converge(1)

    @precondition(lambda self: self.alive())
    @rule(data=st.data())
    def restart(self, data: Any) -> None:
        server = self.books.live[data.draw(st.sampled_from(self.alive()))]
        self.executor.new_generation(server, self.nodes.now, "restart_requested", {})
        self.converge(1)

    @precondition(lambda self: self.nodes.containers)
    @rule(data=st.data(), steps=st.integers(1, 3))
    def boot(self, data: Any, steps: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.nodes.containers, key=str)))
        for _ in range(steps):
            view = self.nodes.containers.get(key)
            if view and not view.state.ended and view.state is not RunState.RUNNING:
                self.nodes.set(key, state=ORDER[ORDER.index(view.state) + 1])
            self.converge(1)

    @precondition(lambda self: self.nodes.containers)
    @rule(data=st.data(), code=st.sampled_from([0, 1, 139]), oom=st.booleans())
    def exit(self, data: Any, code: int, oom: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.nodes.containers, key=str)))
        if not self.nodes.containers[key].state.ended:
            self.nodes.set(key, state=RunState.EXITED, exit_code=code, oom=oom)
        self.converge(1)

    @precondition(lambda self: self.nodes.containers)
    @rule(data=st.data())
    def container_vanishes(self, data: Any) -> None:
        key = data.draw(st.sampled_from(sorted(self.nodes.containers, key=str)))
        self.vanished.add(key.instance_id)
        del self.nodes.containers[key]
        self.converge(1)

    @rule(seconds=st.sampled_from([1, 10, 61, 400]))
    def time_passes(self, seconds: int) -> None:
        self.nodes.now += seconds * 1000
        heard = self.nodes.synced and self.nodes.known
        self.silence = 0 if heard else self.silence + seconds * 1000
        self.note_silence()
        self.converge(1)

    def note_silence(self) -> None:
        limit = POLICY.node_lost_ms if self.nodes.known else POLICY.node_unseen_ms
        self.long_silence |= self.silence >= limit

    @rule()
    def says_hello(self) -> None:
        """The new manager hears of its node at last."""
        self.nodes.known = True
        self.note_silence()
        self.converge(1)

    @rule()
    def agent_dies(self) -> None:
        self.nodes.synced, self.nodes.since = False, self.nodes.now

    @rule()
    def agent_returns(self) -> None:
        self.nodes.synced = True
        self.converge(1)

    @rule()
    def manager_dies(self) -> None:
        """What was not committed is lost; everything else must come back, and nothing is called lost meanwhile."""
        self.boot_manager()
        self.converge(1)

    def alive(self) -> list[str]:
        return sorted(name for name, s in self.books.live.items() if s.status != "stopped")

    @invariant()
    def what_the_user_stopped_stays_stopped(self) -> None:
        for name in self.stopped_by_user & set(self.disk):
            assert self.disk[name]["status"] == "stopped"

    @invariant()
    def running_means_a_run_was_ready(self) -> None:
        for server in self.books.live.values():
            if server.status == "running":
                assert server.step == "running"
                assert server.started_at is not None
                assert server.network_ports
                assert all(p["external_port"] for p in server.network_ports)

    @invariant()
    def a_server_is_lost_only_with_its_container_or_after_long_silence(self) -> None:
        if not self.long_silence:
            lost = {name for name, row in self.disk.items() if row["stop_reason"] == "node_lost"}
            assert lost <= self.vanished

    @invariant()
    def room_is_what_a_walk_over_everything_finds(self) -> None:
        runs = [run for run in self.runs.values() if not run.state.ended]
        placed = [s for s in self.books.live.values() if s.node_id and s.status != "stopped"]
        unreported = [s for s in placed if current(s) not in self.runs]
        memory = sum(r.memory_mb for r in runs) + sum(self.executor.demand(s).memory_mb for s in unreported)
        for room in self.executor.rooms.rooms():
            assert room.memory_mb == SHARE.memory_mb - memory
        held = {run.key.instance_id for run in runs} | {s.instance_id for s in unreported}
        assert self.executor.rooms.servers("n") == held
        by_server = {key: run for name in {k.instance_id for k in self.runs} for key, run in self.runs.of(name).items()}
        assert by_server == self.runs
        assert set(self.runs.on("n")) == set(self.runs)

    def teardown(self) -> None:
        """With its agent back and no further faults, nothing is leaked, lost or stuck."""
        self.nodes.synced = self.nodes.known = True
        self.nodes.now += 120_000
        self.converge(8)
        alive = {k for k, v in self.nodes.containers.items() if not v.state.ended}
        wanted = {current(s) for s in self.books.live.values() if s.status != "stopped"}
        assert alive <= wanted, "a container that nobody owns still runs"
        for server in self.books.live.values():
            assert server.status != "stopped", "a stopped server's container is gone, so it must be finished"
            assert server.step == "queued" or current(server) in self.nodes.containers
        assert not [v for v in self.nodes.containers.values() if v.state.ended], "an ended run was not forgotten"
        self.loop.close()


TestRegion = RegionMachine.TestCase
TestRegion.settings = hypothesis_settings(max_examples=150, stateful_step_count=25, deadline=None)


@pytest.fixture(autouse=True)
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor stamps what it does itself; order, not the clock, matters here."""
    monkeypatch.setattr(execute, "now_ms", lambda: 0)
