"""The database: SQLite in WAL mode by default, PostgreSQL by URL.

Reading and writing are different doors, so that a read can never hold the write lock: `read()` gives a session
that cannot write and sees one state of the database, `write()` one transaction that is committed (and on disk) when
the block ends. `write()`s come one after the other on both databases, so what a block has read holds until its end.
"""

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import orjson
from sqlalchemy import Dialect, Engine, String, create_engine, event, text
from sqlalchemy.dialects.postgresql.asyncpg import AsyncpgString
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlmodel import Session
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from fleet.store import trouble
from fleet.store.trouble import DATABASE_UNAVAILABLE, OutcomeUnknown, may_pass, reaching

Found = TypeVar("Found")

# PostgreSQL has no lock on the whole database as SQLite has; `write()` takes this one instead ("fleet" in ASCII).
WRITE_LOCK = text("SELECT pg_advisory_xact_lock(439956567412)")
_POSTGRES_SETTINGS = {
    "application_name": "fleet",
    "jit": "off",  # our queries are short; compiling one costs more than running it
    "lock_timeout": str(int(trouble.LOCK_WAIT_S * 1000)),
    "idle_in_transaction_session_timeout": str(int(trouble.IDLE_TRANSACTION_S * 1000)),
    # The server, too, lets go of what a client held that has vanished.
    "tcp_user_timeout": str(int(trouble.SILENCE_S * 1000)),
    "tcp_keepalives_idle": str(int(trouble.SILENCE_S)),
}


class _StorableText(AsyncpgString):
    """Text as PostgreSQL can hold it: without NUL, which a game's last words may contain, and lone surrogates."""

    def bind_processor(self, dialect: Dialect) -> Any:
        return _storable


def _storable(value: Any) -> Any:
    if not isinstance(value, str) or (value.isprintable() and value.isascii()):
        return value
    return value.replace("\x00", "\ufffd").encode(errors="replace").decode()


def database_url(given: str) -> URL:
    """The URL for our drivers. `postgres://…?sslmode=require`, as providers write it, is understood."""
    url = make_url(given)
    if url.get_backend_name() not in ("postgres", "postgresql"):
        return url
    query = {("ssl" if name == "sslmode" else name): value for name, value in url.query.items()}
    return url.set(drivername="postgresql+asyncpg", query=query)


