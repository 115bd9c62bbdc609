"""Group commit: one transaction for what waits, in order, fenced by the epoch, fatal when it cannot be done."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import bindparam, insert, text, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from fleet.errors import Fenced
from fleet.store import migrate
from fleet.store.commit import GroupCommit, take_epoch
from fleet.store.engine import Store
from fleet.store.rows import WORTHWHILE
from fleet.store.tables import Project


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("db") / "fleet.db"
    migrate.upgrade(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "fleet.db"
    copy.write_bytes(empty_database.read_bytes())
    return copy


@pytest.fixture
async def store(database: Path) -> AsyncIterator[Store]:
    store = Store(f"sqlite+aiosqlite:///{database}")
    yield store
    await store.close()


def project(name: str) -> dict[str, object]:
    return {
        "id": name,
        "name": name,
        "plan": "pro",
        "settings": None,
        "created_at": 1,
        "updated_at": 1,
    }


async def names(store: Store) -> list[str]:
    async with store.read() as session:
        return [row.name for row in (await session.exec(select(Project).order_by(col(Project.id)))).all()]


async def test_what_waits_together_is_one_transaction_in_order(store: Store) -> None:
    fatal: list[BaseException] = []
    commits = GroupCommit(store, "r", await take_epoch(store, "r"), fatal.append)
    futures = [commits.submit([(insert(Project), project(str(i)))]) for i in range(50)]
    futures.append(
        commits.submit(
            [
                (
                    update(Project).where(col(Project.id) == "3").values(name="renamed"),
                    None,
                )
            ]
        )
    )
    await asyncio.gather(*futures)
    assert commits.batches == 1
    assert "renamed" in await names(store)
    assert len(await names(store)) == 50
    assert not fatal


async def test_an_older_writer_changes_nothing_and_learns_that_it_is_replaced(
    store: Store,
) -> None:
    fatal: list[BaseException] = []
    old = GroupCommit(store, "r", await take_epoch(store, "r"), fatal.append)
    await take_epoch(store, "r")
    with pytest.raises(Fenced):
        await old.submit([(insert(Project), project("late"))])
    assert [type(error) for error in fatal] == [Fenced]
    assert await names(store) == []


async def test_a_failing_statement_undoes_its_batch_and_is_fatal(store: Store) -> None:
    fatal: list[BaseException] = []
    commits = GroupCommit(store, "r", await take_epoch(store, "r"), fatal.append)
    good = commits.submit([(insert(Project), project("good"))])
    bad = commits.submit([(text("INSERT INTO nowhere VALUES (1)"), None)])
    results = await asyncio.gather(good, bad, return_exceptions=True)
    assert all(isinstance(result, Exception) for result in results)
    assert len(fatal) == 1
    assert await names(store) == []


async def test_the_data_version_tells_every_foreign_commit(store: Store) -> None:
    before = store.data_version()
    assert store.data_version() == before
    async with store.write() as session:
        session.add(Project(id="p", name="p", created_at=1, updated_at=1))
    assert store.data_version() != before


@pytest.fixture
async def commits(store: Store) -> AsyncIterator[GroupCommit]:
    """Of region r; a fatal commit fails the test."""
    fatal: list[BaseException] = []
    commits = GroupCommit(store, "r", await take_epoch(store, "r"), fatal.append)
    yield commits
    await commits.close()
    assert not fatal


async def test_close_writes_what_waits(store: Store) -> None:
    fatal: list[BaseException] = []
    commits = GroupCommit(store, "r", await take_epoch(store, "r"), fatal.append)
    waiting = [commits.submit([(insert(Project), project(str(n)))]) for n in range(3)]
    await commits.close()
    assert all(future.done() for future in waiting)
    assert await names(store) == ["0", "1", "2"]
    assert not fatal


async def test_rows_by_one_statement_are_what_the_session_reads(store: Store, commits: GroupCommit) -> None:
    rows = [
        {**project(str(n)), "settings": {"list": [n, None, 2**70], "ä": {"yes": True}} if n % 2 else None}
        for n in range(WORTHWHILE)
    ]
    await commits.submit([(insert(Project), rows)])
    changed = update(Project).where(col(Project.id) == bindparam("of")).values(name=bindparam("new_name"))
    await commits.submit([(changed, [{"of": row["id"], "new_name": f"now {row['id']}"} for row in rows])])
    async with store.read() as session:
        found = (await session.exec(select(Project).order_by(col(Project.id)))).all()
    assert [row.settings for row in found] == [row["settings"] for row in rows]
    assert [row.name for row in found] == [f"now {row['id']}" for row in rows]


async def test_a_batch_of_rows_that_fails_in_the_middle_changes_nothing(store: Store) -> None:
    fatal: list[BaseException] = []
    commits = GroupCommit(store, "r", await take_epoch(store, "r"), fatal.append)
    await commits.submit([(insert(Project), project("3"))])
    with pytest.raises(IntegrityError):
        await commits.submit([(insert(Project), [project(str(n)) for n in range(WORTHWHILE + 2)])])
    assert len(fatal) == 1
    assert await names(store) == ["3"]
