"""The stream of events: nothing twice, nothing left out, nobody held up."""

import asyncio
import json
import random
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse
from sqlmodel import col, select

from fleet.errors import BadRequest
from fleet.events.journal import project_event
from fleet.events.model import Cursor, Event, EventFilter, Position
from fleet.events.read import since_about
from fleet.events.stream import follow
from fleet.events.tail import Tail
from fleet.projects.service import create_project
from fleet.region.books import Books
from fleet.store.engine import Store
from fleet.store.tables import Job, ProjectEvent, Server, ServerEvent
from fleet.times import now_ms
from tests.live_api import live
from tests.unit.api_kit import Api

WAIT_S = 30


async def write(store: Store, project: str, number: int) -> None:
    """A build event, numbered."""
    async with store.write() as session:
        session.add(project_event(project, "build", f"b{number}", "build.ready", {"n": number}))


async def read(store: Store, tail: Tail, project: str, after: Cursor | None, count: int) -> list[tuple[Event, Cursor]]:
    """The next `count` events."""
    found: list[tuple[Event, Cursor]] = []
    async with asyncio.timeout(WAIT_S), aclosing(follow(store, tail, project, after, WAIT_S)) as coming:
        async for event, cursor in coming:
            if event is not None:
                found.append((event, cursor))
            if len(found) == count:
                break
    return found


async def test_readers_from_anywhere_get_each_event_once(stores: list[Store]) -> None:
    writer, reader, _ = stores
    tail = Tail(reader)
    chance = random.Random(7)
    total = 50
    start = Cursor(Position(0, 0), Position(0, 0))

    async def produce() -> None:
        for number in range(total):
            await write(writer, "p", number)
            await write(writer, "stranger", number)
            if chance.random() < 0.3:
                await asyncio.sleep(0)

    async def resuming() -> list[int]:
        """Reads a few, breaks off, and goes on from where it was."""
        numbers: list[int] = []
        cursor = start
        while len(numbers) < total:
            page = await read(reader, tail, "p", cursor, min(chance.randint(1, 30), total - len(numbers)))
            numbers += [event.data["n"] for event, _ in page]
            cursor = page[-1][1]
        return numbers

    *found, _ = await asyncio.gather(*(resuming() for _ in range(4)), produce())
    await tail.close()
    assert found == [list(range(total))] * 4


async def test_a_stream_without_position_begins_now(stores: list[Store]) -> None:
    writer, reader, _ = stores
    tail = Tail(reader)
    await write(writer, "p", 1)
    async with asyncio.timeout(WAIT_S), aclosing(follow(reader, tail, "p", None, WAIT_S)) as coming:
        nothing, begin = await anext(coming)
        await write(writer, "p", 2)
        event, after = await anext(coming)
    await tail.close()
    assert nothing is None
    assert event is not None
    assert event.data == {"n": 2}
    assert after.project > begin.project


async def test_a_slow_reader_is_let_go_and_holds_up_nobody(stores: list[Store]) -> None:
    writer, reader, _ = stores
    tail = Tail(reader, queue=5)
    async with asyncio.timeout(WAIT_S), aclosing(follow(reader, tail, "p", None, WAIT_S)) as slow:
        await anext(slow)
        begun = asyncio.create_task(anext(slow))
        await write(writer, "p", 0)
        _, position = await begun  # it is live, and now reads nothing
        async with aclosing(follow(reader, tail, "p", position, WAIT_S)) as fast:
            await anext(fast)
            for number in range(1, 21):
                await write(writer, "p", number)
                event, _ = await anext(fast)
                assert event is not None
                assert event.data["n"] == number
        rest = [event async for event, _ in slow]
    resumed = await read(reader, tail, "p", position, 20)
    await tail.close()
    assert len(rest) <= 5  # what it had not been let go for
    assert [event.data["n"] for event, _ in resumed] == list(range(1, 21))


