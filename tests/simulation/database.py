"""The database's edge: the real tables, statements and group commit over SQLite, whose every await may go wrong.

`Store` keeps its interface; its sessions are synchronous ones under it, so that no thread decides what comes first. One
process writes at a time, as SQLite has it; a process that dies undoes what it had not committed.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlmodel import Session, SQLModel, create_engine

from fleet.store.engine import OutcomeUnknown, Store, dump_json
from fleet.store.transact import ThreadTransactions
from tests.simulation.faults import Weather
from tests.simulation.loop import PROCESS, Process

LOCK_S = 30.0  # how long SQLite waits for its lock


def _refused(why: str) -> OperationalError:
    return OperationalError("simulated", {}, sqlite3.OperationalError(why))


class Database:
    """`committed` is called after every commit of whoever writes."""

    def __init__(self, path: Path, weather: Weather, committed: Callable[[], None]) -> None:
        self.path, self.weather, self.committed = path, weather, committed
        self._writer: Process | object | None = _NOBODY
        self._waiting: list[asyncio.Event] = []
        self._open: Session | None = None
        # Sessions of processes that were killed keep their connections to the end, so there is no most.
        self.engine = create_engine(f"sqlite:///{path}", json_serializer=dump_json, pool_size=5, max_overflow=-1)
        self.watch = sqlite3.connect(path)
        self.commits = 0

        @event.listens_for(self.engine, "connect")
        def connect(connection: Any, _record: Any) -> None:
            connection.isolation_level = None
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA busy_timeout=0")

        @event.listens_for(self.engine, "begin")
        def begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN")

    def make(self) -> None:
        SQLModel.metadata.create_all(self.engine)

    async def reach(self) -> None:
        """A statement on its way."""
        weather = self.weather
        await asyncio.sleep(weather.latency(0.001))
        if weather.open["database_away"]:
            await asyncio.sleep(weather.uniform(0, 3))
            raise _refused("connection refused")
        if weather.strikes("database_flaky", 0.25):
            what = weather.pick("fail", "fail", "slow", "hang")
            if what == "fail":
                raise _refused("disk I/O error")
            await asyncio.sleep(weather.uniform(0.1, 3) if what == "slow" else weather.uniform(10, 60))

    async def lock(self) -> None:
        """Become the one writer, or be told after a while that the database is locked."""
        try:
            async with asyncio.timeout(LOCK_S):
                while self._writer is not _NOBODY or self.weather.open["database_locked"]:
                    turn = asyncio.Event()
                    self._waiting.append(turn)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            await turn.wait()
        except TimeoutError:
            raise _refused("database is locked") from None
        self._writer = process = PROCESS.get()
        if process is not None and self.freed not in process.on_end:
            process.on_end.append(self.freed)

    def unlock(self) -> None:
        self._writer = _NOBODY
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            turn.set()

    def freed(self) -> None:
        """The writer, if it has died, writes no more."""
        if isinstance(self._writer, Process) and self._writer.dead:
            if self._open is not None:
                self._open.rollback()
                self._open = None
            self.unlock()

    async def confirm(self) -> None:
        """The answer to a commit on its way: it may be lost though the commit is done."""
        self.commits += 1
        self.committed()
        if self.weather.strikes("database_flaky", 0.1):
            if self.weather.pick("late", "lost") == "lost":
                raise OutcomeUnknown("The connection broke during a commit (simulated).")
            await asyncio.sleep(self.weather.uniform(0.1, 5))


_NOBODY = object()


def _died() -> bool:
    """Whether this is only Python clearing up after a process that was killed."""
    process = PROCESS.get()
    return process is not None and process.dead


class _Face:
    """A synchronous session as code knows its asynchronous one."""

    def __init__(self, session: Session, database: Database) -> None:
        self._session, self._database = session, database

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)  # add, add_all, expunge: they wait for nothing

    async def _do(self, name: str, *args: Any, **named: Any) -> Any:
        await self._database.reach()
        return getattr(self._session, name)(*args, **named)

    async def exec(self, *args: Any, **named: Any) -> Any:
        return await self._do("exec", *args, **named)

    async def execute(self, *args: Any, **named: Any) -> Any:
        return await self._do("execute", *args, **named)

    async def get(self, *args: Any, **named: Any) -> Any:
        return await self._do("get", *args, **named)

    async def scalar(self, *args: Any, **named: Any) -> Any:
        return await self._do("scalar", *args, **named)

    async def delete(self, *args: Any) -> Any:
        return await self._do("delete", *args)

    async def refresh(self, *args: Any) -> Any:
        return await self._do("refresh", *args)

    async def flush(self) -> Any:
        return await self._do("flush")


@contextlib.contextmanager
def installed(database: Database) -> Generator[None]:
    """Every `Store` of this process is on that database."""

    def init(self: Any, _url: str) -> None:
        self.sqlite, self._attempts, self._watch, self._looker = True, 5, None, None
        self._url = database.engine.url

    @asynccontextmanager
    async def read(_self: Any) -> AsyncGenerator[Any]:
        await database.reach()
        with Session(database.engine, expire_on_commit=False, autoflush=False) as session:
            yield _Face(session, database)

    async def first(_self: Any, statement: Any) -> Any:
        await database.reach()
        with Session(database.engine, expire_on_commit=False, autoflush=False) as session:
            return session.exec(statement).first()

    @asynccontextmanager
    async def write(_self: Any) -> AsyncGenerator[Any]:
        await database.reach()
        await database.lock()
        try:
            with Session(database.engine, expire_on_commit=False) as session:
                database._open = session
                yield _Face(session, database)
                await database.reach()
                session.commit()
        finally:
            if not _died():
                database._open = None
                database.unlock()
        await database.confirm()

    async def run(self: Any, statements: Any) -> None:
        await database.reach()
        await database.lock()
        try:
            self._transaction(statements)
        finally:
            if not _died():
                database.unlock()
        await database.confirm()

    async def close(_self: Any) -> None: ...

    def thread_engine(_self: Any) -> Any:
        return database.engine

    def glance(_self: Any, query: str, *values: Any) -> Any:
        row = database.watch.execute(query, values).fetchone()
        return row[0] if row else None

    with contextlib.ExitStack() as stack:
        for name, value in {
            "__init__": init,
            "read": read,
            "first": first,
            "write": write,
            "close": close,
            "thread_engine": thread_engine,
            "glance": glance,
        }.items():
            stack.enter_context(mock.patch.object(Store, name, value))
        stack.enter_context(mock.patch.object(ThreadTransactions, "run", run))
        stack.enter_context(mock.patch.object(ThreadTransactions, "close", close))
        yield
        database.watch.close()
        database.engine.dispose()
