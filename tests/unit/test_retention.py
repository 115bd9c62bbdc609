"""What is too old goes, in portions; what is live, billed later or young stays, and no bill changes."""

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update
from sqlmodel import col

from fleet.billing import ledger
from fleet.billing.intervals import HOUR_MS
from fleet.errors import Conflict
from fleet.events.kept import PositionTooOld, check_kept
from fleet.events.model import Cursor, Position
from fleet.jobs import run_once
from fleet.retention.rules import DAY_MS
from fleet.retention.sweep import JOB, Retention
from fleet.settings import RetentionSettings
from fleet.store import space
from fleet.store.engine import Store
from fleet.store.lobby_tables import Match, PlayerRating
from fleet.store.tables import (
    Build,
    BuildLog,
    Job,
    MatchStart,
    ProjectEvent,
    Server,
    ServerEvent,
    UsageHour,
    Webhook,
    WebhookDelivery,
)
from tests import history
from tests.history import LIFE, PROJECT, REGION
from tests.unit.api_kit import make_schema

NOW = 1_800_000_000_000
AT_ONCE = RetentionSettings(pause_s=0, rows_at_once=100)
LATER = NOW + 31 * DAY_MS
SERVERS = 60


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A history of an hour, ending an hour before `NOW`."""
    make_schema(tmp_path / "fleet.db")
    space.prepare(tmp_path / "fleet.db")
    store = Store(f"sqlite+aiosqlite:///{tmp_path}/fleet.db")
    await history.fill(store, SERVERS, NOW)
    yield store
    await store.close()


async def bill(store: Store) -> None:
    assert await run_once(store, ledger.JOB, lambda lease: ledger.aggregate(store, lease))


async def forget(store: Store, now: int, rules: RetentionSettings = AT_ONCE) -> None:
    assert await run_once(store, JOB, Retention(store, rules, lambda: now).work)


async def count(store: Store, table: Any) -> int:
    async with store.read() as session:
        connection = await session.connection()
        return (await connection.execute(select(func.count()).select_from(table))).scalar_one()


async def usage(store: Store) -> dict[Any, int]:
    """By region, size and kind."""
    found: dict[Any, int] = {}
    for cell, ms in (await ledger.usage_of(store, PROJECT, 0, 2**45, LATER)).items():
        found[cell.region, cell.size, cell.kind] = found.get((cell.region, cell.size, cell.kind), 0) + ms
    return found


async def set_rows(store: Store, table: Any, where: Any, **values: Any) -> None:
    async with store.write_connection() as connection:
        await connection.execute(update(table).where(where).values(**values))


async def test_what_is_too_old_goes_and_the_bill_stays(store: Store) -> None:
    await bill(store)
    before = await usage(store)
    await forget(store, NOW)
    assert await count(store, Server) == SERVERS  # nothing is a month old yet
    await forget(store, LATER)
    for table in (Server, ServerEvent, MatchStart, Match, ProjectEvent):
        assert await count(store, table) == 0, table
    assert await usage(store) == before
    assert sum(before.values()) == SERVERS * (900_000 - 2_000)


async def test_nothing_goes_that_the_ledger_has_not_read(store: Store) -> None:
    """Else its time would be on no bill."""
    await forget(store, LATER)
    assert await count(store, Server) == SERVERS
    assert await count(store, ServerEvent) == SERVERS * len(LIFE)
    await bill(store)
    await forget(store, LATER)
    assert await count(store, Server) == 0


async def test_live_servers_and_what_belongs_to_them_stay(store: Store) -> None:
    await set_rows(store, Server, col(Server.instance_id) == "s-7", step="running", status="running", stopped_at=None)
    await set_rows(store, Match, col(Match.match_id) == "m-7", status="active")
    await bill(store)
    await forget(store, LATER)
    async with store.read() as session:
        connection = await session.connection()
        assert (await connection.execute(select(col(Server.instance_id)))).scalars().all() == ["s-7"]
        assert (await connection.execute(select(col(MatchStart.match_id)))).scalars().all() == ["m-7"]
        assert (await connection.execute(select(col(Match.match_id)))).scalars().all() == ["m-7"]
        events = select(col(ServerEvent.instance_id)).distinct()
        assert (await connection.execute(events)).scalars().all() == ["s-7"]


async def test_what_an_operator_keeps_for_ever_stays(store: Store) -> None:
    await bill(store)
    for_ever = {name: 0.0 for name in RetentionSettings.model_fields if name.endswith("_days")}
    await forget(store, NOW + 5000 * DAY_MS, RetentionSettings(pause_s=0, **for_ever))  # pyright: ignore
    assert await count(store, Server) == SERVERS
    assert await count(store, ProjectEvent) == SERVERS


async def test_old_hours_become_days_with_the_same_sum(store: Store) -> None:
    await bill(store)
    before, hours = await usage(store), await count(store, UsageHour)
    async with store.write() as session:
        for hour in range(5):
            session.add(UsageHour(
                project_id=PROJECT, hour=(NOW // DAY_MS - 3) * DAY_MS + hour * HOUR_MS, region=REGION,
                compute_size="small", kind="used", ms=1000 + hour,
            ))  # fmt: skip
    before[REGION, "small", "used"] += 5 * 1000 + 10
    assert await usage(store) == before
    await forget(store, NOW + 101 * DAY_MS)
    assert await usage(store) == before
    async with store.read() as session:
        connection = await session.connection()
        left = (await connection.execute(select(col(UsageHour.hour)))).scalars().all()
    assert all(hour % DAY_MS == 0 for hour in left)
    assert len(left) < hours + 5


async def test_logs_deliveries_and_ratings_go_by_their_own_age(store: Store) -> None:
    async with store.write() as session:
        for name, status in (("gone", "deleted"), ("good", "ready")):
            session.add(Build(
                build_id=name, project_id=PROJECT, name=name, version=1, status=status, build_type="zip",
                created_at=NOW, updated_at=NOW,
            ))  # fmt: skip
        session.add(Webhook(id="w", project_id=PROJECT, url="u", secret="s", created_at=NOW, updated_at=NOW))
        await session.flush()
        for name in ("gone", "good"):
            session.add(BuildLog(build_id=name, at=NOW, level="info", message="m"))
        for state in ("delivered", "dead", "pending"):
            session.add(WebhookDelivery(
                webhook_id="w", project_id=PROJECT, event_id=state, type="t", state=state, next_at=NOW,
                created_at=NOW, updated_at=NOW,
            ))  # fmt: skip
        session.add(PlayerRating(
            project_id=PROJECT, config="c", mode="m", player_id="p", mu=1, sigma=1, updated_at=NOW,
        ))  # fmt: skip
    await forget(store, NOW + 4 * DAY_MS)
    assert (await count(store, WebhookDelivery), await count(store, BuildLog)) == (2, 2)
    await forget(store, NOW + 31 * DAY_MS)
    assert (await count(store, WebhookDelivery), await count(store, BuildLog)) == (1, 1)
    assert await count(store, PlayerRating) == 1
    await forget(store, NOW + 731 * DAY_MS)
    assert await count(store, PlayerRating) == 0
    assert await count(store, WebhookDelivery) == 1  # what waits is never too old
    assert await count(store, Build) == 3


async def test_a_reader_whose_place_is_too_old_is_told(store: Store) -> None:
    await check_kept(store, Cursor(Position(0, 5), Position(0, 5)))
    await bill(store)
    newest = Cursor(Position(0, SERVERS * len(LIFE)), Position(0, SERVERS))
    await forget(store, LATER)
    with pytest.raises(PositionTooOld):
        await check_kept(store, Cursor(Position(0, 5), newest.project))
    with pytest.raises(PositionTooOld):
        await check_kept(store, Cursor(newest.server, Position(0, 5)))
    await check_kept(store, newest)


async def test_a_ledger_is_not_computed_from_half_a_journal(store: Store) -> None:
    await bill(store)
    before = await usage(store)
    await forget(store, LATER)
    with pytest.raises(Conflict):
        await run_once(store, ledger.JOB, lambda lease: ledger.forget(store, lease))
    assert await usage(store) == before


async def test_it_goes_in_small_transactions_with_pauses(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop and other writers have their turn in between: no portion deletes more than it may."""
    await bill(store)
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    await forget(store, LATER, RetentionSettings(pause_s=0.01, rows_at_once=20))
    assert await count(store, ServerEvent) == 0
    assert len([pause for pause in pauses if pause >= 0.01]) >= SERVERS * len(LIFE) // 20


