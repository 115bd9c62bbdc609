"""A database that is locked, full or away is waited for without an end: nothing submitted is lost, what is new is
refused in time, and no writer dies of it."""

import asyncio
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from asyncpg import CannotConnectNowError, LockNotAvailableError, UniqueViolationError
from asyncpg import DiskFullError as PostgresDiskFull
from sqlalchemy import insert
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlmodel import col, select

from fleet.errors import Unavailable
from fleet.store import commit, trouble
from fleet.store.commit import GroupCommit, take_epoch
from fleet.store.engine import Store
from fleet.store.tables import Project
from fleet.store.transact import Statement
from fleet.store.trouble import OutcomeUnknown, OutOfReach, may_pass, reaching, retry_s
from fleet.times import now_ms
from tests.unit.test_commit import commits, database, empty_database, names, project, store
from tests.unit.test_commit_sqlite import lock, no_room_on_disk

__all__ = ["commits", "database", "empty_database", "store"]  # fixtures

BUSY_S = 0.1


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own wait for its lock is short, so that each test sees many tries."""
    monkeypatch.setattr(trouble, "LOCK_WAIT_S", BUSY_S)


class Failing:
    """Transactions that fail with these errors, one after the other, then go through."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.done: list[int] = []

    async def run(self, statements: Iterable[Statement]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.done.append(len(list(statements)))

    async def close(self) -> None:
        """Nothing is open."""


def locked() -> OperationalError:
    return OperationalError("COMMIT", None, sqlite3.OperationalError("database is locked"))


async def test_a_lock_that_outlives_many_tries_costs_neither_the_writer_nor_a_commit(
    store: Store, database: Path, commits: GroupCommit
) -> None:
    """Five tries used to be all; the successor of the writer then met the same lock in its start."""
    other = lock(database)
    waiting = commits.submit([(insert(Project), project("patient"))])
    done, _ = await asyncio.wait([waiting], timeout=BUSY_S * 15)
    assert not done
    other.execute("ROLLBACK")
    other.close()
    await asyncio.wait_for(waiting, 5)  # the longest pause is 2 s
    assert await names(store) == ["patient"]


async def test_a_disk_that_was_full_for_long_is_written_once_it_has_room(
    store: Store, database: Path, commits: GroupCommit
) -> None:
    await commits.submit([(insert(Project), project("before"))])
    with no_room_on_disk(database):
        waiting = commits.submit([(insert(Project), project("meanwhile"))])
        done, _ = await asyncio.wait([waiting], timeout=2)
        assert not done
    await asyncio.wait_for(waiting, 5)
    assert sorted(await names(store)) == ["before", "meanwhile"]


async def test_new_writes_are_refused_while_the_oldest_waits(store: Store, database: Path) -> None:
    fatal: list[BaseException] = []
    commits = GroupCommit(store, "r", await take_epoch(store, "r"), fatal.append, refuse_after_s=0.2)
    commits.check()
    other = lock(database)
    waiting = commits.submit([(insert(Project), project("patient"))])
    commits.check()  # a moment of waiting is no outage
    await asyncio.sleep(0.3)
    with pytest.raises(Unavailable, match="nothing was changed"):
        commits.check()
    assert now_ms() - commits.steady_since() < 50  # whoever waits for what follows a commit has no time running
    other.execute("ROLLBACK")
    other.close()
    await asyncio.wait_for(waiting, 5)
    commits.check()
    back_at = now_ms()
    await commits.submit([(insert(Project), project("later"))])
    assert back_at - 5000 < commits.steady_since() <= back_at
    await commits.close()
    assert fatal == []


async def test_while_it_is_locked_reads_go_on_and_writes_are_told_in_time(store: Store, database: Path) -> None:
    async with store.write() as session:
        session.add(Project(**project("there")))
    other = lock(database)
    assert await names(store) == ["there"]
    assert await store.first(select(Project).where(col(Project.id) == "there")) is not None
    began = time.monotonic()
    with pytest.raises(OperationalError) as refused:
        async with store.write() as session:
            session.add(Project(**project("new")))
    assert may_pass(refused.value)
    assert time.monotonic() - began < BUSY_S + 1
    other.close()


async def test_an_epoch_is_taken_once_the_lock_is_gone(store: Store, database: Path) -> None:
    other = lock(database)
    taking = asyncio.ensure_future(take_epoch(store, "r"))
    done, _ = await asyncio.wait([taking], timeout=BUSY_S * 10)
    assert not done
    other.close()
    assert await asyncio.wait_for(taking, 5) == 1


@pytest.mark.parametrize(
    "error", [OutcomeUnknown("broke"), IntegrityError("INSERT", None, Exception("UNIQUE")), KeyError("wrong")]
)
async def test_what_cannot_pass_ends_the_writer_at_the_first_try(store: Store, error: Exception) -> None:
    fatal: list[BaseException] = []
    transactions = Failing(error)
    commits = GroupCommit(store, "r", 1, fatal.append, transactions=transactions)
    waiting = [commits.submit([(insert(Project), project(name))]) for name in ("a", "b")]
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert results == [error, error]
    assert fatal == [error]
    with pytest.raises(type(error)):  # or its order would be lost
        await commits.submit([(insert(Project), project("later"))])
    with pytest.raises(Unavailable):
        commits.check()
    assert transactions.done == []


async def test_one_that_counts_commits_and_fails_loses_nothing(store: Store) -> None:
    fatal: list[BaseException] = []
    calls: list[int] = []

    def count(_seconds: float, statements: int) -> None:
        calls.append(statements)
        raise ValueError("a metric of no such label")

    commits = GroupCommit(store, "r", 1, fatal.append, count, transactions=Failing())
    await commits.submit([(insert(Project), project("a"))])
    await asyncio.wait_for(commits.submit([(insert(Project), project("b"))]), 5)
    assert calls == [1, 1]
    assert fatal == []


async def test_an_orderly_end_does_not_wait_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "CLOSE_S", 0.2)
    commits = GroupCommit(store, "r", 1, lambda _error: None, transactions=Failing(*[locked() for _ in range(1000)]))
    waiting = commits.submit([(insert(Project), project("a"))])
    with pytest.raises(Unavailable, match="1 statements were not written"):
        await asyncio.wait_for(commits.close(), 5)
    assert not waiting.done()


