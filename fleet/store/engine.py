"""The database: SQLite in WAL mode by default, any SQLAlchemy async URL otherwise.

Reading and writing are different doors, so that a read can never hold the write lock: `read()` gives a session
that cannot write, `write()` one transaction that is committed (and on disk) when the block ends.
"""

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession


class Store:
    """Two connection pools on one database. Cheap to make; connections open on first use."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sqlite = make_url(url).get_backend_name() == "sqlite"
        self._reader = self._engine(readonly=True)
        self._writer = self._engine(readonly=False)
        self._watch: sqlite3.Connection | None = None

    def _engine(self, *, readonly: bool) -> AsyncEngine:
        if not self.sqlite:
            return create_async_engine(self.url, pool_pre_ping=True, pool_size=4)
        engine = create_async_engine(
            self.url,
            pool_size=4 if readonly else 1,
            max_overflow=0,
            # SQLite waits for the lock itself; a queue of writers inside one process waits here.
            pool_timeout=60,
            connect_args={"timeout": 30},
        )
        begin = "BEGIN" if readonly else "BEGIN IMMEDIATE"

        @event.listens_for(engine.sync_engine, "connect")
        def _connect(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # the driver must not begin transactions of its own
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            # FULL: an acknowledged commit survives a power cut, not only a killed process.
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
            if readonly:
                cursor.execute("PRAGMA query_only=ON")
            cursor.close()

        @event.listens_for(engine.sync_engine, "begin")
        def _begin(connection: Any) -> None:
            connection.exec_driver_sql(begin)

        return engine

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncSession]:
        """A session for queries. Objects stay usable after it ends."""
        async with AsyncSession(self._reader, expire_on_commit=False, autoflush=False) as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncSession]:
        """One transaction; durable when the block has ended, undone if it raises."""
        async with (
            AsyncSession(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @asynccontextmanager
    async def write_connection(self) -> AsyncGenerator[AsyncConnection]:
        """Like `write()`, without the session's bookkeeping: for the manager's group commit."""
        async with self._writer.begin() as connection:
            yield connection

    def data_version(self) -> int | None:
        """A number that changes when any other process or connection has committed; None if unknown.

        Costs microseconds, so a cache of reads can be exact: it is valid while the number stands still.
        """
        if not self.sqlite:
            return None
        if self._watch is None:
            path = make_url(self.url).database or ""
            self._watch = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)
        return int(self._watch.execute("PRAGMA data_version").fetchone()[0])

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        await self._reader.dispose()
        await self._writer.dispose()
