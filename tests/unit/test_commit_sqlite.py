"""The group commit on SQLite when the disk is full, the database locked, or its thread gone."""

import asyncio
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import insert

from fleet.store.commit import GroupCommit, take_epoch
from fleet.store.engine import Store
from fleet.store.tables import Project
from fleet.store.transact import ThreadTransactions
from tests.unit.test_commit import commits, database, empty_database, names, project, store

__all__ = ["commits", "database", "empty_database", "store"]  # fixtures


@contextmanager
def no_room_on_disk(path: Path) -> Iterator[None]:
    """Files of this process cannot grow beyond what the write-ahead log has."""
    size = Path(f"{path}-wal").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def lock(path: Path) -> sqlite3.Connection:
    """Somebody else's write transaction."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other


async def test_a_full_disk_is_waited_for_and_nothing_is_lost(
    store: Store, database: Path, commits: GroupCommit
) -> None:
    await commits.submit([(insert(Project), project("before"))])
    with no_room_on_disk(database):
        waiting = commits.submit([(insert(Project), project("meanwhile"))])
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
    later = commits.submit([(insert(Project), project("later"))])
    await asyncio.gather(waiting, later)
    assert sorted(await names(store)) == ["before", "later", "meanwhile"]


async def test_a_commit_waits_for_another_writer(store: Store, database: Path, commits: GroupCommit) -> None:
    other = lock(database)
    waiting = commits.submit([(insert(Project), project("patient"))])
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    assert commits.lag_s() > 0.1
    other.execute("ROLLBACK")
    other.close()
    await waiting
    assert await names(store) == ["patient"]


async def test_what_nobody_waits_for_any_more_is_written_all_the_same(
    store: Store, database: Path, commits: GroupCommit
) -> None:
    other = lock(database)
    first = asyncio.ensure_future(_wait(commits.submit([(insert(Project), project("first"))])))
    await asyncio.sleep(0)
    second = commits.submit([(insert(Project), project("second"))])
    first.cancel()
    other.execute("ROLLBACK")
    other.close()
    await second
    assert await names(store) == ["first", "second"]


async def _wait(future: "asyncio.Future[None]") -> None:
    await future


async def test_a_writer_without_its_thread_is_fatal(store: Store) -> None:
    fatal: list[BaseException] = []
    transactions = ThreadTransactions(store, "r", await take_epoch(store, "r"))
    commits = GroupCommit(store, "r", 1, fatal.append, transactions=transactions)
    await commits.submit([(insert(Project), project("before"))])
    await transactions.close()
    with pytest.raises(RuntimeError):
        await commits.submit([(insert(Project), project("after"))])
    assert len(fatal) == 1
