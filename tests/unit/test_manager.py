"""The region's manager with its real database, commit and plans: it comes up whatever is away at first, one failure
stops nothing else, and what follows a commit happens whoever stops waiting for it. Its one agent is in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlmodel import col, select

from fleet.actors.health import process_health
from fleet.errors import BadRequest, FleetError, Unavailable
from fleet.node.model import RunState, RunView
from fleet.node.runtime import BuildRef, RunKey
from fleet.region import manager as manager_module
from fleet.region import reconciler
from fleet.region.model import Action
from fleet.store.commit import take_epoch
from fleet.store.tables import RegionEpoch, ServerEvent
from fleet.times import now_ms
from tests.unit.region_kit import NODE, SHARE, Fleet, eventually

AWAY = OperationalError("SELECT 1", {}, Exception("connection refused"))


@pytest.fixture
async def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    made = Fleet(tmp_path, monkeypatch)
    await made.furnish()
    yield made
    await made.close()


# It comes up ------------------------------------------------------------------------------------------------------


async def test_a_manager_comes_up_once_the_database_is_back_and_says_what_is_missing(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = [True]

    async def epoch(store: Any, region: str) -> int:
        if away:
            raise AWAY
        return await take_epoch(store, region)

    monkeypatch.setattr(manager_module, "take_epoch", epoch)
    manager = await fleet.begin()
    await eventually(lambda: "connection refused" in (manager._startup.missing or ""))
    told = await manager.status()
    assert "connection refused" in told["missing"]
    assert told["nodes"] == []
    up = [family for family in await manager.metrics() if family.name == "fleet_region_up"]
    assert [sample.value for sample in up[0].samples] == [0.0]
    with pytest.raises(Unavailable, match="connection refused"):
        await manager._startup.ready(0.01)
    away.clear()
    assert await fleet.start(manager) == "s001"
    assert (await manager.status())["missing"] is None


async def test_rows_that_cannot_be_read_at_first_are_read_later_under_the_same_epoch(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that fails leaves nothing behind: no task, no second epoch, no half of the rows."""
    load, failures = reconciler.Reconciler.load, [AWAY, AWAY]

    async def fails_first(self: reconciler.Reconciler) -> None:
        await load(self)
        if failures:
            raise failures.pop()

    monkeypatch.setattr(reconciler.Reconciler, "load", fails_first)
    async with fleet.store.write() as session:
        session.add(fleet.row(status="running", step="running", node_id=NODE, started_at=1))
    fleet.agent.runs[RunKey("s001", 1)] = RunView(RunKey("s001", 1), NODE, RunState.RUNNING, 1)
    manager = await fleet.begin()
    await manager._startup.ready(10)
    assert failures == []
    assert list(manager._reconciler.books.live) == ["s001"]
    async with fleet.store.read() as session:
        row = await session.get(RegionEpoch, "us-east")
    assert row is not None
    assert row.epoch == 1


async def test_an_agents_list_that_cannot_be_had_is_asked_for_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, failures = reconciler.Reconciler.begin, [ConnectionError("head away")]

    def fails_first(self: reconciler.Reconciler) -> None:
        if failures:
            raise failures.pop()
        begin(self)

    monkeypatch.setattr(reconciler.Reconciler, "begin", fails_first)
    manager = await fleet.begin()
    await fleet.running(manager)


