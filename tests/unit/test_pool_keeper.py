"""The pools of a region under random demand, boots, crashes, settings and restarts: nothing is given twice or lost."""

import asyncio
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fleet.pools.claim import ClaimCall
from fleet.pools.config import PoolKey, wishes
from fleet.pools.slots import STUCK_S
from fleet.region import pool_keeper
from fleet.region.books import Books
from fleet.region.pool_keeper import PoolKeeper
from fleet.region.pool_store import Wished
from fleet.settings import PoolSettings
from fleet.store.tables import Server

KEY: PoolKey = ("p", "small", "default")
AT_ONCE = 4


class Settings:
    """What the database would say: the wish, and the newest build."""

    def __init__(self) -> None:
        self.pool: dict[str, Any] | None = {"count": 2, "max": 6}
        self.version: int | None = 1
        self.claims: dict[str, str] = {}
        self.states: dict[PoolKey, dict[str, Any]] = {}

    async def wished(self, project_id: str | None = None) -> dict[PoolKey, Wished]:
        sizes = {"small": self.pool} if self.pool else {}
        stored = {"pool_config": {"enabled": True, "regions": {"us-east": sizes}}}
        return {wish.key: Wished(wish, {}, []) for wish in wishes("p", stored, "us-east")}

    async def newest_builds(self, names: set[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, int]]:
        return {name: (f"build-{self.version}", self.version) for name in names} if self.version else {}

    async def learned(self) -> dict[PoolKey, dict[str, Any]]:
        return self.states

    async def recent_claims(self, now: int) -> dict[str, str]:
        return dict(self.claims)


