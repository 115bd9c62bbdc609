"""Jobs: one replica at a time, taken over after a crash, never two effects."""

import asyncio

import pytest
from sqlalchemy import update
from sqlmodel import col

from fleet import jobs
from fleet.actors.health import TaskHealth
from fleet.actors.tasks import SupervisedTasks
from fleet.errors import Fenced
from fleet.jobs import Lease, position_of, run_leased, run_once
from fleet.store.engine import Store
from fleet.store.tables import Job

WAIT_S = 20


async def steal(store: Store, name: str) -> None:
    """As if the holder had been silent too long and another had come."""
    async with store.write() as session:
        await session.exec(update(Job).where(col(Job.name) == name).values(owner="another"))


async def test_replicas_never_do_a_job_together(stores: list[Store]) -> None:
    inside, most, rounds = 0, 0, 0

    async def work(lease: Lease) -> None:
        nonlocal inside, most, rounds
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside, rounds = inside - 1, rounds + 1
        async with stores[0].write() as session:
            await lease.save(session, lease.position + 1)
        if rounds >= 12:
            enough.set()

    enough = asyncio.Event()
    replicas = [asyncio.create_task(run_leased(store, "count", work, 0.01)) for store in stores]
    async with asyncio.timeout(WAIT_S):
        await enough.wait()
    for task in replicas:
        task.cancel()
    await asyncio.gather(*replicas, return_exceptions=True)
    job = await position_of(stores[0], "count")
    assert most == 1
    assert job is not None
    assert job.position == rounds
    assert job.owner is None  # given back


async def test_a_round_is_not_done_again_before_its_time(stores: list[Store]) -> None:
    async def work(lease: Lease) -> None:
        return None

    assert await run_once(stores[0], "hourly", work, 3600)
    assert not await run_once(stores[1], "hourly", work, 3600)
    assert await run_once(stores[1], "hourly", work, 0)


async def test_a_dead_replica_is_succeeded_when_its_lease_has_run_out(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stores[0].write() as session:
        session.add(Job(name="j", owner="dead", lease_until=jobs.now_ms() + 5_000, position=7, updated_at=0))
    found: list[int] = []

    async def work(lease: Lease) -> None:
        found.append(lease.position)

    assert not await run_once(stores[1], "j", work)
    now = jobs.now_ms() + 5_001
    monkeypatch.setattr(jobs, "now_ms", lambda: now)
    assert await run_once(stores[1], "j", work)
    assert found == [7]


async def test_who_has_lost_the_job_writes_nothing_more(stores: list[Store]) -> None:
    async def work(lease: Lease) -> None:
        await steal(stores[1], "j")
        async with stores[0].write() as session:
            session.add(Job(name="effect", updated_at=0))
            await session.flush()
            await lease.save(session, 5)

    with pytest.raises(Fenced):
        await run_once(stores[0], "j", work)
    assert await position_of(stores[0], "effect") is None
    job = await position_of(stores[0], "j")
    assert job is not None
    assert (job.owner, job.position) == ("another", 0)


async def test_work_ends_when_its_lease_is_lost(stores: list[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LEASE_MS", 60)
    began = asyncio.Event()

    async def work(lease: Lease) -> None:
        began.set()
        await asyncio.Event().wait()

    round_ = asyncio.create_task(run_once(stores[0], "long", work))
    async with asyncio.timeout(WAIT_S):
        await began.wait()
        await steal(stores[1], "long")
        with pytest.raises(Fenced):
            await round_


async def test_a_failed_round_is_tried_again_by_anyone(stores: list[Store]) -> None:
    tries = 0
    done = asyncio.Event()

    async def work(lease: Lease) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise RuntimeError("not yet")
        done.set()

    tasks = SupervisedTasks("jobs", health=TaskHealth())
    tasks.keep("j", lambda: run_leased(stores[0], "j", work, 3600), first_s=0.01)
    async with asyncio.timeout(WAIT_S):
        await done.wait()
    await tasks.close()
    assert tries == 4


async def test_a_round_that_never_ends_is_ended(stores: list[Store]) -> None:
    async def work(lease: Lease) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await run_once(stores[0], "stuck", work, limit_s=0.05)
    job = await position_of(stores[0], "stuck")
    assert job is not None
    assert job.owner is None