async def test_nobody_is_placed_before_the_nodes_have_told_what_the_manager_before_has_launched(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch goes out while its row is committed: one whose manager died before that is queued by its row, and runs.
    A node that does not tell in time holds up nobody."""
    hello, told = fleet.agent.do_hello, asyncio.Event()

    async def late(epoch: int) -> Any:
        await told.wait()
        return await hello(epoch)

    monkeypatch.setattr(fleet.agent, "do_hello", late)
    manager = await fleet.begin()
    await manager._startup.ready()
    core = manager._reconciler
    assert not core._may_place()
    monkeypatch.setattr(reconciler, "HEARD_MS", -1)
    assert core._may_place()
    monkeypatch.setattr(reconciler, "HEARD_MS", 60_000)
    told.set()
    await eventually(core._may_place)


# One failure stops nothing else -----------------------------------------------------------------------------------


async def test_a_run_on_another_node_than_the_rows_is_stopped_there(fleet: Fleet) -> None:
    """A manager that died before its commit had launched it on a node that was silent when the next one placed it."""
    async with fleet.store.write() as session:
        session.add(fleet.row(status="running", step="running", node_id="us-east@other", started_at=1))
    key = RunKey("s001", 1)
    fleet.agent.runs[key] = RunView(key, NODE, RunState.RUNNING, 1)
    manager = await fleet.begin()
    await eventually(lambda: fleet.agent.runs == {})
    row = manager._reconciler.books.live["s001"]
    assert (row.step, row.node_id, row.generation) == ("running", "us-east@other", 1)
    assert manager._reconciler._executor.rooms.servers(NODE) == frozenset()


async def test_a_build_that_cannot_be_read_once_is_read_by_the_next_repair(fleet: Fleet) -> None:
    """The repair timer goes on, and the server is launched within a repair period."""
    manager = await fleet.begin()
    await manager._startup.ready()
    executor, failures = manager._reconciler._executor, [AWAY]
    read = executor._builds

    async def fails_once(build_id: str) -> BuildRef:
        if failures:
            raise failures.pop()
        return await read(build_id)

    executor._builds = fails_once
    await fleet.running(manager)
    assert failures == []


async def test_a_server_that_cannot_be_planned_stops_nobody_elses_plan(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await fleet.begin()
    bad = await fleet.start(manager)
    plan = reconciler.plan_server

    def plan_server(server: Any, *rest: Any) -> list[Action]:
        if server.instance_id == bad:
            raise KeyError("a fault of ours")
        return plan(server, *rest)

    monkeypatch.setattr(reconciler, "plan_server", plan_server)
    before = process_health.counts().get("manager.repair", 0)
    await fleet.running(manager)
    await eventually(lambda: process_health.counts().get("manager.repair", 0) > before)


@pytest.mark.parametrize("part", ["forecasting.pass_time", "scaler.review"])
async def test_a_part_of_the_repair_that_fails_stops_no_other(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    manager = await fleet.begin()
    await manager._startup.ready()
    name, method = part.split(".")

    def fails(*_: Any) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(getattr(manager._reconciler.parts, name), method, fails)
    passes = manager._reconciler.repair_s
    await eventually(lambda: manager._reconciler.repair_s not in (0.0, passes))
    await fleet.running(manager)


# What follows a commit --------------------------------------------------------------------------------------------


async def test_a_caller_that_goes_away_during_the_commit_takes_nothing_with_it(fleet: Fleet) -> None:
    """The server is stopped on its node, and who waits for that hears of it."""
    manager = await fleet.begin()
    name = await fleet.running(manager)
    waits = asyncio.create_task(manager.reached("me", [(name, frozenset({"stopped"}))], 20))
    stop = asyncio.create_task(manager.command("", "stop", (name, "requested", None)))
    while manager._reconciler.status_of(name) != "stopped":  # noqa: ASYNC110  turns of the loop, not times
        await asyncio.sleep(0)
    stop.cancel()
    with suppress(asyncio.CancelledError):
        await stop
    assert await asyncio.wait_for(waits, 5) == [name]
    await eventually(lambda: fleet.agent.runs == {})
    assert (await fleet.stored(name)).step == "stopped"


async def test_a_follower_that_is_cancelled_takes_nothing_of_what_it_heard_with_it(fleet: Fleet) -> None:
    manager = await fleet.begin()
    name = await fleet.running(manager)
    view = fleet.agent.runs[RunKey(name, 1)]
    ended = replace(view, state=RunState.EXITED, exit_code=0)
    waits = asyncio.create_task(manager.reached("me", [(name, frozenset({"stopped"}))], 20))
    following = asyncio.create_task(manager._reconciler.on_events((ended,)))
    while manager._reconciler.status_of(name) is not None:  # noqa: ASYNC110  turns of the loop, not times
        await asyncio.sleep(0)
    following.cancel()
    assert await asyncio.wait_for(waits, 5) == [name]
    assert (await fleet.stored(name)).stop_reason == "exited"


async def test_a_node_that_says_hello_seems_empty_to_nobody(fleet: Fleet) -> None:
    """From the moment in which it can be placed on, what runs there counts, also what no live row speaks of."""
    manager = await fleet.begin()
    await fleet.running(manager)
    stopping = RunView(RunKey("stopping", 1), NODE, RunState.RUNNING, 1, (), SHARE.memory_mb)
    hello = replace(await fleet.agent.do_hello(1), runs=(*fleet.agent.runs.values(), stopping))
    synced = asyncio.create_task(manager._reconciler.on_sync(hello))
    await asyncio.sleep(0)  # one turn of the loop: the next may belong to somebody who places a server
    assert stopping.key in manager._reconciler.runs
    await synced


async def test_an_answer_waits_for_a_commit_that_others_have_taken_along(fleet: Fleet) -> None:
    """A command's change may go to disk with somebody else's: it is not answered before that."""
    manager = await fleet.begin()
    name = await fleet.running(manager)
    core = manager._reconciler
    server = core.books.live[name]
    core.books.change(server, server.step_at, custom_data={"a": 1})
    others = asyncio.create_task(core.commit())
    await asyncio.sleep(0)
    await core.commit()
    assert (await fleet.stored(name)).custom_data == {"a": 1}
    await others


async def launch_on_its_way(fleet: Fleet, manager: Any) -> tuple[asyncio.Event, asyncio.Task[Any]]:
    """A second server, whose first launch reaches its node when the event is set; and its start."""
    launch, arrives = fleet.agent.do_launch, asyncio.Event()

    async def late(epoch: int, spec: Any) -> Any:
        if spec.key == RunKey("s002", 1):
            await arrives.wait()
        return await launch(epoch, spec)

    fleet.agent.do_launch = late
    starting = asyncio.create_task(fleet.start(manager))
    live = manager._reconciler.books.live
    await eventually(lambda: live.get("s002") is not None and live["s002"].step == "placed")
    return arrives, starting


async def test_the_room_of_a_server_that_is_stopped_during_its_launch_is_free_once_its_node_has_ended_it(
    fleet: Fleet,
) -> None:
    """The node may begin it after the stop: somebody else in its room would fill the machine beyond what it has."""
    manager = await fleet.begin()
    await fleet.running(manager)
    core = manager._reconciler
    arrives, starting = await launch_on_its_way(fleet, manager)
    free = core._executor.rooms.room(NODE).memory_mb
    await manager.command("", "stop", ("s002", "requested", None))
    passes = core.repair_s
    await eventually(lambda: core.repair_s != passes)
    assert core._executor.rooms.room(NODE).memory_mb == free
    arrives.set()
    await starting
    await eventually(lambda: "s002" not in core.books.live)
    assert fleet.agent.told.count("stop") == 1
    assert core._executor.rooms.room(NODE).memory_mb > free


async def test_the_room_of_a_launch_is_kept_when_its_server_is_restarted_meanwhile(fleet: Fleet) -> None:
    """Both generations may run on the node for a moment: the first one's launch is on its way, and is stopped there."""
    manager = await fleet.begin()
    await fleet.running(manager)
    core = manager._reconciler
    arrives, starting = await launch_on_its_way(fleet, manager)
    free = core._executor.rooms.room(NODE).memory_mb
    await manager.command("", "restart", ("s002", {}, "op"))
    server = core.books.live["s002"]
    assert (server.generation, server.node_id) == (2, NODE)
    size = core._executor.demand(server).memory_mb
    assert core._executor.rooms.room(NODE).memory_mb == free - size
    arrives.set()
    await starting
    await eventually(lambda: core._executor.rooms.room(NODE).memory_mb == free)
    assert fleet.agent.told.count("stop") == 1


# A database that is away ------------------------------------------------------------------------------------------


class Held:
    """Keeps a manager's commits from being done until `let_go`."""

    def __init__(self, manager: Any) -> None:
        self._transactions = manager._reconciler.parts.commits._transactions
        self._run, self._free = self._transactions.run, asyncio.Event()
        self._transactions.run = self

    async def __call__(self, statements: Any) -> None:
        await self._free.wait()
        await self._run(statements)

    def let_go(self) -> None:
        self._transactions.run = self._run
        self._free.set()


async def test_nodes_are_listened_to_while_the_database_takes_nothing(fleet: Fleet) -> None:
    """What they tell is known at once; only what follows from it waits for its commit. Else a game that became ready
    during an outage would be ended as never ready at its end."""
    manager = await fleet.begin()
    name = await fleet.start(manager)
    key = RunKey(name, 1)
    await eventually(lambda: key in fleet.agent.runs)
    held = Held(manager)
    for state in (RunState.CREATING, RunState.BOOTING, RunState.RUNNING):
        fleet.agent.set(key, state)
        await eventually(lambda s=state: manager._reconciler.runs[key].state is s)
    assert (await fleet.stored(name)).status == "launching"
    held.let_go()
    await eventually(lambda: manager._reconciler.parts.commits.lag_s() == 0)
    assert (await fleet.stored(name)).status == "running"


async def test_no_deadline_counts_the_time_in_which_the_database_was_away(fleet: Fleet) -> None:
    """During an outage nobody is ended for being late, and everybody has his whole time after it."""
    limits = fleet.settings.servers.model_copy(update={"ready_deadline_s": 0.5})
    fleet.settings = fleet.settings.model_copy(update={"servers": limits})
    manager = await fleet.begin()
    name = await fleet.start(manager)
    key = RunKey(name, 1)
    await eventually(lambda: key in fleet.agent.runs)
    commits = manager._reconciler.parts.commits
    commits._refuse_after_s = 0.1
    held = Held(manager)
    fleet.agent.set(key, RunState.BOOTING)
    await asyncio.sleep(1.0)
    assert manager._reconciler.status_of(name) == "launching"
    back_at = now_ms()
    held.let_go()
    await eventually(lambda: manager._reconciler.status_of(name) != "launching")
    await commits.flush()
    ended = await fleet.stored(name)
    assert ended.stop_reason == "never_ready"
    assert ended.step_at - back_at >= 400


# What does not arrive is told again -------------------------------------------------------------------------------


async def test_a_stop_and_a_forget_that_fail_are_tried_until_they_are_done(fleet: Fleet) -> None:
    manager = await fleet.begin()
    name = await fleet.running(manager)
    fleet.agent.failing = {"stop": 3, "forget": 3}
    await manager.command("", "stop", (name, "requested", None))
    await eventually(lambda: fleet.agent.runs == {})
    await eventually(lambda: name not in manager._reconciler.books.live)
    assert fleet.agent.told.count("stop") >= 4
    assert fleet.agent.told.count("forget") >= 4


async def test_a_config_that_could_not_be_rewritten_is_rewritten_later(fleet: Fleet) -> None:
    manager = await fleet.begin()
    name = await fleet.running(manager)
    fleet.agent.failing = {"rewrite_config": 3}
    await manager.command("", "update", (name, {"map": "x"}))
    await eventually(lambda: fleet.agent.configs[RunKey(name, 1)]["custom_data"] == {"map": "x"})


async def test_the_next_manager_tells_a_config_that_its_predecessor_could_not(fleet: Fleet) -> None:
    manager = await fleet.begin()
    name = await fleet.running(manager)
    fleet.agent.failing = {"rewrite_config": 1}
    await asyncio.sleep(0.01)  # an update after its start, on the clock too
    await manager.command("", "update", (name, {"map": "x"}))
    await manager._reconciler.close()
    fleet.agent.failing = {}
    await (await fleet.begin())._startup.ready()
    await eventually(lambda: fleet.agent.configs[RunKey(name, 1)]["custom_data"] == {"map": "x"})


# Operators' edits -------------------------------------------------------------------------------------------------


async def test_a_size_that_is_removed_works_for_who_has_it_and_is_refused_to_others(fleet: Fleet) -> None:
    async with fleet.store.write() as session:
        session.add(fleet.row(status="running", step="running", node_id=NODE, compute_size="huge-2024", started_at=1))
    manager = await fleet.begin()
    await fleet.running(manager)
    with pytest.raises(BadRequest, match="huge-2024"):
        await fleet.start(manager, compute_size="huge-2024")
    await manager.command("", "stop", ("s001", "requested", None))
    await eventually(lambda: "s001" not in manager._reconciler.books.live)


async def test_writes_are_refused_while_nothing_can_be_written(fleet: Fleet) -> None:
    manager = await fleet.begin()
    name = await fleet.running(manager)

    def check() -> None:
        raise Unavailable("The database cannot be written now.")

    manager._reconciler.parts.commits.check = check
    for method, arguments in (
        ("update", (name, {})),
        ("stop", (name, "requested", None)),
        ("restart", (name, {}, "op")),
    ):
        with pytest.raises(FleetError, match="database"):
            await manager.command("", method, arguments)
    with pytest.raises(FleetError, match="database"):
        await fleet.start(manager)
    with pytest.raises(FleetError, match="database"):
        await manager.claim([])


async def test_a_disk_that_a_game_has_filled_is_told_once(fleet: Fleet) -> None:
    manager = await fleet.begin()
    name = await fleet.start(manager)
    [key] = fleet.agent.runs
    fleet.agent.set(key, RunState.RUNNING)
    fleet.agent.set(key, RunState.RUNNING, disk_full=True)
    fleet.agent.set(key, RunState.RUNNING, disk_full=True, message="and something else")

    async def told() -> list[ServerEvent]:
        async with fleet.store.read() as session:
            mine = (col(ServerEvent.instance_id) == name, col(ServerEvent.type) == "disk_full")
            return list((await session.exec(select(ServerEvent).where(*mine))).all())

    async with asyncio.timeout(10):
        while not await told():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    [event] = await told()
    assert event.data == {"disk_mb": 1024}
