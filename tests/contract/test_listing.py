"""Pages of servers: the right ones in the right order with the right total, below and above what is counted."""

from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path

import pytest
from sqlalchemy import insert
from sqlmodel import col, update

from fleet.servers import listing
from fleet.servers.listing import Listing
from fleet.servers.model import ListQuery
from fleet.store.commit import row_values
from fleet.store.engine import Store
from fleet.store.tables import Project, Server
from tests.unit.api_kit import make_schema

STATUSES = ("running", "launching", "stopped")


def row(project: str, number: int) -> Server:
    """Two of three share their time with another, one in five is in a pool, every other of those is claimed."""
    return Server(
        instance_id=f"{project}-{number * 7919 % 1000:04}",
        project_id=project,
        region="eu-west",
        name="m",
        status=STATUSES[number % 3],
        step="stopped",
        compute_size="small",
        build_id="b",
        version_tag="default",
        is_pool_server=number % 5 == 0,
        pool_claimed_at=1 if number % 10 == 0 else None,
        created_at=1000 + number // 3 * 2,
        updated_at=0,
        launched_at=0,
        step_at=0,
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    make_schema(tmp_path / "fleet.db")
    store = Store(f"sqlite+aiosqlite:///{tmp_path}/fleet.db")
    async with store.write() as session:
        for project in ("one", "two"):
            session.add(Project(id=project, name=project, created_at=0, updated_at=0))
            await session.flush()
            rows = [row_values(row(project, number)) for number in range(200)]
            await (await session.connection()).execute(insert(Server), rows)
    yield store
    await store.close()


def expected(query: ListQuery) -> tuple[list[str], int]:
    wanted = query.statuses or (("running", "launching") if query.include_launching else ("running",))
    rows = [row("one", number) for number in range(200)]
    rows = [r for r in rows if r.status in wanted]
    rows = [r for r in rows if query.include_pool or not r.is_pool_server or r.pool_claimed_at is not None]
    rows.sort(key=lambda r: (-r.created_at, r.instance_id))
    return [r.instance_id for r in rows[query.offset : query.offset + query.limit]], len(rows)


@pytest.mark.parametrize("counted", [5000, 3])
async def test_pages_are_what_sorting_everything_gives(
    store: Store, monkeypatch: pytest.MonkeyPatch, counted: int
) -> None:
    monkeypatch.setattr(listing, "COUNTED", counted)
    pages = Listing(store)
    sets = [(), ("stopped",), ("stopped", "running"), STATUSES, ("running", "running")]
    for statuses, launching, pool in product(sets, (False, True), (False, True)):
        for limit, offset in ((1, 0), (10, 5), (100, 0), (7, 60), (50, 1000)):
            query = ListQuery(launching, pool, limit, offset, statuses)
            servers, total = await pages.page("one", query)
            assert ([server.instance_id for server in servers], total) == expected(query), query


async def test_above_what_is_counted_the_total_is_late_but_never_less_than_what_is_shown(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "COUNTED", 3)
    pages = Listing(store)
    query = ListQuery(include_pool=True, limit=5)
    before = (await pages.page("one", query))[1]
    async with store.write() as session:
        mine = (col(Server.project_id) == "one", col(Server.status) == "stopped")
        await session.exec(update(Server).where(*mine).values(status="running"))
    assert (await pages.page("one", query))[1] == before
    deep = ListQuery(include_pool=True, limit=5, offset=before + 10)
    servers, total = await pages.page("one", deep)
    assert len(servers) == 5
    assert total >= before + 16
    assert (await pages.page("two", query))[1] == before  # another project's is its own
    monkeypatch.setattr(listing, "FRESH_S", 0.0)
    assert (await Listing(store).page("one", query))[1] > before
