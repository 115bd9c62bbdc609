"""Group commit: what arrives together is one transaction, so that durability costs a batch, not a command.

The writer's order is kept. Each transaction first checks the writer's epoch, so a manager that has been replaced
can change nothing. A commit that fails for good means that memory and disk differ: the owner must end, and its
successor rebuilds from the database.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from sqlalchemy import Column, Executable, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from fleet.errors import Fenced
from fleet.store.engine import Store
from fleet.store.tables import RegionEpoch

log = structlog.get_logger(__name__)

Statement = tuple[Executable, dict[str, Any] | list[dict[str, Any]] | None]


async def take_epoch(store: Store, region: str) -> int:
    """Become the one writer of a region: raises its epoch, which fences the writer before."""
    for attempt in itertools.count():
        try:
            return await _raise_epoch(store, region)
        except Exception as error:
            await store.pause(error, attempt)
    raise AssertionError("unreachable")


async def _raise_epoch(store: Store, region: str) -> int:
    async with store.write() as session:
        row = await session.get(RegionEpoch, region)
        if row is None:
            row = RegionEpoch(region=region, epoch=0)
            session.add(row)
        row.epoch += 1
        return row.epoch


def _unheard(_seconds: float, _statements: int) -> None:
    """Nobody counts the commits."""


class GroupCommit:
    """One queue of statements, one committer task. `on_fatal` is called when a commit cannot be done.

    `on_commit(seconds, statements)` hears of each that is done.
    """

    def __init__(
        self,
        store: Store,
        region: str,
        epoch: int,
        on_fatal: Callable[[BaseException], None],
        on_commit: Callable[[float, int], None] = _unheard,
    ) -> None:
        self._store = store
        self._region = region
        self._epoch = epoch
        self._on_fatal = on_fatal
        self._on_commit = on_commit
        self._committing_since: float | None = None
        self._waiting_since = 0.0
        self._waiting: list[tuple[Sequence[Statement], asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        self.batches = 0
        self.writes = 0

    def submit(self, statements: Sequence[Statement]) -> asyncio.Future[None]:
        """Queue statements; the future is done once they are on disk."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._waiting_since = time.monotonic()
        self._waiting.append((statements, future))
        self._wake.set()
        return future

    def lag_s(self) -> float:
        """How long the oldest statement has waited for its commit; 0 if none does."""
        if self._committing_since is not None:
            return time.monotonic() - self._committing_since
        return time.monotonic() - self._waiting_since if self._waiting else 0.0

    async def flush(self) -> None:
        """Return once everything queued so far is on disk."""
        await self.submit(())

    async def close(self) -> None:
        await self.flush()
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            self._committing_since = self._waiting_since
            try:
                await self._commit([s for statements, _ in batch for s in statements])
            except Exception as error:
                log.error(
                    "commit failed for good",
                    region=self._region,
                    epoch=self._epoch,
                    error=repr(error),
                )
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                self._on_fatal(error)
                return
            self._committing_since = None
            for _, future in batch:
                if not future.done():
                    future.set_result(None)

    async def _commit(self, statements: list[Statement]) -> None:
        if not statements:
            return
        began = time.perf_counter()
        for attempt in itertools.count():
            try:
                await self._transaction(statements)
            except Exception as error:
                await self._store.pause(error, attempt)
                log.warning("commit is tried again", region=self._region, error=repr(error))
            else:
                self.batches += 1
                self.writes += len(statements)
                self._on_commit(time.perf_counter() - began, len(statements))
                return

    async def _transaction(self, statements: list[Statement]) -> None:
        async with self._store.write_connection() as connection:
            await self._fence(connection)
            for statement, values in statements:
                await connection.execute(statement, values)

    async def _fence(self, connection: AsyncConnection) -> None:
        """Fenced if another writer has come. On PostgreSQL none can come before the commit: the row is locked."""
        row = select(col(RegionEpoch.epoch)).where(col(RegionEpoch.region) == self._region)
        found = (await connection.execute(row.with_for_update(read=True))).scalar_one()
        if found != self._epoch:
            raise Fenced(f"Region {self._region} is written by epoch {found}; this writer had {self._epoch}.")


def row_values(row: Any) -> dict[str, Any]:
    """Every column of a table object."""
    columns: list[Column[Any]] = [*type(row).__table__.columns]
    return {column.name: getattr(row, column.name) for column in columns}


__all__ = ["GroupCommit", "Statement", "row_values", "take_epoch"]
