"""What is asked at every start, claim, page or start-up of a process takes as much of the database's work with a long
history as without one. The work is counted in steps of SQLite's machine, so that no busy computer changes the result.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlmodel import col, select

from fleet.billing import ledger
from fleet.builds.collect import needed_hashes
from fleet.builds.service import BuildService
from fleet.catalog import load_catalog
from fleet.events import dispatch
from fleet.events.feed import feed
from fleet.events.model import Cursor, Position
from fleet.events.read import backlog, horizon
from fleet.jobs import Lease, run_once
from fleet.lobbies.client import KeeperClient
from fleet.lobbies.history import matches_under_way
from fleet.operation import operation
from fleet.projects.ending import ProjectEnding
from fleet.projects.plans import Plan
from fleet.region.client import RegionClient
from fleet.region.pool_store import PoolStore
from fleet.servers.admission import Admission
from fleet.servers.listing import Listing
from fleet.servers.model import ListQuery, StartRequest
from fleet.servers.project_log import Position as LogPosition
from fleet.servers.project_log import ProjectLog
from fleet.servers.service import ServerService
from fleet.servers.wanted import Wanted
from fleet.settings import FleetSettings
from fleet.store import migrate
from fleet.store.engine import Store
from fleet.store.lobby_tables import MATCH_NOT_OVER, Match
from fleet.store.tables import Server, Webhook, live
from fleet.telemetry.stored import read_stored
from fleet.times import now_ms
from tests import history
from tests.history import PROJECT, REGION

LONG = 20_000
STEPS = 20  # a callback after so many steps of SQLite's machine
MOST = 1.5
SLACK = 400  # steps: the trees are deeper
Ask = Callable[[Store], Awaitable[Any]]
UNUSED: Any = None


async def live_rows(store: Store) -> None:
    """As a manager reads them at its start."""
    async with store.read() as session:
        await session.exec(select(Server).where(col(Server.region) == REGION, live()))


async def live_matches(store: Store) -> None:
    async with store.read() as session:
        await session.exec(select(Match).where(col(Match.status).in_(MATCH_NOT_OVER)))


def wanted(match_id: str) -> Wanted:
    size = load_catalog().size("small")
    request = StartRequest(name="match", region=REGION, compute_size="small", match_id=match_id)
    build: Any = None
    return Wanted("i-new", PROJECT, REGION, size, build, request, {}, [], None, once=True)


async def admitted(store: Store) -> None:
    """A start of a match that has had its server long ago, counted by a plan."""
    admission, plan = Admission(store), Plan(name="counted", max_servers=10)
    await admission.admit(wanted("m-7"), plan)
    await admission.admit(wanted("m-other"), plan)
    await admission.failed(wanted("m-other"))


async def made_before(store: Store) -> None:
    servers = ServerService(store, UNUSED, UNUSED, load_catalog(), FleetSettings().servers, UNUSED, UNUSED)
    caller: Any = SimpleNamespace(project_id=PROJECT)
    with operation("00000000-0000-0000-0000-000000000000", repeated=True):
        await servers._made_before(caller)


async def pages(store: Store) -> None:
    listing = Listing(store)
    await listing.page(PROJECT, ListQuery())
    await listing.page(PROJECT, ListQuery(include_launching=True))


async def pool_start(store: Store) -> None:
    pools = PoolStore(store, REGION)
    await pools.wished()
    await pools.newest_builds({(PROJECT, "default")})
    await pools.learned()
    await pools.recent_claims(now_ms())


async def recovered(store: Store) -> None:
    await RegionClient(store)._needed()
    await KeeperClient(store, 1)._shards_in_use()


async def usage_now(store: Store) -> None:
    await ledger.usage_of(store, PROJECT, 0, now_ms(), now_ms())


async def stream_from_now(store: Store) -> None:
    async with store.read() as session:
        until = await horizon(store, session)
    start = Cursor(Position(0, max(0, until.server.id - 3)), Position(0, max(0, until.project.id - 3)))
    async for _ in backlog(store, PROJECT, start, until):
        pass


async def first_webhook(store: Store) -> None:
    """Nothing from before it is sent, nor looked for."""
    now = now_ms()
    async with store.write() as session:
        await session.merge(Webhook(id="w", project_id=PROJECT, url="u", secret="s", created_at=now, updated_at=now))

    async def work(lease: Lease) -> None:
        assert not await feed(store, lease)

    assert await run_once(store, dispatch.JOB, work)


async def endings(store: Store) -> None:
    await ProjectEnding(store, UNUSED, Path()).look()


async def log_of_now(store: Store) -> None:
    await ProjectLog(store, UNUSED).page(PROJECT, LogPosition.since(now_ms() - 60_000), now_ms(), 10)


async def builds(store: Store) -> None:
    await needed_hashes(store)
    await BuildService(store, FleetSettings()).list(PROJECT, None, 10, 0)


ASKED: dict[str, Ask] = {
    "a manager's live rows": live_rows,
    "a lobby keeper's matches": live_matches,
    "admission": admitted,
    "a write that is repeated": made_before,
    "pages of servers": pages,
    "a manager's pools": pool_start,
    "a replica's start": recovered,
    "metrics": lambda store: read_stored(store, load_catalog()),
    "usage up to now": usage_now,
    "events from now": stream_from_now,
    "the first webhook": first_webhook,
    "projects that end": endings,
    "logs of now": log_of_now,
    "builds": builds,
    "matches under way": lambda store: matches_under_way(store, PROJECT, "default"),
}


@contextmanager
def recorded() -> Iterator[list[tuple[str, Any]]]:
    """Every statement that any engine of this process runs meanwhile."""
    found: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        found.append((statement, parameters[0] if many else parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def work_of(path: Path, statement: str, parameters: Any) -> int:
    """Steps of SQLite's machine. What it changes is undone."""
    connection = sqlite3.connect(path, isolation_level=None)
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += STEPS
        return 0

    connection.execute("BEGIN")
    connection.set_progress_handler(count, STEPS)
    connection.execute(statement, parameters).fetchall()
    connection.set_progress_handler(None, 0)
    connection.close()
    return steps


