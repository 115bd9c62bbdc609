"""A simulated month's statement, beside what an independent count of the same month says."""

import asyncio
import tempfile
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from rich.table import Table

from fleet.billing.ledger import JOB, aggregate
from fleet.billing.prices import PRICES_FILE, price_book
from fleet.billing.service import UsageService
from fleet.billing.statement import month_begin, month_end
from fleet.catalog import load_catalog
from fleet.jobs import Lease, run_once
from fleet.projects.service import create_project
from fleet.settings import FleetSettings
from fleet.simulate.life import Life, Ran
from fleet.simulate.month import DAY_MS, SIZES, Month, recount
from fleet.store.engine import Store
from fleet.store.migrate import upgrade

_FEBRUARY_2026 = 1_770_000_000_000


@dataclass(frozen=True, slots=True)
class Audit:
    """(region, size, kind) -> (milliseconds, money), of the statement and of the count."""

    happened: int
    told: dict[tuple[str, str, str], tuple[int, Decimal]]
    counted: dict[tuple[str, str, str], tuple[int, Decimal]]

    @property
    def agrees(self) -> bool:
        return self.told == self.counted


async def audit(seed: int, matches: int, entries: int, worlds: int) -> Audit:
    """Live the month on a database of its own, aggregated now and then."""
    with tempfile.TemporaryDirectory() as folder:
        return await _audit(Path(folder), seed, matches, entries, worlds)


async def _audit(folder: Path, seed: int, matches: int, entries: int, worlds: int) -> Audit:
    url = f"sqlite+aiosqlite:///{folder}/month.db"
    await asyncio.to_thread(upgrade, url)
    store = Store(url)

    async def work(lease: Lease) -> None:
        await aggregate(store, lease)

    async def account() -> None:
        await run_once(store, JOB, work)

    start, now = month_begin(_FEBRUARY_2026), month_end(_FEBRUARY_2026) + 2 * DAY_MS
    project_id = (await create_project(store, "simulated")).project_id
    life = Life(store, FleetSettings(home=folder), load_catalog(), project_id)
    happened = await Month(life, start, month_end(start), seed).play(matches, entries, worlds, account)
    prices = price_book(PRICES_FILE)
    statement = await UsageService(store, prices).month(project_id, start, now)
    told = {
        (line.region, line.size, line.kind): (line.ms, Decimal(line.amount) / 1_000_000)
        for period in statement.periods
        for line in period.lines
        if line.ms
    }
    running = [Ran(region, size, kind, since, now) for region, size, kind, since in life.running.values()]
    each = {size: Decimal(prices.now().per_hour("", size, "used", start)) / 1_000_000 for size in SIZES}
    counted = recount([*life.ran, *running], start, month_end(start), each)
    await life.close()
    await store.close()
    return Audit(happened, told, counted)


def as_table(found: Audit) -> Table:
    table = Table(title=f"{found.happened} happenings in a month", title_justify="left")
    for heading in ("region", "size", "kind"):
        table.add_column(heading)
    for heading in ("statement, s", "counted, s", "statement", "counted"):
        table.add_column(heading, justify="right")
    for key in sorted(found.told | found.counted):
        (ms, money), (other_ms, other) = found.told.get(key, (0, Decimal())), found.counted.get(key, (0, Decimal()))
        table.add_row(*key, f"{ms / 1000:.3f}", f"{other_ms / 1000:.3f}", f"{money:.6f}", f"{other:.6f}")
    return table
