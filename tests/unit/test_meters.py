"""The export to Stripe, against the shapes that its API answers with, on a server of the test's own."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fleet.billing.ledger import aggregate
from fleet.billing.meters import SETTLE_MS, MeterEvent, StripeMeters, export, export_to_stripe, read_customers
from fleet.billing.prices import PRICES_FILE, PriceBook
from fleet.billing.service import UsageService
from fleet.billing.statement import month_begin, month_end
from fleet.catalog import load_catalog
from fleet.errors import FleetError, Unavailable
from fleet.jobs import Lease, run_once
from fleet.projects.service import create_project
from fleet.settings import FleetSettings, StripeSettings
from fleet.simulate.life import Life
from fleet.store.engine import Store
from tests.unit.api_kit import make_schema

HOUR_MS = 3_600_000
START = month_begin(1_770_000_000_000)  # February 2026


class Stripe:
    """Answers as the public reference shows: https://docs.stripe.com/api/billing/meter-event/create."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []
        self.auth: list[str] = []
        self.counted: dict[str, int] = {}
        self.fail: list[tuple[int, dict[str, Any]]] = []
        self.lose_answers = False

    async def create(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.seen.append(form)
        self.auth.append(request.headers["authorization"])
        if self.fail:
            status, error = self.fail.pop(0)
            return web.json_response({"error": error}, status=status)
        if form["identifier"] in self.counted:
            text = f"An event already exists with identifier {form['identifier']}."
            return web.json_response({"error": {"message": text, "type": "invalid_request_error"}}, status=400)
        self.counted[form["identifier"]] = int(form["payload[value]"])
        if self.lose_answers:
            return web.json_response({"error": {"type": "api_error"}}, status=500)
        payload = {"value": form["payload[value]"], "stripe_customer_id": form["payload[stripe_customer_id]"]}
        return web.json_response(
            {
                "object": "billing.meter_event",
                "created": int(form["timestamp"]) + 1,
                "event_name": form["event_name"],
                "identifier": form["identifier"],
                "livemode": False,
                "payload": payload,
                "timestamp": int(form["timestamp"]),
            }
        )


class Shop:
    """A project that runs, and the export of what it costs."""

    def __init__(self, store: Store, project_id: str, life: Life, stripe: Stripe, settings: StripeSettings) -> None:
        self.store = store
        self.project_id = project_id
        self.life = life
        self.stripe = stripe
        self.settings = settings
        self.usage = UsageService(store, PriceBook(PRICES_FILE))

    async def account(self) -> None:
        async def work(lease: Lease) -> None:
            await aggregate(self.store, lease)

        await self.life.commit()
        assert await run_once(self.store, "usage", work)

    async def send(self, now: int, customers: dict[str, str] | None = None) -> None:
        import httpx

        async def work(lease: Lease) -> None:
            async with httpx.AsyncClient(base_url=self.settings.url, trust_env=False) as http:
                meters = StripeMeters(http, "rk_test_x", "fleet_usage")
                await export(self.store, self.usage, meters, customers or {self.project_id: "cus_1"}, lease, now)

        await run_once(self.store, "meters", work)


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    stripe = Stripe()
    app = web.Application()
    app.router.add_post("/v1/billing/meter_events", stripe.create)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    make_schema(tmp_path / "fleet.db")
    store = Store(f"sqlite+aiosqlite:///{tmp_path}/fleet.db")
    project_id = (await create_project(store, "p")).project_id
    life = Life(store, FleetSettings(home=tmp_path), load_catalog(), project_id)
    await life.manager_starts("us-east")
    settings = StripeSettings(url=f"http://127.0.0.1:{runner.addresses[0][1]}")
    yield Shop(store, project_id, life, stripe, settings)
    await life.close()
    await store.close()
    await runner.cleanup()


def at(hours: float) -> int:
    return START + int(hours * HOUR_MS)


async def test_each_hour_is_sent_once_and_the_sum_is_the_bill(shop: Shop) -> None:
    name = shop.life.starts("us-east", "small", at(0))
    shop.life.is_ready(name, at(0.25))
    await shop.account()
    for hour in (1, 2, 2, 3, 3.5, 6):
        await shop.send(at(hour) + SETTLE_MS)
    shop.life.ends(name, at(6.5), gone=True)
    await shop.account()
    await shop.send(at(9) + SETTLE_MS)
    bill = await shop.usage.month(shop.project_id, START, at(20))
    assert sum(shop.stripe.counted.values()) == bill.amount() == 62_500
    assert list(shop.stripe.counted.values()) == [7_500, 10_000, 10_000, 10_000, 10_000, 10_000, 5_000]
    sent = shop.stripe.seen[0]
    assert sent == {
        "event_name": "fleet_usage",
        "payload[stripe_customer_id]": "cus_1",
        "payload[value]": "7500",
        "identifier": f"fleet-{shop.project_id}-{START // HOUR_MS}",
        "timestamp": str(at(1) // 1000 - 1),
    }
    assert set(shop.stripe.auth) == {"Bearer rk_test_x"}


async def test_answers_that_are_lost_count_nothing_twice(shop: Shop) -> None:
    name = shop.life.starts("us-east", "small", at(0))
    shop.life.is_ready(name, at(0))
    await shop.life.commit()
    shop.stripe.lose_answers = True
    with pytest.raises(Unavailable):
        await shop.send(at(1) + SETTLE_MS)
    shop.stripe.lose_answers = False
    await shop.send(at(3) + SETTLE_MS)
    assert list(shop.stripe.counted.values()) == [10_000] * 3
    assert len(shop.stripe.seen) == 4


async def test_what_the_journal_tells_late_is_made_good_by_the_next_hour(shop: Shop) -> None:
    name = shop.life.starts("us-east", "small", at(0))
    shop.life.is_ready(name, at(0))
    await shop.life.commit()
    await shop.send(at(2) + SETTLE_MS)  # it is held to run still
    shop.life.ends(name, at(1.5), gone=True)  # its node was out of reach, and tells now
    other = shop.life.starts("us-east", "small", at(2))
    shop.life.is_ready(other, at(2))
    await shop.life.commit()
    await shop.send(at(4) + SETTLE_MS)
    bill = await shop.usage.statement(shop.project_id, START, at(4), "hour", at(4))
    assert sum(shop.stripe.counted.values()) == bill.amount()


async def test_a_new_month_begins_at_nothing(shop: Shop) -> None:
    end = month_end(START)
    name = shop.life.starts("us-east", "small", end - 2 * HOUR_MS)
    shop.life.is_ready(name, end - 2 * HOUR_MS)
    await shop.life.commit()
    for hour in (-1, 0, 1):
        await shop.send(end + hour * HOUR_MS + SETTLE_MS)
    assert list(shop.stripe.counted.values()) == [10_000] * 3


async def test_one_projects_trouble_stops_no_other(shop: Shop) -> None:
    other = (await create_project(shop.store, "q")).project_id
    first = min(shop.project_id, other)
    for project_id in (shop.project_id, other):
        life = Life(shop.store, FleetSettings(), load_catalog(), project_id)
        await life.manager_starts("eu-west")
        life.is_ready(life.starts("eu-west", "small", at(0)), at(0))
        await life.close()
    shop.stripe.fail = [(400, {"message": "No such customer: 'cus_bad'", "type": "invalid_request_error"})]
    with pytest.raises(Unavailable, match="No such customer"):
        await shop.send(at(1) + SETTLE_MS, {shop.project_id: "cus_1", other: "cus_2"})
    assert [first in identifier for identifier in shop.stripe.counted] == [False]
    await shop.send(at(1) + SETTLE_MS, {shop.project_id: "cus_1", other: "cus_2"})
    assert len(shop.stripe.counted) == 2


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, Unavailable), (500, Unavailable), (409, Unavailable), (401, FleetError), (400, FleetError)],
)
async def test_what_stripe_answers_and_what_follows(shop: Shop, status: int, kind: type[Exception]) -> None:
    import httpx

    shop.stripe.fail = [(status, {"message": "Something about it.", "type": "invalid_request_error"})]
    async with httpx.AsyncClient(base_url=shop.settings.url, trust_env=False) as http:
        with pytest.raises(kind) as caught:
            await StripeMeters(http, "rk_test_x", "fleet_usage").send(MeterEvent("cus_1", 1, "i", 1))
    assert "rk_test" not in str(caught.value)
    assert isinstance(caught.value, Unavailable) == (kind is Unavailable)


async def test_it_is_off_unless_both_files_are_named(shop: Shop, tmp_path: Path) -> None:
    assert FleetSettings().stripe.key_file is None
    customers = tmp_path / "customers.yaml"
    customers.write_text(f"{shop.project_id}: cus_9\n")
    assert read_customers(customers) == {shop.project_id: "cus_9"}

    async def work(lease: Lease) -> None:
        await export_to_stripe(shop.store, shop.usage, shop.settings, lease)

    await run_once(shop.store, "meters", work)
    assert shop.stripe.seen == []