def dump_json(value: Any) -> str:
    """Text for a JSON column of SQLite."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # whole numbers beyond 64 bits, lone surrogates
        return json.dumps(value)


class Store:
    """Two connection pools on one database. Cheap to make; connections open on first use."""

    def __init__(self, url: str) -> None:
        self._url = database_url(url)
        self.sqlite = self._url.get_backend_name() == "sqlite"
        self._reader = self._engine(readonly=True)
        self._writer = self._engine(readonly=False)
        self._looker = self._sync_engine(readonly=True, busy_s=0) if self.sqlite else None
        self._watch: sqlite3.Connection | None = None

    def _engine(self, *, readonly: bool) -> AsyncEngine:
        return self._sqlite_engine(readonly) if self.sqlite else self._postgres_engine(readonly)

    def _postgres_engine(self, readonly: bool) -> AsyncEngine:
        # One snapshot for all queries of a read, as SQLite gives it.
        isolation = "REPEATABLE READ" if readonly else "READ COMMITTED"
        settings = _POSTGRES_SETTINGS | {"default_transaction_read_only": "on" if readonly else "off"}
        engine = create_async_engine(
            self._url,
            isolation_level=isolation,
            pool_pre_ping=True,  # the server may have restarted since
            pool_size=4,
            max_overflow=4,
            pool_timeout=trouble.READ_CONNECTION_S if readonly else trouble.LOCK_WAIT_S,
            connect_args={
                "timeout": trouble.CONNECT_S,
                "command_timeout": trouble.STATEMENT_S,
                "server_settings": settings,
            },
        )
        event.listen(engine.sync_engine, "connect", _connected_to_postgres)
        engine.dialect.colspecs = {**engine.dialect.colspecs, String: _StorableText}
        return engine

    def _sqlite_engine(self, readonly: bool) -> AsyncEngine:
        engine = create_async_engine(
            self._url,
            json_serializer=dump_json,
            pool_size=4 if readonly else 1,
            max_overflow=0,
            # SQLite waits for the lock itself; a queue of writers inside one process waits here.
            pool_timeout=trouble.READ_CONNECTION_S if readonly else trouble.LOCK_WAIT_S,
            connect_args={"timeout": trouble.LOCK_WAIT_S},
        )
        _tune_sqlite(engine.sync_engine, readonly=readonly)
        return engine

    def thread_engine(self) -> Engine:
        """For a thread that writes by itself (SQLite only): one connection, without a hop for each statement."""
        return self._sync_engine(readonly=False, busy_s=trouble.LOCK_WAIT_S)

    def _sync_engine(self, *, readonly: bool, busy_s: float) -> Engine:
        engine = create_engine(
            self._url.set(drivername="sqlite"),
            json_serializer=dump_json,
            pool_size=1,
            max_overflow=0,
            connect_args={"timeout": busy_s},
        )
        _tune_sqlite(engine, readonly=readonly)
        return engine

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncSession]:
        """A session for queries. Objects stay usable after it ends."""
        with reaching():
            async with AsyncSession(self._reader, expire_on_commit=False, autoflush=False) as session:
                yield session

    async def first(self, statement: SelectOfScalar[Found]) -> Found | None:
        """The first row of a look-up by index, never of a search: on SQLite it is read here and now, since a hop to
        another thread costs many times what it takes. Where it would have to wait, it does so in another thread."""
        if self._looker is not None:
            try:
                with Session(self._looker, expire_on_commit=False, autoflush=False) as session:
                    return session.exec(statement).first()
            except OperationalError as error:
                if not may_pass(error):
                    raise
        async with self.read() as session:
            return (await session.exec(statement)).first()

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncSession]:
        """One transaction; durable when the block has ended, undone if it raises.

        A database that is locked or does not answer within `trouble.LOCK_WAIT_S` raises an error that `may_pass`.
        """
        with reaching():
            async with AsyncSession(self._writer, expire_on_commit=False) as session, session.begin():
                if not self.sqlite:
                    async with asyncio.timeout(trouble.LOCK_WAIT_S):
                        await (await session.connection()).execute(WRITE_LOCK)
                yield session

    @asynccontextmanager
    async def write_connection(self) -> AsyncGenerator[AsyncConnection]:
        """One transaction without the session's bookkeeping, for the manager's group commit.

        On PostgreSQL it runs beside others: what it relies on, it locks itself. It ends after `trouble.COMMIT_TRY_S`,
        its connection closed. `OutcomeUnknown` if that, or a broken connection, comes during the commit.
        """
        worked = False
        try:
            with reaching():
                async with asyncio.timeout(trouble.COMMIT_TRY_S), self._writer.begin() as connection:
                    yield connection
                    worked = True
        except Exception as error:
            if worked and not self.sqlite:
                raise OutcomeUnknown(f"The connection broke during a commit: {error!r}") from error
            raise

    def data_version(self) -> int | None:
        """A number that changes when any other process or connection has committed; None if unknown.

        Costs microseconds, so a cache of reads can be exact: it is valid while the number stands still.
        """
        return self.glance("PRAGMA data_version")

    def glance(self, query: str, *values: str | int) -> Any:
        """The first column of the first row, read here and now in microseconds: for what is asked at every request.
        None if there is no row, or where that cannot be done (PostgreSQL)."""
        if not self.sqlite:
            return None
        try:
            if self._watch is None:
                path = self._url.database or ""
                self._watch = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False, timeout=0)
            row = self._watch.execute(query, values).fetchone()
        except sqlite3.OperationalError:  # locked against readers too, or its disk is away: a query says which
            self._unwatch()
            return None
        return row[0] if row else None

    def _unwatch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    async def changed(self, timeout_s: float) -> None:
        """Return soon after another process has committed (PostgreSQL: may have), or at the timeout.

        For waits that no process of ours can end by an event. Looking costs microseconds.
        """
        before, deadline = self.data_version(), time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.05 if self.sqlite else 0.5))
            if not self.sqlite or self.data_version() != before:
                return

    @property
    def file(self) -> Path | None:
        """SQLite's; None on PostgreSQL."""
        return Path(self._url.database) if self.sqlite and self._url.database else None

    async def close(self) -> None:
        self._unwatch()
        if self._looker is not None:
            self._looker.dispose()
        await self._reader.dispose()
        await self._writer.dispose()


def _tune_sqlite(engine: Engine, *, readonly: bool) -> None:
    """What every connection to SQLite needs."""
    begin = "BEGIN" if readonly else "BEGIN IMMEDIATE"

    @event.listens_for(engine, "connect")
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

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql(begin)


def _connected_to_postgres(connection: Any, _record: Any) -> None:
    trouble.watch_for_silence(connection.driver_connection)


__all__ = ["DATABASE_UNAVAILABLE", "WRITE_LOCK", "OutcomeUnknown", "Store", "database_url", "dump_json", "may_pass"]