async def test_the_file_gives_its_space_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.retention.sweep.FREE_PAGES_KEPT", 4)
    await bill(store)
    async with store.read() as session:
        connection = await session.connection()
        before = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
    await forget(store, LATER)
    async with store.read() as session:
        connection = await session.connection()
        after = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
    assert store.file is not None
    assert space.give_back(store.file, 4, 1) == (0, 0)
    assert after < before


def test_an_old_database_learns_to_give_space_back(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("INSERT INTO t VALUES ('kept')")
    connection.commit()
    assert connection.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    connection.close()
    space.prepare(path)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA auto_vacuum").fetchone() == (space.INCREMENTAL,)
    assert connection.execute("SELECT x FROM t").fetchone() == ("kept",)
    connection.close()


async def test_a_job_that_was_taken_over_deletes_nothing(store: Store) -> None:
    await bill(store)

    async def work(lease: Any) -> None:
        await set_rows(store, Job, col(Job.name) == JOB, owner="another")
        await Retention(store, AT_ONCE, lambda: LATER).work(lease)

    with pytest.raises(Exception, match="taken over"):
        await run_once(store, JOB, work)
    assert await count(store, Server) == SERVERS


async def test_no_bill_changes_whatever_is_forgotten_when(tmp_path: Path) -> None:
    """Servers' lives, the ledger and retention in any order: usage is what ran, at every moment."""

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        lives=LIVES, moves=st.lists(st.sampled_from(["live", "bill", "forget"]), max_size=12), batch=st.integers(1, 7)
    )
    def check(lives: list[tuple[int, int]], moves: list[str], batch: int) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            asyncio.run(play(Path(folder), lives, moves, batch))

    await asyncio.to_thread(check)


