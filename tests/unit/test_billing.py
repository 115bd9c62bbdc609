"""Bills equal what ran, to the millisecond, whatever restarts, crashes, claims and managers came in between."""

import asyncio
import tempfile
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import col, select

from fleet.billing.intervals import HOUR_MS, Facts, Interval, Run, hours, tell
from fleet.billing.ledger import aggregate, forget, usage_of
from fleet.billing.prices import MILLION as M
from fleet.billing.prices import PRICES_FILE, PriceBook, Prices, read_prices
from fleet.billing.service import UsageService
from fleet.billing.statement import DAY_MS, cost, forecast, make_statement, month_begin, month_end
from fleet.billing.usage import Cell, spread
from fleet.catalog import load_catalog
from fleet.errors import BadRequest
from fleet.jobs import run_once
from fleet.projects.service import create_project
from fleet.settings import FleetSettings
from fleet.simulate.life import Life, Ran
from fleet.simulate.month import Month, recount
from fleet.store.engine import Store
from fleet.store.tables import ServerEvent, UsageHour
from tests.unit.api_kit import make_schema

START = month_begin(1_770_000_000_000)  # February 2026
END = month_end(START)
PRICES = {"small": Decimal("0.01"), "medium": Decimal("0.02"), "dedicated-small": Decimal("0.045")}


async def account(store: Store) -> None:
    async def work(lease: Any) -> None:
        await aggregate(store, lease, batch=97)

    assert await run_once(store, "usage", work)


class Books:
    """A project on a database of its own, and what it does."""

    def __init__(self, folder: Path) -> None:
        make_schema(folder / "fleet.db")
        self.store = Store(f"sqlite+aiosqlite:///{folder}/fleet.db")
        self.settings = FleetSettings(home=folder)

    async def begin(self) -> Life:
        self.project_id = (await create_project(self.store, "p")).project_id
        self.life = Life(self.store, self.settings, load_catalog(), self.project_id)
        return self.life

    async def end(self) -> None:
        await self.life.close()
        await self.store.close()

    def truth(self, now: int) -> Counter[tuple[str, str, str]]:
        """Milliseconds by region, size and kind, with what runs up to now."""
        open_now = [Ran(r, s, k, since, max(since, now)) for r, s, k, since in self.life.running.values()]
        found: Counter[tuple[str, str, str]] = Counter()
        for one in [*self.life.ran, *open_now]:
            found[one.region, one.size, one.kind] += one.end - one.start
        return +found

    async def told(self, now: int) -> Counter[tuple[str, str, str]]:
        found: Counter[tuple[str, str, str]] = Counter()
        for cell, ms in (await usage_of(self.store, self.project_id, 0, 2**45, now)).items():
            found[cell.region, cell.size, cell.kind] += ms
        return +found


# A simulated month ----------------------------------------------------------------------------------------------------


async def test_a_simulated_months_statement_equals_an_independent_count(tmp_path: Path) -> None:
    books = Books(tmp_path)
    life = await books.begin()
    happened = await Month(life, START, END, seed=11).play(50, 40, 8, lambda: account(books.store))
    now = END + 2 * DAY_MS
    expected = recount(
        [*life.ran, *(Ran(r, s, k, since, now) for r, s, k, since in life.running.values())], START, END, PRICES
    )
    service = UsageService(books.store, PriceBook(PRICES_FILE))
    for _ in range(2):  # as far as it has been aggregated, then wholly
        statement = await service.month(books.project_id, START, now)
        [period] = statement.periods
        lines = {(line.region, line.size, line.kind): line for line in period.lines if line.ms}
        assert {key: line.ms for key, line in lines.items()} == {key: ms for key, (ms, _) in expected.items()}
        assert {key: Decimal(line.amount) / 10**6 for key, line in lines.items()} == {
            key: money for key, (_, money) in expected.items()
        }
        assert statement.amount() == statement.amount("used") + statement.amount("idle")
        daily = await service.statement(books.project_id, START, END, "day", now)
        hourly = await service.statement(books.project_id, START, END, "hour", now)
        assert daily.ms() == hourly.ms() == statement.ms()
        await account(books.store)
    assert happened > 400
    assert sum(ran.end - ran.start > DAY_MS for ran in life.ran) > 3, "worlds ran for days"
    assert {"used", "idle"} == {line.kind for line in period.lines}
    await check_against_the_raw_journal(books, now, statement.ms())
    await books.end()


