"""Background work: every error is logged and counted, and the work goes on."""

import asyncio
import gc
import warnings
from threading import Lock
from typing import Any

import pytest
import structlog.testing
from ray import cloudpickle

from fleet.actors.health import FAILING_AFTER_S, STEADY_S, TaskHealth, families, process_health
from fleet.actors.startup import Startup
from fleet.actors.tasks import BACKOFF_FIRST_S, SupervisedTasks, backoff_s, first_done
from fleet.errors import Unavailable
from fleet.lobbies.keeper import LobbyKeeper
from fleet.node.agent import NodeAgent
from fleet.region.manager import RegionManager
from tests.waiting import soon


class Flaky:
    """Raises as often as it is told, then works."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = self.worked = 0

    async def __call__(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        self.worked += 1


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("error", [OSError("away"), ValueError("a bug"), asyncio.CancelledError()], ids=repr)
async def test_a_periodic_work_goes_on_after_any_error(error: BaseException) -> None:
    tasks, work = SupervisedTasks("test", health=TaskHealth()), Flaky(error, error)
    tasks.every("pass", work, 0.01, limit_s=1)
    await soon(lambda: work.worked >= 2, 2 * BACKOFF_FIRST_S + 2)
    await tasks.close()


@pytest.mark.parametrize("error", [OSError("away"), ValueError("a bug"), asyncio.CancelledError()], ids=repr)
async def test_kept_work_is_begun_again_until_it_returns_and_not_after(error: BaseException) -> None:
    tasks, work = SupervisedTasks("test", health=TaskHealth()), Flaky(error, error)
    task = tasks.keep("follow", work, first_s=0.01)
    await asyncio.wait_for(task, 2)
    assert (work.calls, work.worked) == (3, 1)


async def test_a_pass_that_hangs_is_well_counted_and_followed_by_the_next() -> None:
    health = TaskHealth()
    tasks, passes = SupervisedTasks("test", health=health), 0

    async def hangs_once() -> None:
        nonlocal passes
        passes += 1
        if passes == 1:
            await asyncio.Event().wait()

    tasks.every("pass", hangs_once, 0.01, limit_s=0.05)
    await soon(lambda: passes > 2, 2)
    assert health.counts() == {"test.pass": 1}
    await tasks.close()


async def test_closing_ends_work_that_fails_or_waits_and_is_no_failure() -> None:
    health = TaskHealth()
    tasks = SupervisedTasks("test", health=health)
    endless = tasks.keep("wait", asyncio.Event().wait)
    pausing = tasks.keep("fail", Flaky(*[OSError()] * 100), first_s=60)
    once = tasks.once("once", asyncio.Event().wait())
    await asyncio.sleep(0.01)
    await tasks.close()
    assert endless.cancelled()
    assert pausing.cancelled()
    assert once.cancelled()
    assert health.counts() == {"test.fail": 1}
    assert health.failing() == []


async def test_one_attempt_is_logged_counted_and_kept_alive() -> None:
    health = TaskHealth()
    tasks = SupervisedTasks("match", health=health, region="us-east")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    with structlog.testing.capture_logs() as lines:
        tasks.once("tell", fails(), match="m")
        gc.collect()
        await tasks.settled()
        await asyncio.sleep(0)
    (line,) = lines
    assert (line["event"], line["task"], line["region"], line["match"]) == (
        "background_task_failed",
        "match.tell",
        "us-east",
        "m",
    )
    assert health.counts() == {"match.tell": 1}


async def test_what_is_closed_before_it_began_leaves_nothing_that_nobody_awaited() -> None:
    tasks = SupervisedTasks("test", health=TaskHealth())

    async def never() -> None:
        raise AssertionError("it was closed before its first step")

    tasks.once("never", never())
    await tasks.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()


async def test_settled_waits_for_what_the_work_began() -> None:
    tasks, seen = SupervisedTasks("test", health=TaskHealth()), list[int]()

    async def work(number: int) -> None:
        seen.append(number)
        if number == 1:
            tasks.once("second", work(2))

    tasks.once("first", work(1))
    await tasks.settled()
    assert seen == [1, 2]


def test_the_back_off_doubles_and_is_bounded() -> None:
    assert [backoff_s(n, 1, 5) for n in (1, 2, 3, 4, 1000)] == [1, 2, 4, 5, 5]


def test_what_fails_without_end_makes_the_process_unhealthy_until_it_works() -> None:
    clock = Clock()
    health, owner = TaskHealth(clock), object()
    health.failed("manager.repair", owner, OSError("away"))
    assert health.failing() == []
    clock.now = FAILING_AFTER_S
    health.failed("manager.repair", owner, OSError("still away"))
    (failing,) = health.failing()
    assert (failing.task, failing.for_s, failing.error) == (
        "manager.repair",
        FAILING_AFTER_S,
        repr(OSError("still away")),
    )
    samples = {(s.name, *s.labels.values()): s.value for family in health.collect("region:sea") for s in family.samples}
    assert samples == {
        ("fleet_background_failures_total", "region:sea", "manager.repair"): 2.0,
        ("fleet_background_failing", "region:sea", "manager.repair"): 1.0,
    }
    health.succeeded("manager.repair", owner)
    assert health.failing() == []


def test_an_attempt_that_goes_on_has_recovered() -> None:
    """A follower never ends when all is well."""
    clock = Clock()
    health, owner = TaskHealth(clock), object()
    health.failed("leases.follow", owner, OSError())
    with health.attempt("leases.follow", owner):
        clock.now = 2 * FAILING_AFTER_S
        assert health.failing() == []
        health.failed("leases.follow", owner, OSError())  # and this one is the first of a new series
    assert health.failing() == []
    clock.now += FAILING_AFTER_S - 1
    assert health.failing() == []
    clock.now += 1
    assert [one.task for one in health.failing()] == ["leases.follow"]


async def test_a_pass_that_hangs_until_its_limit_again_and_again_is_failing() -> None:
    """Only of work that is to go on is it a good sign that it does."""
    clock = Clock()
    health = TaskHealth(clock)
    tasks, well = SupervisedTasks("test", health=health), list[bool]()

    async def hangs() -> None:
        clock.now += STEADY_S
        well.append(not health.failing())
        await asyncio.Event().wait()

    tasks.every("pass", hangs, 0.01, limit_s=0.01)
    await soon(lambda: len(well) > 4, 5)
    assert well[:5] == [True, True, False, False, False]
    await tasks.close()


def test_families_of_several_processes_have_each_name_once() -> None:
    found = families({"a": ({"x": 1}, ["x"]), "b": ({"x": 2}, [])})
    assert [family.name for family in found] == ["fleet_background_failures", "fleet_background_failing"]
    assert [(s.labels["process"], s.value) for s in found[1].samples] == [("a", 1.0), ("b", 0.0)]


async def test_start_up_is_tried_again_and_says_meanwhile_what_is_missing() -> None:
    tasks = SupervisedTasks("actor", health=TaskHealth())
    gate, work = asyncio.Event(), Flaky(OSError("database away"))
    startup = Startup("Region sea", tasks)

    async def come_up() -> None:
        await work()
        await gate.wait()

    startup.begin(come_up)
    with pytest.raises(Unavailable, match="database away"):
        await startup.ready(0.05)
    gate.set()
    await startup.ready(5)
    assert startup.done
    assert startup.missing is None
    await tasks.close()


async def test_the_first_to_end_ends_the_others() -> None:
    ended = list[str]()

    async def other() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("other")

    async def raises() -> Any:
        await asyncio.sleep(0.01)
        raise OSError("first")

    with pytest.raises(OSError, match="first"):
        await first_done(other(), raises())
    assert ended == ["other"]


def test_a_replica_that_counts_failures_can_make_managers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray copies an actor's class with its globals: the process's record goes by name, whatever listens to it here."""
    monkeypatch.setattr(process_health, "on_failure", Lock().__enter__)
    assert cloudpickle.loads(cloudpickle.dumps(process_health)) is process_health
    for actor in (RegionManager, LobbyKeeper, NodeAgent):
        assert cloudpickle.dumps(actor.__ray_metadata__.modified_class)
