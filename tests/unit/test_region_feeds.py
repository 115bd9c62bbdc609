"""Outbox, feed and watch: nobody who waits misses a change, and nothing grows without bound."""

import asyncio

import pytest

from fleet.errors import Unavailable
from fleet.node.model import RunState, RunView
from fleet.node.outbox import Outbox
from fleet.node.runtime import RunKey
from fleet.region import feed as feed_module
from fleet.region.feed import ChangeFeed, Changes
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


async def test_a_cursor_sees_every_later_change_once() -> None:
    feed = ChangeFeed("r/1")
    start = await feed.after(None, 5)
    feed.publish(["a", "b", "a"])
    changes = await feed.after(start.cursor, 5)
    assert set(changes.ids) == {"a", "b"}
    assert not changes.lost
    assert (await feed.after(changes.cursor, 0.01)).ids == ()


async def test_a_cursor_of_another_manager_or_too_old_says_that_changes_were_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed_module, "KEPT", 3)
    feed = ChangeFeed("r/2")
    assert (await feed.after("r/1#7", 5)).lost
    start = await feed.after(None, 5)
    feed.publish([str(i) for i in range(10)])
    changes = await feed.after(start.cursor, 5)
    assert changes.lost
    assert len(changes.ids) <= 3


async def test_waiters_share_one_poll_and_wake_for_their_own_server_only() -> None:
    feed = ChangeFeed("r/1")
    done: set[str] = set()
    polls = 0
    looks: list[str] = []
    all_look = asyncio.Event()

    async def poll(cursor: str | None, timeout_s: float) -> Changes:
        nonlocal polls
        polls += 1
        return await feed.after(cursor, timeout_s)

    watch = RegionWatch(poll)

    async def wait(name: str) -> bool:
        async def reached() -> bool:
            looks.append(name)
            if len(looks) == 3:
                all_look.set()
            return name in done

        return await watch.until(name, reached, 20)

    waits = [asyncio.create_task(wait(name)) for name in ("a", "b", "c")]
    await asyncio.wait_for(all_look.wait(), 5)
    done.add("b")
    feed.publish(["b"])
    assert await asyncio.wait_for(waits[1], 5)
    assert not waits[0].done()
    assert not waits[2].done()
    assert looks == ["a", "b", "c", "b"]
    done.update("ac")
    feed.publish(["a", "c"])
    assert await asyncio.gather(*waits) == [True, True, True]
    assert polls <= 4


async def test_a_broken_poll_is_taken_up_again_and_everything_is_looked_at() -> None:
    feed = ChangeFeed("r/2")
    ready = False
    failures = iter([Unavailable("manager restarts")])

    async def poll(cursor: str | None, timeout_s: float) -> Changes:
        nonlocal ready
        if cursor is not None and (failure := next(failures, None)):
            ready = True  # the change happened while nobody listened
            raise failure
        return await feed.after(cursor, timeout_s)

    async def reached() -> bool:
        return ready

    assert await RegionWatch(poll).until("a", reached, 20)


async def test_waiting_ends_at_the_timeout() -> None:
    feed = ChangeFeed("r/1")

    async def never() -> bool:
        return False

    assert not await RegionWatch(feed.after).until("a", never, 0.05)
