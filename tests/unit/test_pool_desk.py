"""The manager's counter for warm servers: a claim is on disk before it is answered, and a game that does not wake is
nobody's."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fleet.catalog import load_catalog
from fleet.errors import FleetError, Unavailable
from fleet.node.model import RunState, RunView
from fleet.node.runtime import BuildRef
from fleet.pools.claim import ClaimCall
from fleet.region import pool_desk
from fleet.region.books import Books
from fleet.region.execute import Executor
from fleet.region.metrics import RegionMetrics, RegionSample
from fleet.region.plan import current, plan_server
from fleet.region.pool_desk import PoolDesk
from fleet.region.runs import Runs
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from fleet.store.tables import Build, Project, Server
from fleet.times import now_ms
from tests.unit.api_kit import make_schema
from tests.unit.test_region_machine import POLICY, TwinNodes


class Region:
    """A desk with real books, executor and database; its one node is in memory."""

    def __init__(self, folder: Path) -> None:
        make_schema(folder / "fleet.db")
        self.store = Store(f"sqlite+aiosqlite:///{folder}/fleet.db")
        self.settings = FleetSettings(home=folder)
        self.nodes, self.books, self.runs = TwinNodes(), Books(), Runs()
        self.log: list[str] = []
        self.commits_fail: FleetError | None = None
        self.on_commit: Callable[[], None] = lambda: None
        self.executor = Executor(
            1, self.settings, load_catalog(), self.books, self.runs, self.nodes, settle=self.commit, builds=self.build
        )
        self.desk = PoolDesk(
            "us-east",
            self.store,
            self.books,
            self.executor,
            self.settings,
            RegionMetrics("us-east", RegionSample),
            commit=self.commit,
            settle=self.commit,
            plan_one=self.plan_one,
            stored=self.stored,
            draining=list,
        )

    async def build(self, build_id: str) -> BuildRef:
        return BuildRef(build_id, "zip", "hash")

    async def stored(self, instance_id: str) -> Server | None:
        return None

    async def commit(self) -> None:
        self.on_commit()
        if self.commits_fail is not None:
            raise self.commits_fail
        self.books.take()
        self.log.append("commit")
        self.executor.command(self.executor.take_commands())

    def plan_one(self, server: Server) -> None:
        run = self.runs.get(current(server))
        self.executor.carry_out(plan_server(server, run, self.nodes.views(), now_ms(), POLICY))

    async def begin(self, count: int, *, hot: int | None = None) -> None:
        """A project with a pool of that many, all of them warm; beyond `hot` they are frozen."""
        size = {"count": count, "max": count} | ({} if hot is None else {"hot": hot})
        pools = {"pool_config": {"enabled": True, "regions": {"us-east": {"small": size}}}}
        async with self.store.write() as session:
            session.add(Project(id="p", name="p", plan="pro", settings=pools, created_at=1, updated_at=1))
            await session.flush()
            values = {"build_type": "zip", "status": "ready", "created_at": 1, "updated_at": 1}
            session.add(Build(build_id="b", project_id="p", name="default", version=1, **values))
        await self.desk.load()
        for number, server in enumerate(list(self.books.live.values())):
            self.books.step(server, now_ms(), "running", status="running", started_at=now_ms(), node_id="n")
            frozen = hot is not None and number >= hot
            view = RunView(current(server), "n", RunState.RUNNING, now_ms(), frozen=frozen)
            self.runs[current(server)] = self.nodes.containers[current(server)] = view
            self.desk.observe(view)
        self.books.take()

    def call(self, op: str = "op", **values: Any) -> ClaimCall:
        [pool] = self.desk.keeper.pools().values()
        return ClaimCall(op, "p", "small", "default", pool.spec or "", **values)


@pytest.fixture
async def region(tmp_path: Path) -> AsyncIterator[Region]:
    found = Region(tmp_path)
    yield found
    await found.executor.tasks.settled()
    await found.store.close()


async def test_a_claim_is_answered_after_its_commit_and_its_game_is_told(region: Region) -> None:
    await region.begin(2)
    told = list[Any]()
    region.nodes.rewrite_config = lambda key, config: (region.log.append("told"), told.append((key, config)))  # pyright: ignore[reportAttributeAccessIssue]
    [row] = await region.desk.claim([region.call(custom_data={"map": "x"})])
    assert row is not None
    await region.executor.tasks.settled()
    assert region.log.index("commit") < region.log.index("told")
    assert [(key.instance_id, config["custom_data"]) for key, config in told] == [(row["instance_id"], {"map": "x"})]


async def test_a_claim_that_cannot_be_committed_is_not_answered_with_a_server(region: Region) -> None:
    await region.begin(1)
    region.commits_fail = Unavailable("The database does not answer.")
    with pytest.raises(Unavailable):
        await region.desk.claim([region.call()])


async def test_one_op_has_one_server_though_it_is_asked_for_during_the_commit(region: Region) -> None:
    await region.begin(3)
    first, second = await asyncio.gather(region.desk.claim([region.call()]), region.desk.claim([region.call()]))
    assert first[0] is not None
    assert second[0] is not None
    assert first[0]["instance_id"] == second[0]["instance_id"]
    assert sum(server.pool_claimed_at is not None for server in region.books.live.values()) == 1


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_frozen_game_that_does_not_wake_is_ended_and_the_start_goes_elsewhere(
    region: Region, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(pool_desk, "_THAW_S", 0.05)
    await region.begin(1, hot=0)
    [server] = region.books.live.values()

    async def call(node_id: str, method: str, *arguments: Any) -> None:
        if method == "thaw" and hangs:
            await asyncio.Event().wait()
        raise Unavailable("no agent")

    region.nodes.call = call
    assert await region.desk.claim([region.call()]) == [None]
    assert (server.status, server.stop_reason) == ("stopped", "start_failed")
    assert "op" not in region.desk.keeper.claims, "the op may be given another server"


async def test_a_claimed_server_is_never_retired(region: Region) -> None:
    await region.begin(1)
    [server] = region.books.live.values()
    await region.desk.claim([region.call()])
    region.desk.retire(server, now_ms(), "pool_surplus", "")
    assert server.status == "running"


async def test_what_is_unhealthy_or_on_a_silent_node_is_not_given(region: Region) -> None:
    await region.begin(2)
    first, second = region.books.live.values()
    region.desk.observe(RunView(current(first), "n", RunState.RUNNING, now_ms(), healthy=False))
    [row] = await region.desk.claim([region.call("a")])
    assert row is not None
    assert row["instance_id"] == second.instance_id
    region.desk.observe(RunView(current(first), "n", RunState.RUNNING, now_ms(), healthy=True))
    region.desk.keeper.doubt("n")
    assert await region.desk.claim([region.call("b")]) == [None]