async def settle(store: Store) -> None:
    """The usage of the history is on the books, as it is in a fleet that has run for long."""
    assert await run_once(store, ledger.JOB, lambda lease: ledger.aggregate(store, lease))


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By length of the history."""
    found: dict[int, Path] = {}
    for count in (20, LONG):
        path = tmp_path_factory.mktemp("history") / "fleet.db"
        migrate.upgrade(f"sqlite+aiosqlite:///{path}")
        found[count] = path

        async def make(path: Path = path, count: int = count) -> None:
            store = Store(f"sqlite+aiosqlite:///{path}")
            await history.fill(store, count, now_ms())
            await settle(store)
            await store.close()

        asyncio.run(make())
    return found


async def works(path: Path, ask: Ask) -> dict[str, int]:
    """By statement, the most that it took."""
    store = Store(f"sqlite+aiosqlite:///{path}")
    with recorded() as statements:
        await ask(store)
    await store.close()
    found: dict[str, int] = {}
    for statement, parameters in statements:
        if statement.startswith(("SELECT", "DELETE", "UPDATE", "WITH")):
            found[statement] = max(found.get(statement, 0), work_of(path, statement, parameters))
    return found


@pytest.mark.parametrize("what", ASKED)
async def test_a_long_history_makes_no_work(what: str, databases: dict[int, Path]) -> None:
    short, long = [await works(path, ASKED[what]) for path in databases.values()]
    assert long
    slow = {
        statement: (short.get(statement, 0), steps)
        for statement, steps in long.items()
        if steps > MOST * short.get(statement, 0) + SLACK
    }
    assert slow == {}


def test_a_walk_over_the_history_is_found(databases: dict[int, Path]) -> None:
    few, many = [work_of(path, "SELECT 1 FROM server WHERE last_op || '' = ?", ("x",)) for path in databases.values()]
    assert many > MOST * few + SLACK
