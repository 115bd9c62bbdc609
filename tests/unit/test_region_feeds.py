"""Outbox, feed and watch: nobody who waits misses a change, and nothing grows without bound."""

import asyncio

from fleet.errors import Unavailable
from fleet.node.model import RunState, RunView
from fleet.node.outbox import Outbox
from fleet.node.runtime import RunKey
from fleet.region.feed import StatusBell, Want
from fleet.region.watch import RegionWatch


def view(state: RunState, name: str = "a") -> RunView:
    return RunView(RunKey(name, 1), "n", state, 0)


async def test_the_outbox_keeps_events_until_they_are_acknowledged() -> None:
    box = Outbox()
    box.put(view(RunState.CREATING))
    box.put(view(RunState.RUNNING))
    first = await box.after(0, 5)
    again = await box.after(0, 5)
    assert [v.state for v in first.events] == [RunState.CREATING, RunState.RUNNING]
    assert again.events == first.events
    assert (await box.after(first.seq, 0.01)).events == ()


async def test_an_urgent_event_ends_the_wait_and_brings_the_others_along() -> None:
    box = Outbox()
    poll = asyncio.create_task(box.after(0, 30))
    await asyncio.sleep(0)
    box.put(view(RunState.CREATING))
    box.put(view(RunState.EXITED))
    page = await asyncio.wait_for(poll, 5)
    assert [v.state for v in page.events] == [RunState.CREATING, RunState.EXITED]


async def test_steps_are_told_without_an_urgent_event_too() -> None:
    box = Outbox()
    box.put(view(RunState.PREPARING))
    page = await asyncio.wait_for(box.after(0, 30), 10)
    assert [v.state for v in page.events] == [RunState.PREPARING]


RUNNING, STOPPED = frozenset({"running", "stopped"}), frozenset({"stopped"})


class Region:
    """Statuses by id, with the bell that tells of them."""

    def __init__(self) -> None:
        self.statuses: dict[str, str] = {}
        self.bell = StatusBell(self.statuses.get)
        self.asked = 0

    def change(self, **statuses: str) -> None:
        self.statuses.update(statuses)
        self.bell.ring(statuses)

    async def ask(self, who: str, wants: list[Want], timeout_s: float) -> list[str]:
        self.asked += 1
        return await self.bell.until(who, wants, timeout_s)

    async def wait(self, watch: RegionWatch, name: str, statuses: frozenset[str], timeout_s: float = 20) -> bool:
        async def reached() -> bool:
            return self.statuses.get(name, "stopped") in statuses

        return await watch.until(name, statuses, reached, timeout_s)


async def until_asked(region: Region, times: int) -> None:
    async with asyncio.timeout(5):
        while region.asked < times:  # noqa: ASYNC110  turns of the loop, not times
            await asyncio.sleep(0)


async def test_the_bell_answers_at_once_what_is_reached_already_and_what_does_not_live() -> None:
    region = Region()
    region.change(a="running", b="launching")
    wants = [("a", RUNNING), ("b", RUNNING), ("gone", STOPPED)]
    assert await region.bell.until("me", wants, 20) == ["a", "gone"]


async def test_the_bell_answers_when_the_first_is_reached_and_forgets_who_asked() -> None:
    region = Region()
    region.change(a="launching", b="launching")
    asking = asyncio.create_task(region.bell.until("me", [("a", RUNNING), ("b", RUNNING)], 20))
    await asyncio.sleep(0)
    region.bell.ring(["a"])  # changed, but not to what is wanted
    region.change(b="running")
    assert await asyncio.wait_for(asking, 5) == ["b"]
    assert await region.bell.until("me", [("a", RUNNING)], 0.01) == []
    assert vars(region.bell)["_waiters"] == {}
    assert vars(region.bell)["_asked"] == {}


async def test_a_newer_question_takes_the_place_of_the_older_one() -> None:
    region = Region()
    region.change(a="launching", b="launching")
    older = asyncio.create_task(region.bell.until("me", [("a", RUNNING)], 20))
    await asyncio.sleep(0)
    newer = asyncio.create_task(region.bell.until("me", [("a", RUNNING), ("b", RUNNING)], 20))
    assert await asyncio.wait_for(older, 5) == []
    region.change(a="running")
    assert await asyncio.wait_for(newer, 5) == ["a"]


async def test_who_waits_together_asks_together_and_wakes_for_its_own_server_only() -> None:
    region = Region()
    region.change(a="launching", b="launching", c="launching")
    watch = RegionWatch(region.ask)
    waits = [asyncio.create_task(region.wait(watch, name, RUNNING)) for name in "abc"]
    await until_asked(region, 1)
    region.change(b="running")
    assert await asyncio.wait_for(waits[1], 5)
    assert not waits[0].done()
    assert not waits[2].done()
    await until_asked(region, 2)
    region.change(a="running", c="stopped")
    assert await asyncio.gather(*waits) == [True, True, True]
    assert region.asked == 2


async def test_nobody_is_forgotten_when_many_come_and_go() -> None:
    region = Region()
    watch = RegionWatch(region.ask)
    names = [str(number) for number in range(200)]
    region.change(**dict.fromkeys(names, "launching"))
    waits = []
    for number, name in enumerate(names):
        waits.append(asyncio.create_task(region.wait(watch, name, RUNNING)))
        if number % 7 == 0:
            await asyncio.sleep(0)
        if number % 11 == 0:
            region.change(**{names[number // 2]: "running"})
    region.change(**dict.fromkeys(names, "running"))
    assert all(await asyncio.wait_for(asyncio.gather(*waits), 10))
    assert region.asked < 100


async def test_when_nobody_waits_nothing_is_asked() -> None:
    region = Region()
    region.change(a="launching")
    watch = RegionWatch(region.ask)
    waiting = asyncio.create_task(region.wait(watch, "a", RUNNING))
    await until_asked(region, 1)
    region.change(a="running")
    assert await asyncio.wait_for(waiting, 5)
    for _ in range(5):
        region.change(a="stopped")
        await asyncio.sleep(0)
    assert region.asked == 1


async def test_a_broken_question_is_asked_again_and_everybody_looks() -> None:
    region = Region()
    region.change(a="launching")
    failures = iter([Unavailable("manager restarts")])

    async def ask(who: str, wants: list[Want], timeout_s: float) -> list[str]:
        if failure := next(failures, None):
            region.statuses["a"] = "running"  # the change happened while nobody listened
            raise failure
        return await region.ask(who, wants, timeout_s)

    assert await region.wait(RegionWatch(ask), "a", RUNNING)


async def test_waiting_ends_at_the_timeout() -> None:
    region = Region()
    region.change(a="launching")
    assert not await region.wait(RegionWatch(region.ask), "a", RUNNING, 0.05)


async def test_a_question_that_is_cancelled_leaves_nobody_waiting() -> None:
    region = Region()
    region.change(a="launching")
    cancelled = iter([True])

    async def ask(who: str, wants: list[Want], timeout_s: float) -> list[str]:
        if next(cancelled, False):
            region.statuses["a"] = "running"
            raise asyncio.CancelledError
        return await region.ask(who, wants, timeout_s)

    assert await asyncio.wait_for(region.wait(RegionWatch(ask), "a", RUNNING), 5)
