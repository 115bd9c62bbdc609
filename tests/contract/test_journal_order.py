"""On PostgreSQL, entries that appear in another order than their ids are still read once each, none left out."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from sqlalchemy import insert

from fleet.events.journal import event_statement, project_event
from fleet.events.model import Cursor, Event, Position
from fleet.events.read import horizon, read_page
from fleet.events.stream import follow
from fleet.events.tail import Tail
from fleet.store.engine import Store
from fleet.store.tables import ProjectEvent

START = Cursor(Position(0, 0), Position(0, 0))
WAIT_S = 60


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    opened = Store(postgres_url)
    yield opened
    await opened.close()


async def write(
    store: Store,
    number: int,
    hold: asyncio.Event | None = None,
    written: asyncio.Event | None = None,
    *,
    fail: bool = False,
) -> None:
    """As a manager's group commit writes: beside other transactions. `written`: it is in, and waits for `hold`."""
    statement, rows = event_statement([project_event("p", "pool", "x", "pool.ready", {"n": number})])
    try:
        async with store.write_connection() as connection:
            await connection.execute(statement, rows)
            if written is not None:
                written.set()
            if hold is not None:
                await hold.wait()
            if fail:
                raise RuntimeError("undone")
    except RuntimeError:
        assert fail


async def page(store: Store, after: Cursor) -> tuple[list[Event], Cursor]:
    async with store.read() as session:
        return await read_page(store, session, after, await horizon(store, session), ("p",))


async def test_a_late_commit_with_a_low_id_is_not_passed_by(store: Store) -> None:
    hold = asyncio.Event()
    written = asyncio.Event()
    late = asyncio.create_task(write(store, 1, hold, written))
    async with asyncio.timeout(WAIT_S):
        await written.wait()  # the low id is taken
        await write(store, 2)
        seen, cursor = await page(store, START)
        assert seen == [], "what is after an open transaction is not read yet"
        hold.set()
        await late
    seen, cursor = await page(store, cursor)
    assert [event.data["n"] for event in seen] == [1, 2]
    assert seen[0].position.id < seen[1].position.id
    assert (await page(store, cursor))[0] == []


async def test_many_writers_at_once_and_readers_that_come_and_go(store: Store) -> None:
    chance = random.Random(3)
    numbers = list(range(160))
    failing = {n for n in numbers if n % 7 == 0}
    tail = Tail(store)

    async def writer(mine: list[int]) -> None:
        for number in mine:
            hold = asyncio.Event()
            asyncio.get_running_loop().call_later(chance.random() * 0.05, hold.set)
            await write(store, number, hold, fail=number in failing)

    async def reader() -> list[int]:
        found: list[int] = []
        cursor = START
        wanted = len(numbers) - len(failing)
        while len(found) < wanted:
            stop = min(len(found) + chance.randint(1, 40), wanted)
            async with aclosing(follow(store, tail, "p", cursor, WAIT_S)) as coming:
                async for event, cursor in coming:  # noqa: B007 - the next round begins there
                    if event is not None:
                        found.append(event.data["n"])
                    if len(found) >= stop:
                        break
        return found

    async with asyncio.timeout(WAIT_S):
        found = await asyncio.gather(*(reader() for _ in range(3)), *(writer(numbers[i::6]) for i in range(6)))
    await tail.close()
    for seen in found[:3]:
        assert sorted(seen) == [n for n in numbers if n not in failing]
    assert found[0] == found[1] == found[2]


async def test_entries_of_both_ways_of_writing_carry_their_transaction(store: Store) -> None:
    async with store.write() as session:
        session.add(project_event("p", "build", "b", "build.ready"))
    async with store.write_connection() as connection:
        row = {"project_id": "p", "kind": "pool", "subject": "x", "type": "pool.ready", "at": 1, "data": None}
        await connection.execute(insert(ProjectEvent), [row])
    seen, _ = await page(store, START)
    assert [event.position.tx > 0 for event in seen] == [True, True]
