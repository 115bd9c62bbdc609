"""How a batch of statements becomes one transaction, fenced by the writer's epoch.

On SQLite a thread of its own holds a connection, so that a batch costs one hop to it, not one for each statement.
Other databases have a real asynchronous driver.
"""

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from sqlalchemy import Connection, Executable, Select, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from fleet.errors import Fenced
from fleet.store.engine import Store
from fleet.store.rows import WORTHWHILE, execute_rows
from fleet.store.tables import RegionEpoch
from fleet.store.trouble import OutcomeUnknown, lost_on_disk

Statement = tuple[Executable, dict[str, Any] | list[dict[str, Any]] | None]


class Transactions(Protocol):
    """`Fenced` if another writer has the region. After `OutcomeUnknown` it may have been written; after any other error
    nothing was."""

    async def run(self, statements: Iterable[Statement]) -> None: ...
    async def close(self) -> None: ...


def transactions_of(store: Store, region: str, epoch: int) -> Transactions:
    return ThreadTransactions(store, region, epoch) if store.sqlite else AsyncTransactions(store, region, epoch)


class ThreadTransactions:
    """One thread, one connection, one call for each transaction."""

    def __init__(self, store: Store, region: str, epoch: int) -> None:
        self._region = region
        self._epoch = epoch
        self._query = _epoch_of(region)
        self._engine = store.thread_engine()
        self._connection: Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"commit-{region}")

    async def run(self, statements: Iterable[Statement]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, statements)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown()
        self._engine.dispose()

    def _transaction(self, statements: Iterable[Statement]) -> None:
        connection = self._connection or self._engine.connect()
        self._connection = connection
        try:
            with connection.begin():
                _check(self._region, connection.execute(self._query).scalar_one(), self._epoch)
                for statement, values in statements:
                    if isinstance(values, list) and len(values) >= WORTHWHILE:
                        execute_rows(connection, statement, values)
                    else:
                        connection.execute(statement, values)
        except BaseException as error:  # whatever state it is in, the next transaction begins with a new connection
            self._disconnect(broken=True)
            if lost_on_disk(error):
                raise OutcomeUnknown(f"The disk refused a commit: {error!r}") from error
            raise

    def _disconnect(self, *, broken: bool = False) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if broken:
                connection.invalidate()
            connection.close()


class AsyncTransactions:
    def __init__(self, store: Store, region: str, epoch: int) -> None:
        self._store = store
        self._region = region
        self._epoch = epoch

    async def run(self, statements: Iterable[Statement]) -> None:
        async with self._store.write_connection() as connection:
            await fence(connection, self._region, self._epoch)
            for statement, values in statements:
                await connection.execute(statement, values)

    async def close(self) -> None:
        """The store's own connections stay with the store."""


async def fence(connection: AsyncConnection, region: str, epoch: int) -> None:
    """Fenced if another writer has come. On PostgreSQL none can come before the commit: the row is locked."""
    locked = await connection.execute(_epoch_of(region).with_for_update(read=True))
    _check(region, locked.scalar_one(), epoch)


def _epoch_of(region: str) -> Select[int]:
    return select(col(RegionEpoch.epoch)).where(col(RegionEpoch.region) == region)


def _check(region: str, found: int, mine: int) -> None:
    if found != mine:
        raise Fenced(f"Region {region} is written by epoch {found}; this writer had {mine}.")