async def check_against_the_raw_journal(books: Books, now: int, total: int) -> None:
    """The same seconds from the journal's rows by another way: +1 and -1 on a line of time, per server."""
    async with books.store.read() as session:
        rows = (
            await session.exec(select(ServerEvent).order_by(col(ServerEvent.instance_id), col(ServerEvent.id)))
        ).all()
    ms, up = 0, dict[str, int]()
    for row in rows:
        if row.type == "running":
            up[row.instance_id] = row.at
        elif row.type in ("stopped", "stopping", "queued") and row.instance_id in up:
            since = up.pop(row.instance_id)
            ms += max(0, min(max(row.at, START), END) - min(max(since, START), END))
    ms += sum(END - min(max(since, START), END) for since in up.values())
    assert now > END
    assert ms // 1000 == total // 1000
    assert ms == total


# Whatever happens -----------------------------------------------------------------------------------------------------

STEP = st.tuples(
    st.sampled_from(
        ["start", "entry", "ready", "claim", "crash", "lost", "restart", "stop", "exit", "manager", "account", "again"]
    ),
    st.integers(0, 5),  # which server
    st.integers(0, 3 * HOUR_MS),  # how much later
    st.integers(-50, 50),  # what the node's clock says beside
)


async def live(books: Books, steps: list[tuple[str, int, int, int]]) -> None:
    """Carry the steps out as far as they make sense, and compare after each account."""
    life, now = await books.begin(), START
    await life.manager_starts("us-east")
    booting: list[str] = []
    idle: set[str] = set()
    for what, which, later, skew in steps:
        now += later
        running = sorted(life.running)
        one = running[which % len(running)] if running else ""
        if what in ("start", "entry"):
            booting.append(life.starts("us-east", "small" if which % 2 else "medium", now, pool=what == "entry"))
            idle |= {booting[-1]} if what == "entry" else set()
        elif what == "ready" and booting:
            life.is_ready(booting.pop(which % len(booting)), now + skew)
        elif what == "claim" and (free := sorted(idle & set(running))):
            life.is_claimed(free[which % len(free)], now)
            idle.discard(free[which % len(free)])
        elif what in ("crash", "lost") and one:
            life.crashes(one, now + skew if what == "crash" else now, "crashed" if what == "crash" else "node_lost")
            booting.append(one)
        elif what == "restart" and one and one not in idle:
            life.restarts(one, now)
            booting.append(one)
        elif what in ("stop", "exit") and one:
            life.ends(one, now + skew, gone=what == "exit")
        elif what == "manager":
            await life.manager_starts("us-east")
        elif what in ("account", "again"):
            await life.commit()
            for _ in range(1 + (what == "again")):
                await account(books.store)
            assert await books.told(now + 60) == books.truth(now + 60)
    await life.commit()
    assert await books.told(now + 60) == books.truth(now + 60)
    await account(books.store)
    assert await books.told(now + 60) == books.truth(now + 60)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, max_size=40))
def test_usage_equals_the_running_intervals_whatever_happens(steps: list[tuple[str, int, int, int]]) -> None:
    async def run(folder: Path) -> None:
        books = Books(folder)
        await live(books, steps)
        await books.end()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


async def test_usage_can_be_computed_again_from_the_journal(tmp_path: Path) -> None:
    books = Books(tmp_path)
    await Month(await books.begin(), START, END, seed=3).play(10, 10, 2, lambda: account(books.store))
    before = await books.told(END)

    async def anew(lease: Any) -> None:
        await forget(books.store, lease)
        assert await books.told(END) == before  # all of it computed when asked
        await aggregate(books.store, lease)

    assert await run_once(books.store, "usage", anew)
    async with books.store.read() as session:
        assert (await session.exec(select(UsageHour))).first() is not None
    assert await books.told(END) == before
    await books.end()


# Pure parts -----------------------------------------------------------------------------------------------------------

FACTS = Facts("p", "us-east", "small", False)
TYPES = st.sampled_from(["running", "claimed", "queued", "stopping", "stopped", "restarting", "updated", "booting"])


