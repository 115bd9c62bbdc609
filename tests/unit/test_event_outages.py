"""Readers and senders of events in bad moments: what goes wrong for one stops no other, and nothing is left out."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlmodel import select

from fleet.events import dispatch, feed, tail
from fleet.events.dispatch import Dispatcher
from fleet.events.journal import project_event
from fleet.events.stream import follow
from fleet.events.tail import Tail
from fleet.jobs import run_once
from fleet.store.engine import Store
from fleet.store.tables import WebhookDelivery
from tests.receiver import receiver
from tests.unit.api_kit import Api
from tests.unit.test_jobs import steal

WAIT_S = 20


async def happen(store: Store, number: int, project: str = "p") -> None:
    async with store.write() as session:
        session.add(project_event(project, "build", f"b{number}", "build.ready", {"n": number}))


def away(*_: object, **__: object) -> Any:
    raise OperationalError("SELECT 1", None, Exception("database is locked"))


# Readers -------------------------------------------------------------------------------------------------------------


async def test_a_reader_that_goes_away_while_it_joins_takes_no_other_with_it(stores: list[Store]) -> None:
    """Whoever asked in the same moment is live, and hears what comes."""
    writer, reader, _ = stores
    shared = Tail(reader)
    gone, stays = shared.subscribe("p"), shared.subscribe("p")
    gone.live_from.cancel()  # its reader was cancelled in this turn of the loop; `leave` runs in a later one
    async with asyncio.timeout(WAIT_S):
        await asyncio.shield(stays.live_from)
        await happen(writer, 1)
        events = await stays.take(asyncio.get_running_loop().time() + WAIT_S)
    shared.leave(gone)
    shared.leave(stays)
    await shared.close()
    assert [event.data["n"] for event in events] == [1]


@pytest.mark.parametrize("failing", ["horizon", "read_page", "changed"])
async def test_readers_miss_nothing_over_an_outage(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Whatever cannot be done for a while, reading goes on where it was."""
    monkeypatch.setattr(tail, "RETRY_S", 0.05)
    monkeypatch.setattr(tail, "_LOOK_S", 0.1)
    writer, reader, _ = stores
    shared = Tail(reader)
    async with asyncio.timeout(WAIT_S), aclosing(follow(reader, shared, "p", None, WAIT_S)) as coming:
        await anext(coming)
        await happen(writer, 1)
        first, _ = await anext(coming)
        with monkeypatch.context() as broken:
            if failing == "changed":
                broken.setattr(reader, "changed", away)
            else:
                broken.setattr(tail, failing, away)
            for number in (2, 3):
                await happen(writer, number)
                await asyncio.sleep(0.15)
        rest = [(await anext(coming))[0] for _ in range(2)]
    await shared.close()
    assert [event and event.data["n"] for event in (first, *rest)] == [1, 2, 3]


