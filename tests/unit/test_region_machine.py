"""The region under random events: whatever crashes, restarts and races happen, it converges to the truth.

Plan, books and executor are the real ones; the nodes are an in-memory twin that launches, crashes, hangs, loses its
agent, and loses its containers as the machine says. Time is virtual.

Safety holds after each rule (the invariants). Liveness holds at the end: once the faults have ended, or the node is
gone for good, within a bounded time every stop has finished, every server runs or is ended with the right reason, and
nothing waits.
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


class Clock:
    """Virtual time of all that the machine drives, in milliseconds."""

    now = 1_000_000


class TwinNodes:
    """Leases and nodes in one: `containers` is what really runs, `synced` whether the region hears of it.

    `gone`: its machine never comes back, and nobody knows. `looked`: the agent has looked at the games' ports since it
    came up. `stuck`: runs that come no further. `failing`: so many commands are not carried out.
    """

    def __init__(self) -> None:
        Clock.now = 1_000_000
        self.gone = False
        self.looked = True
        self.stuck: set[RunKey] = set()
        self.failing = 0
        self.synced_since = Clock.now
        self.containers: dict[RunKey, RunView] = {}
        self.synced = True
        self.known = True
        self.since: int | None = None
        self.next_port = 20_000
        self.pending = False
        self.told: dict[RunKey, RunView] = {}

    @property
    def now(self) -> int:
        return Clock.now

    @now.setter
    def now(self, value: int) -> None:
        Clock.now = value

    def come_back(self) -> None:
        if not (self.synced and self.known):
            self.synced_since = self.now
        self.synced = self.known = True

    def reported(self) -> dict[RunKey, RunView]:
        """What the agent says of its runs. One that has just come up has not looked at their ports yet."""
        looked, self.looked = self.looked, True
        if looked:
            return dict(self.containers)
        return {
            key: replace(view, state=RunState.BOOTING) if view.state is RunState.RUNNING else view
            for key, view in self.containers.items()
        }

    def views(self) -> dict[str, NodeView]:
        if not self.known:
            return {}
        since = None if self.synced else self.since
        view = NodeView("n", "127.0.0.1", SHARE.memory_mb, SHARE.cores, self.synced, since)
        return {"n": replace(view, synced_since=self.synced_since if self.synced else None)}

    def hello(self, _node_id: str) -> Hello | None:
        runs = tuple(self.containers.values())
        return Hello("boot", 0, "n", "127.0.0.1", SHARE, "twin", runs) if self.known else None

    async def call(self, node_id: str, method: str, _epoch: int, *arguments: Any) -> Any:
        if not (self.synced and self.known):
            raise Unavailable("no agent")
        if method != "do" and self.fails():
            raise Unavailable("not carried out")
        return getattr(self, method)(*arguments)

    def do(self, orders: list[tuple[str, tuple[Any, ...]]]) -> list[bool]:
        done = [not self.fails() for _ in orders]
        for (method, arguments), well in zip(orders, done, strict=True):
            if well:
                getattr(self, method)(*arguments)
        return done

    def fails(self) -> bool:
        self.failing = max(0, self.failing - 1)
        return self.failing > 0

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
        self.ended: set[str] = set()
        self.waits_since: dict[RunKey, int] = {}
        self.long_silence = False
        self.silence = 0
        self.started = 0
        self.boot_manager()
        self.nodes.come_back()

    def boot_manager(self) -> None:
        self.waits_since.clear()  # a new manager has looked for room for nobody yet
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
            told = self.nodes.reported()
            self.runs.clear()
            self.runs.update(told)
        self.executor.adopt_ports(self.runs.values())
        views = self.nodes.views()
        fits = {name for name, server in self.books.live.items() if self.executor.find_node(server) is not None}
        ready = {key for key, view in self.nodes.containers.items() if view.state is RunState.RUNNING}
        self.executor.carry_out(plan(list(self.books.live.values()), self.runs, views, self.nodes.now, self.policy))
        await self.settle()
        await self.executor.tasks.settled()
        self.judge(fits, ready)
        for server in self.books.live.values():
            if server.step == "queued":
                self.waits_since.setdefault(current(server), max(self.nodes.now, server.retry_at or 0))

    def judge(self, had_room: set[str], ready: set[RunKey]) -> None:
        """Every end has the reason that it says. Before the plan: whom the node had room for, and who was ready."""
        for name, row in self.disk.items():
            if row["status"] != "stopped" or name in self.ended:
                continue
            self.ended.add(name)
            key = RunKey(name, row["generation"])
            if row["stop_reason"] == "no_capacity":
                assert name not in had_room, "ended for want of room though there was room"
                waited = self.nodes.now - self.waits_since.get(key, self.nodes.now)
                assert waited >= POLICY.queue_deadline_ms, "ended for want of room before its time"
            if row["stop_reason"] == "never_ready":
                assert key not in ready, "ended as never ready though it was ready"

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
            if view and not view.state.ended and view.state is not RunState.RUNNING and key not in self.nodes.stuck:
                self.nodes.set(key, state=ORDER[ORDER.index(view.state) + 1])
            self.converge(1)

    @precondition(lambda self: self.nodes.containers)
    @rule(data=st.data())
    def gets_stuck(self, data: Any) -> None:
        """A download without an end, an engine that hangs, a game that opens no port."""
        key = data.draw(st.sampled_from(sorted(self.nodes.containers, key=str)))
        self.nodes.stuck.add(key)

    @rule(number=st.integers(1, 4))
    def commands_fail(self, number: int) -> None:
        self.nodes.failing = number + 1

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
        self.converge(1)
        self.wait(seconds)
        self.converge(1)

    def wait(self, seconds: int) -> None:
        self.nodes.now += seconds * 1000
        heard = self.nodes.synced and self.nodes.known
        self.silence = 0 if heard else self.silence + seconds * 1000
        self.note_silence()

    @precondition(lambda self: not self.nodes.gone)
    @rule(data=st.data(), seconds=st.sampled_from([10, 61, 150, 400]), manager_too=st.booleans())
    def outage(self, data: Any, seconds: int, manager_too: bool) -> None:
        """The agent is away, and with its head the manager too; games go on, crash, or come up meanwhile."""
        self.agent_dies()
        for key in sorted(self.nodes.containers, key=str):
            view = self.nodes.containers[key]
            what = "nothing" if view.state.ended else data.draw(st.sampled_from(["nothing", "crashes", "comes up"]))
            if what == "crashes":
                self.nodes.set(key, state=RunState.EXITED, exit_code=139)
            elif what == "comes up" and key not in self.nodes.stuck:
                self.nodes.set(key, state=RunState.RUNNING)
        self.nodes.now += seconds * 1000
        if manager_too:
            self.boot_manager()
        else:
            self.silence += seconds * 1000
            self.note_silence()
        self.nodes.come_back()
        self.converge(2)

    def note_silence(self) -> None:
        limit = POLICY.node_lost_ms if self.nodes.known else POLICY.node_unseen_ms
        self.long_silence |= self.silence >= limit

    @precondition(lambda self: not self.nodes.gone)
    @rule()
    def says_hello(self) -> None:
        """The new manager hears of its node at last."""
        if self.nodes.synced:
            self.nodes.come_back()
        self.nodes.known = True
        self.note_silence()
        self.converge(1)

    @rule()
    def agent_dies(self) -> None:
        if self.nodes.synced:
            self.nodes.synced, self.nodes.since = False, self.nodes.now
        self.nodes.looked = False

    @precondition(lambda self: not self.nodes.gone)
    @rule()
    def agent_returns(self) -> None:
        if self.nodes.known:
            self.nodes.come_back()
        self.nodes.synced = True
        self.converge(1)

    @rule()
    def node_goes_for_good(self) -> None:
        """Its machine is gone, or its agent hangs for ever; nobody says so."""
        self.agent_dies()
        self.nodes.gone = True

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
        placed = [s for s in self.books.live.values() if s.node_id]  # a stopped one may yet be told of
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
        self.nodes.failing = 0
        if self.nodes.gone:
            self.eventually_nobody_waits_for_a_node_that_is_gone()
        else:
            self.soon_nothing_is_leaked_or_stuck()
            self.eventually_everything_runs_or_has_ended()
        self.loop.close()

    def live_on(self, seconds: int, step_s: int) -> None:
        """No further faults; games come up unless they are stuck."""
        for _ in range(seconds // step_s):
            self.wait(step_s)
            for key, view in list(self.nodes.containers.items()):
                if view.state in ORDER[:-1] and key not in self.nodes.stuck:
                    self.nodes.set(key, state=ORDER[ORDER.index(view.state) + 1])
            self.converge(1)

    def soon_nothing_is_leaked_or_stuck(self) -> None:
        """With its agent back, within two minutes."""
        self.nodes.come_back()
        self.live_on(120, 10)
        self.converge(4)
        alive = {k for k, v in self.nodes.containers.items() if not v.state.ended}
        wanted = {current(s) for s in self.books.live.values() if s.status != "stopped"}
        assert alive <= wanted, "a container that nobody owns still runs"
        for server in self.books.live.values():
            assert server.status != "stopped", "a stopped server's container is gone, so it must be finished"
            if server.step == "queued":
                pausing = server.retry_at is not None and self.nodes.now < server.retry_at
                assert pausing or self.executor.find_node(server) is None, "it waits though there is room"
                continue
            # Whoever got its room only now comes up still; its row says how far it is.
            run = self.nodes.containers[current(server)]
            assert server.step == run.state.value, "its game is further than its row says, or not so far"
            assert (server.status == "running") == (run.state is RunState.RUNNING)
        assert not [v for v in self.nodes.containers.values() if v.state.ended], "an ended run was not forgotten"

    def eventually_everything_runs_or_has_ended(self) -> None:
        """The longest deadline is that of a download, half an hour; one may follow the other."""
        self.live_on(2 * 3600, 60)
        for server in self.books.live.values():
            assert (server.step, server.status) == ("running", "running"), f"{server.step} for ever"
            assert self.nodes.containers[current(server)].state is RunState.RUNNING
            assert server.ttl is None, "its ttl never acts"

    def eventually_nobody_waits_for_a_node_that_is_gone(self) -> None:
        self.live_on(2 * 3600, 60)
        assert not self.books.live, "a server of a node that is gone is neither lost nor started elsewhere"


TestRegion = RegionMachine.TestCase
TestRegion.settings = hypothesis_settings(max_examples=150, stateful_step_count=25, deadline=None)


@pytest.fixture(autouse=True)
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "now_ms", lambda: Clock.now)


class Drawn:
    """Stands for hypothesis's data: gives what it was given, in turn."""

    def __init__(self, *values: Any) -> None:
        self.values = list(values)

    def draw(self, _strategy: object) -> Any:
        return self.values.pop(0)


def test_a_game_that_came_up_while_its_agent_was_away_is_not_called_never_ready() -> None:
    region = RegionMachine()
    region.start(size="small", auto_restart=False, ttl=None)
    region.boot(data=Drawn(RunKey("s0001", 1)), steps=2)
    assert region.books.live["s0001"].step == "booting"
    region.outage(data=Drawn("comes up"), seconds=150, manager_too=False)
    region.teardown()


def test_who_crashed_long_ago_waits_for_room_from_now_on() -> None:
    """During an outage; another takes its place."""
    region = RegionMachine()
    for auto_restart in (True, True, False):
        region.start(size="medium", auto_restart=auto_restart, ttl=None)
    region.live_on(40, 10)
    region.outage(data=Drawn("crashes", "nothing"), seconds=400, manager_too=False)
    assert [server.step for server in region.books.live.values()] == ["queued", "running", "preparing"]
    region.teardown()