class PoolMachine(RuleBasedStateMachine):
    """`rows` is the region's table; the keeper's books hold the live ones, as in the manager."""

    @initialize()
    def begin(self) -> None:
        self.now = 1_000_000_000
        self.saved_clock = pool_keeper.now_ms
        pool_keeper.now_ms = lambda: self.now
        self.database = Settings()
        self.rows: dict[str, Server] = {}
        self.given: dict[str, str] = {}  # op -> server
        self.spec = ""
        self.ops = self.made = 0
        self.queued: list[Server] = []
        self.manager_starts()

    def teardown(self) -> None:
        if hasattr(self, "saved_clock"):
            pool_keeper.now_ms = self.saved_clock

    def manager_starts(self) -> None:
        self.books = Books()
        self.books.load([row for row in self.rows.values() if row.step != "stopped"])
        self.queued = []
        self.keeper = PoolKeeper(
            "us-east",
            self.database,  # pyright: ignore[reportArgumentType]
            self.books,
            PoolSettings(refill_at_once=AT_ONCE),
            self,
            self.queued.append,
            self.new_id,
        )
        asyncio.run(self.keeper.load())
        self.commit()

    def new_id(self) -> str:
        self.made += 1
        return f"s{self.made:04d}"

    def commit(self) -> None:
        self.rows.update(self.books.live)
        self.books.take()

    # The keeper's hands

    def retire(self, server: Server, now: int, reason: str, detail: str) -> None:
        assert server.pool_claimed_at is None, "a claimed server was retired"
        self.books.change(server, now, status="stopped", stop_reason=reason, stopped_at=now)
        self.books.step(server, now, "stopped")

    def freeze(self, server: Server, frozen: bool) -> None:
        assert server.pool_claimed_at is None
        self.keeper.watch(server, frozen=frozen)

    # What happens

    def unclaimed(self, *steps: str) -> list[Server]:
        alive = self.books.live.values()
        return sorted((s for s in alive if s.pool_claimed_at is None and s.step in steps), key=lambda s: s.instance_id)

    @rule(count=st.integers(1, 5))
    def players_come(self, count: int) -> None:
        pool = self.keeper.pools().get(KEY)
        spec = (pool.spec if pool else None) or "none"
        warm = pool.shelf.count(spec, "warm") if pool else 0
        calls = []
        for _ in range(count):
            self.ops += 1
            calls.append(ClaimCall(f"op{self.ops}", *KEY, spec=spec, custom_data={"op": self.ops}))
        given = self.keeper.claim(calls, self.now)
        self.commit()
        hot = [one for one in given if one is not None]
        assert len(hot) == min(warm, count), "a warm server stood there and was not given"
        for call, one in zip(calls, given, strict=True):
            if one is not None:
                server = self.books.live[one.instance_id]
                assert server.status == "running"
                assert server.custom_data == call.custom_data
                assert one.instance_id not in self.given.values(), "claimed twice"
                self.given[call.op_id] = one.instance_id

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def a_call_is_repeated(self, data: st.DataObject) -> None:
        op = data.draw(st.sampled_from(sorted(self.given)))
        call = ClaimCall(op, *KEY, spec=self.rows[self.given[op]].pool_spec or "")
        [again] = self.keeper.claim([call], self.now)
        assert again is not None
        assert again.instance_id == self.given[op]

    @precondition(lambda self: self.unclaimed("queued"))
    @rule(data=st.data())
    def one_boots(self, data: st.DataObject) -> None:
        server = data.draw(st.sampled_from(self.unclaimed("queued")))
        self.now += 100
        self.books.step(server, self.now, "running", status="running", started_at=self.now, node_id="n")
        self.keeper.refill(self.now)
        self.commit()

    @precondition(lambda self: self.unclaimed("queued", "running"))
    @rule(data=st.data(), reason=st.sampled_from(["crashed", "start_failed", "node_lost", "requested"]))
    def one_ends(self, data: st.DataObject, reason: str) -> None:
        server = data.draw(st.sampled_from(self.unclaimed("queued", "running")))
        self.books.change(server, self.now, status="stopped", stop_reason=reason)
        self.books.step(server, self.now, "stopped")
        self.keeper.refill(self.now)
        self.commit()

    @precondition(lambda self: self.unclaimed("running"))
    @rule(data=st.data(), health=st.sampled_from(["warm", "ailing", "unsure"]))
    def health_changes(self, data: st.DataObject, health: Any) -> None:
        self.keeper.watch(data.draw(st.sampled_from(self.unclaimed("running"))), health=health)

    @rule(seconds=st.sampled_from([1, 11, 700, 30_000]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds * 1000
        self.upkeep()

    @rule()
    def upkeep(self) -> None:
        asyncio.run(self.keeper.refresh())
        self.keeper.plan(self.now)
        self.keeper.minute(self.now)
        self.commit()

    @rule(version=st.sampled_from([None, 1, 2, 3]))
    def a_build_comes_or_goes(self, version: int | None) -> None:
        self.database.version = version

    @rule(pool=st.sampled_from([None, {"count": 0}, {"count": 1, "max": 1}, {"count": 3, "max": 8, "hot": 1}]))
    def settings_change(self, pool: dict[str, Any] | None) -> None:
        self.database.pool = pool
        asyncio.run(self.keeper.refresh("p"))
        self.commit()

    @rule()
    def the_manager_is_killed(self) -> None:
        self.database.claims = dict(self.given)
        pools = self.keeper.pools()
        self.database.states = {
            key: self.keeper._memory(key, pool, self.now).state or {} for key, pool in pools.items()
        }
        # The rows are what was on disk: a copy, so that nothing of the old life reaches the new one.
        self.rows = {name: Server(**columns(row)) for name, row in self.rows.items()}
        self.manager_starts()

    # What must hold

    @invariant()
    def the_shelf_is_the_truth(self) -> None:
        if not hasattr(self, "keeper"):
            return
        pool = self.keeper.pools().get(KEY)
        unclaimed = {s.instance_id for s in self.unclaimed("queued", "running")}
        strays = {s.instance_id for s in self.keeper.strays()}
        on_shelf = {entry.instance_id for entry in pool.shelf.entries()} if pool else set()
        assert on_shelf | strays == unclaimed
        assert not on_shelf & strays
        for entry in pool.shelf.entries() if pool else ():
            running = self.books.live[entry.instance_id].status == "running"
            assert running == (entry.state != "booting")

    @invariant()
    def no_more_boot_at_once_than_allowed(self) -> None:
        if hasattr(self, "keeper") and (pool := self.keeper.pools().get(KEY)):
            assert pool.shelf.younger("booting", int(STUCK_S * 1000), self.now) <= AT_ONCE
            booting = [entry for entry in pool.shelf.entries() if entry.state == "booting"]
            assert len([entry for entry in booting if entry.spec == pool.spec]) <= 8, "the ceiling of any of its wishes"

    @invariant()
    def what_was_given_is_whole(self) -> None:
        for op, name in getattr(self, "given", {}).items():
            row = self.rows[name]
            assert row.pool_claimed_at is not None
            assert row.last_op == op
            assert row.start_kind == "hot"


def columns(row: Server) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Server.model_fields}


TestPools = PoolMachine.TestCase
TestPools.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_build_that_does_not_boot_is_tried_less_and_less_often() -> None:
    machine = PoolMachine()
    machine.begin()
    try:
        tries: list[int] = []
        for _ in range(4000):
            for server in machine.unclaimed("queued"):
                tries.append(machine.now)
                machine.books.change(server, machine.now, status="stopped", stop_reason="start_failed")
                machine.books.step(server, machine.now, "stopped")
            machine.now += 1000
            machine.keeper.plan(machine.now)
        pool = machine.keeper.pools()[KEY]
        assert pool.failures == len(tries)
        assert 5 < len(tries) < 30, "4000 s of a broken build"
        gaps = [later - earlier for earlier, later in pairwise(tries)]
        assert gaps[0] < 10_000
        assert max(gaps) <= 301_000
    finally:
        machine.teardown()


def test_a_region_that_is_emptied_orders_nothing_more() -> None:
    machine = PoolMachine()
    machine.begin()
    try:
        machine.keeper.closed = True
        made = machine.made
        for server in machine.unclaimed("queued"):
            machine.books.change(server, machine.now, status="stopped", stop_reason="fleet_down")
            machine.books.step(server, machine.now, "stopped")
        machine.keeper.refill(machine.now)
        machine.upkeep()
        assert machine.made == made
        assert machine.keeper.pools()[KEY].failures == 0
    finally:
        machine.teardown()


class TwoProjects(Settings):
    """A project with a big pool and one with a small one, in that order."""

    async def wished(self, project_id: str | None = None) -> dict[PoolKey, Wished]:
        found: dict[PoolKey, Wished] = {}
        for project, count in (("big", 8), ("small", 2)):
            stored = {"pool_config": {"enabled": True, "regions": {"us-east": {"small": {"count": count, "max": 10}}}}}
            found |= {wish.key: Wished(wish, {}, []) for wish in wishes(project, stored, "us-east")}
        return found


class Shared:
    """The pools of both in one region; `now` is the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.made = 1_000_000_000, list[Server]()
        monkeypatch.setattr(pool_keeper, "now_ms", lambda: self.now)
        self.books = Books()
        at_once = PoolSettings(refill_at_once=8)
        self.keeper = PoolKeeper("us-east", TwoProjects(), self.books, at_once, self, self.made.append)  # pyright: ignore[reportArgumentType]
        asyncio.run(self.keeper.load())

    def retire(self, server: Server, now: int, reason: str, detail: str) -> None:
        raise AssertionError("nothing is too much here")

    def freeze(self, server: Server, frozen: bool) -> None:
        raise AssertionError("nothing is frozen here")

    def ordered(self) -> Counter[str]:
        return Counter(server.project_id for server in self.made)

    def pass_seconds(self, seconds: int) -> None:
        for _ in range(0, seconds, 10):
            self.now += 10_000
            asyncio.run(self.keeper.refresh())


def test_the_boot_slots_are_shared_fairly_between_projects(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Shared(monkeypatch).ordered() == {"big": 6, "small": 2}


def test_entries_that_stay_where_they_are_give_their_slots_back_and_are_not_ordered_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = Shared(monkeypatch)
    for server in shared.made:
        shared.books.step(server, shared.now, "preparing")  # and there they stay
    shared.pass_seconds(int(STUCK_S))
    assert shared.ordered() == {"big": 8, "small": 2}
    shared.pass_seconds(3600)
    assert shared.ordered() == {"big": 8, "small": 2}