async def test_a_reader_whose_place_is_never_given_ends_in_time(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream ends when it said it would, also while the database is away from its beginning on."""
    monkeypatch.setattr(tail, "horizon", away)
    shared = Tail(stores[1])
    async with asyncio.timeout(WAIT_S), aclosing(follow(stores[1], shared, "p", None, 0.1)) as coming:
        with pytest.raises(TimeoutError):
            await anext(coming)
    await shared.close()


async def test_the_next_reader_is_served_after_all_have_left(stores: list[Store]) -> None:
    writer, reader, _ = stores
    shared = Tail(reader)
    for number in range(3):
        async with asyncio.timeout(WAIT_S), aclosing(follow(reader, shared, "p", None, WAIT_S)) as coming:
            await anext(coming)
            await happen(writer, number)
            event, _ = await anext(coming)
            assert event is not None
            assert event.data == {"n": number}
        await asyncio.sleep(0.1)
    await shared.close()


# Senders -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def hooks(api: Api) -> Api:
    allowed = {"allow_http": True, "allowed_networks": ["127.0.0.0/8"], "retry_first_s": 0.05, "timeout_s": 5}
    for name, value in allowed.items():
        setattr(api.settings.webhooks, name, value)
    return api


def dispatcher_of(api: Api, store: Store) -> Dispatcher:
    from fleet.sealing import Sealer

    return Dispatcher(store, Sealer(api.settings.home, "webhook"), api.settings.webhooks)


@asynccontextmanager
async def second_store(api: Api) -> AsyncIterator[Store]:
    store = Store(api.settings.database)
    yield store
    await store.close()


async def make(api: Api, url: str, key: str = "") -> str:
    answer = await api.call("POST", "/api/v3/webhooks", key=key, json={"url": url, "events": None})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def states(api: Api) -> Counter[str]:
    async with api.store.read() as session:
        return Counter((await session.exec(select(WebhookDelivery.state))).all())


async def until_delivered(api: Api, count: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while (await states(api))["delivered"] < count:
            await api.store.changed(1.0)


async def test_an_outcome_that_cannot_be_written_is_written_later_and_not_sent_again(
    hooks: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the round has ended meanwhile, as it does in a long outage."""
    monkeypatch.setattr(dispatch, "WRITE_AGAIN_S", 0.1)
    async with receiver() as mine, second_store(hooks) as store:
        await make(hooks, mine.url)
        await happen(hooks.store, 1, hooks.project.project_id)
        sender = dispatcher_of(hooks, store)
        written = asyncio.Event()
        with monkeypatch.context() as broken:
            plain = store.write

            def write() -> Any:
                if mine.got and not written.is_set():
                    away()
                return plain()

            broken.setattr(store, "write", write)
            task = asyncio.create_task(run_once(store, dispatch.JOB, sender.work))
            async with asyncio.timeout(WAIT_S):
                await mine.has(1)
                await asyncio.sleep(0.5)
                await steal(hooks.store, dispatch.JOB)
                written.set()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        async with hooks.store.write() as session:
            from sqlalchemy import update
            from sqlmodel import col

            from fleet.store.tables import Job

            await session.exec(update(Job).where(col(Job.name) == dispatch.JOB).values(owner=None, lease_until=None))
        again = asyncio.create_task(run_once(store, dispatch.JOB, sender.work))
        await until_delivered(hooks, 1)
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
        assert len(mine.got) == 1


async def test_a_delivery_that_cannot_be_sent_by_our_own_fault_stops_no_other(
    hooks: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiver() as mine, receiver() as others, second_store(hooks) as store:
        bad = await make(hooks, mine.url)
        await make(hooks, others.url, key=hooks.other.server_key)
        plain = dispatch.message

        def message(secret: str, event_id: str, payload: dict[str, Any], now: int) -> Any:
            if payload["subject"] == "b1":
                raise KeyError("a fault of ours")
            return plain(secret, event_id, payload, now)

        monkeypatch.setattr(dispatch, "message", message)
        task = asyncio.create_task(run_once(store, dispatch.JOB, dispatcher_of(hooks, store).work))
        await happen(hooks.store, 1, hooks.project.project_id)
        await happen(hooks.store, 2, hooks.other.project_id)
        await others.has(1)
        async with asyncio.timeout(WAIT_S):
            while True:
                told = (await hooks.call("GET", f"/api/v3/webhooks/{bad}/deliveries")).json()["deliveries"]
                if told and told[0]["attempts"] >= 1:
                    break
                await hooks.store.changed(1.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert told[0]["last_error"] == "The fleet could not send it."


async def test_what_cannot_be_queued_for_one_webhook_is_queued_for_the_others(
    hooks: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiver() as mine, receiver() as others, second_store(hooks) as store:
        bad = await make(hooks, mine.url)
        await make(hooks, others.url, key=hooks.other.server_key)
        plain = feed._queue

        async def queue(store: Store, session: Any, webhook_id: str, rows: list[dict[str, Any]]) -> None:
            await plain(store, session, webhook_id, rows)
            if webhook_id == bad:
                raise ValueError("a row that cannot be")

        monkeypatch.setattr(feed, "_queue", queue)
        task = asyncio.create_task(run_once(store, dispatch.JOB, dispatcher_of(hooks, store).work))
        await happen(hooks.store, 1, hooks.project.project_id)
        await happen(hooks.store, 2, hooks.other.project_id)
        await others.has(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert mine.got == []


async def test_a_stream_of_logs_that_breaks_says_so(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with an `error` to resume from, also if the database broke it, and is never just cut."""
    from serve_app.v3.log_stream import _events

    async def broken() -> AsyncIterator[Any]:
        yield []
        away()

    server = (await api.call("POST", "/api/v3/servers/start", json=api.start_body)).json()
    async with api.store.read() as session:
        from fleet.store.tables import Server

        row = await session.get(Server, server["instance_id"])
    assert row is not None
    sent = [part async for part in _events(row, [], broken())]
    assert sent[-1].startswith(b"event: error")