def sqlite_error(code: int) -> OperationalError:
    error = sqlite3.OperationalError("as SQLite says it")
    error.sqlite_errorcode = code
    return OperationalError("COMMIT", None, error)


@pytest.mark.parametrize(
    "error",
    [
        sqlite_error(sqlite3.SQLITE_BUSY),
        sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT),
        sqlite_error(sqlite3.SQLITE_FULL),
        sqlite_error(sqlite3.SQLITE_IOERR_WRITE),
        sqlite_error(sqlite3.SQLITE_CANTOPEN),
        sqlite_error(sqlite3.SQLITE_READONLY),
        locked(),
        sqlite3.OperationalError("unable to open database file"),
        DBAPIError("COMMIT", None, CannotConnectNowError("the database system is starting up")),
        DBAPIError("COMMIT", None, LockNotAvailableError("canceling statement due to lock timeout")),
        DBAPIError("COMMIT", None, PostgresDiskFull("could not extend file")),
        ConnectionRefusedError(),
        TimeoutError(),
        OutOfReach("no"),
    ],
    ids=repr,
)
def test_what_passes(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        sqlite_error(sqlite3.SQLITE_ERROR),  # no such table
        sqlite_error(sqlite3.SQLITE_CORRUPT),
        DBAPIError("INSERT", None, UniqueViolationError("twice")),
        IntegrityError("INSERT", None, sqlite3.IntegrityError("UNIQUE constraint failed")),
        OutcomeUnknown("broke"),
        ValueError("wrong"),
    ],
    ids=repr,
)
def test_what_does_not_pass(error: Exception) -> None:
    assert not may_pass(error)


def test_pauses_between_tries_are_bounded() -> None:
    assert [retry_s(1), retry_s(2)] == [0.05, 0.1]
    assert max(retry_s(failures) for failures in range(1, 2000)) == 2.0


def test_errors_of_the_way_are_told_from_those_of_files() -> None:
    with pytest.raises(OutOfReach), reaching():
        raise TimeoutError
    with pytest.raises(FileNotFoundError), reaching():
        Path("/no/such/file").read_text()


async def test_a_look_at_a_database_that_lets_nobody_in_does_not_hold_up_the_loop(store: Store, database: Path) -> None:
    """`first` reads in the caller's thread, where nothing may wait: it goes to another one then, and hears in time."""
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    looking = asyncio.ensure_future(store.first(select(Project)))
    longest = 0.0
    while not looking.done():
        began = time.monotonic()
        await asyncio.sleep(0)
        longest = max(longest, time.monotonic() - began)
    with pytest.raises(OperationalError) as refused:
        await looking
    assert may_pass(refused.value)
    assert longest < BUSY_S
    assert store.data_version() is None
    other.close()
    assert await store.first(select(Project)) is None
    assert store.data_version() is not None
