"""On PostgreSQL too, usage equals what ran, and webhooks are fed once."""

from typing import Any

from sqlmodel import select

from fleet.billing.ledger import aggregate, usage_of
from fleet.catalog import load_catalog
from fleet.events import dispatch
from fleet.events.feed import feed
from fleet.events.journal import project_event
from fleet.jobs import Lease, run_once
from fleet.projects.service import create_project
from fleet.settings import FleetSettings
from fleet.simulate.life import Life
from fleet.simulate.month import Month
from fleet.store.engine import Store
from fleet.store.tables import Webhook, WebhookDelivery
from fleet.times import now_ms

START, END = 1_769_904_000_000, 1_772_323_200_000  # February 2026


async def test_usage_equals_what_ran(postgres_url: str) -> None:
    store = Store(postgres_url)
    project_id = (await create_project(store, "p")).project_id
    life = Life(store, FleetSettings(), load_catalog(), project_id)

    async def work(lease: Lease) -> None:
        await aggregate(store, lease, batch=50)

    async def account() -> None:
        assert await run_once(store, "usage", work)

    await Month(life, START, END, seed=2).play(15, 15, 3, account)
    now = END + 86_400_000
    running = [(kind, since, now) for _, _, kind, since in life.running.values()]
    expected: dict[str, int] = {"used": 0, "idle": 0}
    for kind, start, end in [*((ran.kind, ran.start, ran.end) for ran in life.ran), *running]:
        expected[kind] += end - start
    for _ in range(2):
        told: dict[str, int] = {"used": 0, "idle": 0}
        for cell, ms in (await usage_of(store, project_id, 0, 2**45, now)).items():
            told[cell.kind] += ms
        assert told == expected
        await account()
    await life.close()
    await store.close()


async def test_webhooks_are_fed_each_event_once(postgres_url: str) -> None:
    store = Store(postgres_url)
    project_id = (await create_project(store, "p")).project_id
    async with store.write() as session:
        session.add(Webhook(id="w", project_id=project_id, url="https://x", secret="s", created_at=1, updated_at=1))

    async def work(lease: Lease) -> None:
        while await feed(store, lease):
            pass

    for number in range(5):
        async with store.write() as session:
            session.add(project_event(project_id, "build", f"b{number}", "build.ready", at=now_ms()))
        await run_once(store, dispatch.JOB, work)
        await run_once(store, dispatch.JOB, work)
    async with store.read() as session:
        rows: Any = (await session.exec(select(WebhookDelivery).order_by("id"))).all()
    assert [row.payload["subject"] for row in rows] == [f"b{number}" for number in range(5)]
    await store.close()