LIVES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30 * 24)), min_size=1, max_size=6)  # days, then hours


MOVES = st.lists(st.sampled_from(["live", "bill", "forget"]), max_size=12)


async def play(folder: Path, lives: list[tuple[int, int]], moves: list[str], batch: int) -> None:
    make_schema(folder / "fleet.db")
    store = Store(f"sqlite+aiosqlite:///{folder}/fleet.db")
    await history.fill(store, 0, NOW)
    left, ran = list(enumerate(lives)), 0
    for move in moves:
        if move == "live" and left:
            number, (day, hours) = left.pop()
            start, end = NOW + day * DAY_MS, NOW + day * DAY_MS + hours * HOUR_MS
            await one_life(store, f"s{number}", start, end)
            ran += end - start
        elif move == "bill":
            await run_once(store, ledger.JOB, lambda lease: ledger.aggregate(store, lease, batch))
        elif move == "forget":
            await forget(store, NOW + 60 * DAY_MS, RetentionSettings(pause_s=0, rows_at_once=3, usage_hours_days=1))
        assert sum((await usage(store)).values()) == ran
    await store.close()


async def one_life(store: Store, name: str, start: int, end: int) -> None:
    async with store.write() as session:
        session.add(Server(
            instance_id=name, project_id=PROJECT, region=REGION, name="s", status="stopped", step="stopped",
            compute_size="small", build_id="b", version_tag="b", created_at=start, updated_at=end, launched_at=start,
            step_at=end, started_at=start, stopped_at=end,
        ))  # fmt: skip
        await session.flush()
        for kind, at in (("queued", start), ("running", start), ("stopping", end), ("stopped", end)):
            session.add(ServerEvent(
                instance_id=name, project_id=PROJECT, region=REGION, generation=1, at=at, type=kind,
            ))  # fmt: skip