async def test_a_reader_of_a_long_backlog_is_not_slow(stores: list[Store]) -> None:
    writer, reader, _ = stores
    tail = Tail(reader, queue=5)
    for number in range(30):
        await write(writer, "p", number)
    start = Cursor(Position(0, 0), Position(0, 0))
    found: list[int] = []
    async with asyncio.timeout(WAIT_S), aclosing(follow(reader, tail, "p", start, WAIT_S)) as coming:
        async for event, _ in coming:
            if event is not None:
                found.append(event.data["n"])
            if len(found) == 10:  # while it catches up, more comes than its queue holds
                for number in range(30, 60):
                    await write(writer, "p", number)
                await asyncio.sleep(0.2)
            if len(found) == 60:
                break
    await tail.close()
    assert found == list(range(60))


def test_positions_are_read_back_and_nothing_else_is() -> None:
    cursor = Cursor(Position(3, 2**63 - 1), Position(0, 7))
    assert Cursor.parse(str(cursor)) == cursor
    for bad in ("", "1", "1-2.3", "1-2.3-4x", "-1-2.3-4", f"{2**63}-1.1-1", "\u0661-2.3-4"):
        with pytest.raises(BadRequest):
            Cursor.parse(bad)


def test_unknown_events_cannot_be_waited_for() -> None:
    for bad in ("servers", "server.", "server.running.now", "*", "Server"):
        with pytest.raises(BadRequest):
            EventFilter.of([bad])


def test_the_books_mark_what_happens_to_pool_servers_nobody_has() -> None:
    books = Books()
    row = Server(
        instance_id="i", project_id="p", region="r", name="n", status="launching", step="queued", build_id="b",
        version_tag="t", compute_size="small", is_pool_server=True, created_at=0, updated_at=0, launched_at=0, 
        step_at=0,
    )  # fmt: skip
    books.add(row, 1)
    books.step(row, 2, "running", {"size": "small"}, status="running")
    books.change(row, 3, pool_claimed_at=3)
    books.note(row, 3, "claimed", {"op": "o"})
    books.step(row, 4, "stopping")
    entries = next(values for _, values in books.take().statements if values and "type" in values[0])
    assert [(entry["type"], bool((entry["data"] or {}).get("pool"))) for entry in entries] == [
        ("queued", True), ("running", True), ("claimed", False), ("stopping", False),
    ]  # fmt: skip


# Through the API -----------------------------------------------------------------------------------------------------


async def listen(client: httpx.AsyncClient, count: int, begun: asyncio.Event, **kwargs: Any) -> list[ServerSentEvent]:
    """The first `count` events of a stream, without its `open`."""
    found: list[ServerSentEvent] = []
    async with asyncio.timeout(WAIT_S), aconnect_sse(client, "GET", "/api/v3/events", **kwargs) as source:
        assert source.response.status_code == 200, await source.response.aread()
        async for event in source.aiter_sse():
            if event.event == "open":
                begun.set()
            else:
                found.append(event)
            if len(found) == count:
                break
    return found


async def test_the_api_streams_the_projects_own_events_and_goes_on(api: Api) -> None:
    other = await create_project(api.store, "third")
    elsewhere = Store(api.settings.database)  # as another replica would write
    async with live(api.app, {"api-key": api.project.server_key}) as client:
        begun = asyncio.Event()
        first = asyncio.create_task(listen(client, 2, begun))
        await begun.wait()
        await write(elsewhere, other.project_id, 0)
        await write(elsewhere, api.project.project_id, 1)
        server = await api.running()
        seen = await first
        assert [event.event for event in seen] == ["build.ready", "server.accepted"]
        body = json.loads(seen[1].data)
        assert (body["subject"], body["kind"], body["region"]) == (server["instance_id"], "server", "us-east")
        rest = await listen(client, 1, asyncio.Event(), headers={"last-event-id": seen[1].id})
        assert rest[0].event == "server.running"
        also = await listen(client, 1, asyncio.Event(), params={"after": seen[0].id, "type": "server.running"})
        assert also[0].id == rest[0].id
        assert json.loads(also[0].data)["id"] == json.loads(rest[0].data)["id"]
    await elsewhere.close()