@given(
    st.lists(st.tuples(TYPES, st.integers(0, 10**9)), max_size=30),
    st.booleans(),
    st.data(),
)
def test_a_story_told_in_parts_is_the_same_story(
    entries: list[tuple[str, int]], pool: bool, data: st.DataObject
) -> None:
    facts = FACTS._replace(pool=pool)
    rows = [
        ServerEvent(id=n, instance_id="i", project_id="p", region="r", generation=1, at=at, type=kind)
        for n, (kind, at) in enumerate(entries)
    ]
    cut = data.draw(st.integers(0, len(rows)))
    whole = tell(facts, rows)
    run, first = tell(facts, rows[:cut])
    run, second = tell(facts, rows[cut:], run)
    assert (run, first + second) == whole
    assert all(interval.start <= interval.end for interval in whole[1])


@given(st.integers(0, 10**10), st.integers(0, 10**9))
def test_hours_sum_up_to_the_interval(start: int, length: int) -> None:
    parts = list(hours(start, start + length))
    assert sum(ms for _, ms in parts) == length
    assert all(0 < ms <= HOUR_MS and hour % HOUR_MS == 0 for hour, ms in parts)


def test_a_pool_server_is_idle_until_its_claim_whatever_crashes_follow() -> None:
    facts = FACTS._replace(pool=True)
    story = [("queued", 0), ("running", 10), ("claimed", 30), ("restarting", 50), ("queued", 50), ("running", 60)]
    rows = [
        ServerEvent(instance_id="i", project_id="p", region="r", generation=1, at=at, type=kind) for kind, at in story
    ]
    run, ended = tell(facts, rows)
    assert [(interval.kind, interval.start, interval.end) for interval in ended] == [("idle", 10, 30), ("used", 30, 50)]
    assert run == Run(60, False, True)


@given(st.integers(0, 10**12), st.integers(0, 10**8))
def test_money_is_rounded_once_half_to_even(ms: int, price: int) -> None:
    exact = Decimal(ms) * price / HOUR_MS
    assert abs(Decimal(cost(ms, price)) - exact) <= Decimal("0.5")
    assert cost(HOUR_MS, price) == price