async def test_pool_servers_are_hidden_until_they_are_claimed(api: Api) -> None:
    now = now_ms()
    start = {"after": "0-0.0-0", "kind": "server"}
    async with api.store.write() as session:
        row = Server(
            instance_id="pool1", project_id=api.project.project_id, region="us-east", name="pool", status="running",
            step="running", build_id="b", version_tag="default", compute_size="small", is_pool_server=True,
            created_at=now, updated_at=now, launched_at=now, step_at=now,
        )  # fmt: skip
        session.add(row)
        await session.flush()
        for kind, data in (("running", {"pool": True}), ("claimed", {"op": "secret"})):
            session.add(
                ServerEvent(
                    instance_id="pool1",
                    project_id=row.project_id,
                    region="us-east",
                    generation=1,
                    at=now,
                    type=kind,
                    data=data,
                )
            )
    async with live(api.app, {"api-key": api.project.server_key}) as client:
        shown = await listen(client, 1, asyncio.Event(), params=start)
        everything = await listen(client, 2, asyncio.Event(), params=start | {"include_pool": "true"})
    assert [event.event for event in shown] == ["server.claimed"]
    assert "secret" not in shown[0].data
    assert [event.event for event in everything] == ["server.running", "server.claimed"]


async def test_a_stream_ends_in_time_and_says_where_to_go_on(api: Api) -> None:
    api.settings.events.max_stream_s = 0.2
    answer = await api.call("GET", "/api/v3/events")
    blocks = answer.text.strip().split("\n\n")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert blocks[0] == ": open"
    assert [block.split("\n")[0] for block in blocks[1:]] == ["event: open", "event: end"]
    assert json.loads(blocks[2].split("data: ")[1])["after"] == json.loads(blocks[1].split("data: ")[1])["after"]


async def test_bad_calls_of_the_stream(api: Api) -> None:
    for query in ("after=x", "kind=servers", "type=server.", "kind=server,nothing"):
        assert (await api.call("GET", f"/api/v3/events?{query}")).status_code == 400, query
    assert (await api.call("GET", "/api/v3/events", headers={"last-event-id": "nonsense"})).status_code == 400
    assert (await api.call("GET", "/api/v3/events", key=api.project.client_key)).status_code == 403
    assert (await api.call("GET", "/api/v3/events", key=None)).status_code == 401


async def test_too_many_streams_are_refused(api: Api) -> None:
    shares = api.app.state.context.shares
    places = [shares.take(api.project.project_id, "pro", "event_streams") for _ in range(50)]
    answer = await api.call("GET", "/api/v3/events")
    assert answer.headers["retry-after"] == "2"
    assert len(places) == shares.count(api.project.project_id, "event_streams")
    assert (answer.status_code, answer.json()["error"]) == (429, "Too many streams")


async def test_a_position_from_before_what_is_kept_is_answered_with_410(api: Api) -> None:
    """Retention has deleted entries after it: the reader is told, so it never believes that it has seen all."""
    async with api.store.write() as session:
        session.add(Job(name="retention", state={"server": [0, 7], "project": [0, 3]}, updated_at=0))
    answer = await api.call("GET", "/api/v3/events?after=0-6.0-3")
    assert (answer.status_code, answer.json()["error"]) == (410, "Position too old")
    for kept in ("0-7.0-3", "0-0.0-0"):
        assert (await api.call("GET", f"/api/v3/events?timeout=0.1&after={kept}")).status_code == 200


async def test_the_place_of_a_time_lies_before_it_and_not_far(api: Api) -> None:
    """A first webhook begins near its own time, however long the journal is, and misses nothing from then on."""
    day = 86_400_000
    async with api.store.write() as session:
        for number in range(50):
            session.add(project_event(api.project.project_id, "pool", "p", "pool.ready", at=number * day))
    async with api.store.read() as session:
        entries = (await session.exec(select(ProjectEvent).order_by(col(ProjectEvent.id)))).all()
        for number in (0, 1, 17, 49):
            place = (await since_about(session, number * day)).project
            later = [entry.at for entry in entries if (entry.id or 0) > place.id and entry.at < 60 * day]
            assert min(later) == number * day
        assert (await since_about(session, 0)).server.id == 0