def test_half_a_millionth_goes_to_the_even_one() -> None:
    assert [cost(HOUR_MS // 2, price) for price in (1, 3, 5)] == [0, 2, 2]


def tariffs(*given: tuple[str, dict[str, Any]]) -> Prices:
    return Prices.model_validate({"currency": "EUR", "tariffs": [{"from": day, **values} for day, values in given]})


def test_a_new_tariff_holds_from_its_day_on() -> None:
    prices = tariffs(("2026-01-01", {"per_hour": {"small": 0.01}}), ("2026-02-15", {"per_hour": {"small": "0.02"}}))
    day = START + 14 * DAY_MS  # 15 February
    usage = spread([Interval(FACTS, "used", day - HOUR_MS, day + HOUR_MS)])
    [period] = make_statement("p", usage, prices, "month", START, END, END).periods
    assert [(line.price, line.ms, line.amount) for line in period.lines] == [
        (10_000, HOUR_MS, 10_000), (20_000, HOUR_MS, 20_000),
    ]  # fmt: skip
    assert prices.per_hour("us-east", "small", "used", 0) == 0


def test_prices_of_idle_servers_and_of_regions() -> None:
    prices = tariffs(
        (
            "2026-01-01",
            {"per_hour": {"small": 1, "micro": 2}, "idle_per_hour": {"small": 0.25}, "regions": {"sea": {"small": 3}}},
        )
    )
    cases = {("us-east", "small", "used"): 1, ("sea", "small", "used"): 3, ("us-east", "small", "idle"): 0.25,
             ("us-east", "micro", "idle"): 2, ("us-east", "unknown", "used"): 0}  # fmt: skip
    assert {key: prices.per_hour(*key, START) / 1e6 for key in cases} == cases


@pytest.mark.parametrize("price", [-1, "0.0000001", "x", float("nan")])
def test_what_is_no_price_is_refused(price: Any) -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        tariffs(("2026-01-01", {"per_hour": {"small": price}}))


def test_broken_prices_leave_those_before_in_force(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(PRICES_FILE.read_text())
    book = PriceBook(file)
    assert book.now() == read_prices(PRICES_FILE)
    file.write_text("currency: [")
    assert book.now() == read_prices(PRICES_FILE)
    file.write_text("currency: EUR\ntariffs: []")
    assert book.now().currency == "EUR"


def test_a_size_without_a_price_any_more_keeps_its_last_one(tmp_path: Path) -> None:
    """An edit never makes a running server free of charge, also not one of before a restart."""
    file, known = tmp_path / "prices.yaml", tmp_path / "prices.json"
    tariff = "currency: EUR\ntariffs: [{from: 2025-01-01, per_hour: {micro: 1%s}}]"
    file.write_text(tariff % ", small: 2}, idle_per_hour: {small: 0.5}, regions: {sea: {small: 3}")
    PriceBook(file, known=known).now()
    file.write_text(tariff % "")
    prices = PriceBook(file, known=known).now()
    asked = [("us-east", "used"), ("us-east", "idle"), ("sea", "used")]
    assert [prices.per_hour(region, "small", kind, START) for region, kind in asked] == [2 * M, M // 2, 3 * M]
    file.write_text(tariff % ", small: 0")
    assert PriceBook(file, known=known).now().per_hour("us-east", "small", "used", START) == 0


def test_every_size_has_a_price() -> None:
    prices = read_prices(PRICES_FILE)
    assert all(prices.per_hour("us-east", size, "used", START) > 0 for size in load_catalog().sizes)


def test_the_forecast_goes_on_as_the_last_week_went() -> None:
    prices = tariffs(("2026-01-01", {"per_hour": {"small": 1}}))
    now = START + 10 * DAY_MS
    steady = spread([Interval(FACTS, "used", START - 8 * DAY_MS, now)])
    assert forecast(steady, prices, START, END, now) == 28 * 24 * 10**6
    fresh = spread([Interval(FACTS, "used", now - 2 * HOUR_MS, now)])
    assert forecast(fresh, prices, START, END, now) == (2 + 18 * 24) * 10**6
    ended = spread([Interval(FACTS, "used", START, START + 5 * HOUR_MS)])
    assert forecast(ended, prices, START, END, now) == 5 * 10**6
    assert forecast(Counter(), prices, START, END, now) == 0
    assert (
        forecast(Counter({Cell(END - HOUR_MS, "us-east", "small", "used"): HOUR_MS}), prices, START, END, END) == 10**6
    )


def test_months_begin_and_end_in_utc() -> None:
    assert (END - START) == 28 * DAY_MS
    assert month_begin(END) == END
    december = month_begin(1_797_000_000_000)
    assert (month_end(december) - december) == 31 * DAY_MS


async def test_periods_that_make_no_sense_or_are_too_long(tmp_path: Path) -> None:
    make_schema(tmp_path / "fleet.db")
    store = Store(f"sqlite+aiosqlite:///{tmp_path}/fleet.db")
    service = UsageService(store, PriceBook(PRICES_FILE))
    for start, end in ((END, START), (START, START), (START, START + 200 * DAY_MS)):
        with pytest.raises(BadRequest):
            await service.statement("p", start, end, "hour", END)
    assert (await service.statement("p", START, END, "hour", END)).periods == ()
    await store.close()


def test_the_command_line_prints_a_statement_and_an_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from fleet.cli import app
    from fleet.settings import get_settings

    books = Books(tmp_path)

    async def live_a_while() -> None:
        life = await books.begin()
        await life.manager_starts("us-east")
        life.is_ready(life.starts("us-east", "small", START), START)
        await life.close()
        await books.store.close()

    asyncio.run(live_a_while())
    monkeypatch.setenv("FLEET_HOME", str(tmp_path))
    get_settings.cache_clear()
    try:
        told = CliRunner().invoke(app, ["usage", "p", "--month", "2026-02", "--json"])
        missing = CliRunner().invoke(app, ["usage", "nobody"])
    finally:
        get_settings.cache_clear()
    assert told.exit_code == 0, told.output
    assert '"amount": "6.720000"' in told.output  # 28 days of a small server
    assert missing.exit_code == 2
    audited = CliRunner().invoke(app, ["simulate", "month", "--matches", "5", "--entries", "5", "--worlds", "1"])
    assert audited.exit_code == 0, audited.output
