"""Group commit: what arrives together is one transaction, so that durability costs a batch, not a command.

The writer's order is kept. Each transaction first checks the writer's epoch, so a manager that has been replaced
can change nothing. A commit that fails for good means that memory and disk differ: the owner must end, and its
successor rebuilds from the database.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar, cast

import structlog
from sqlalchemy.orm.attributes import instance_dict, manager_of_class
from sqlmodel import SQLModel

from fleet.store.engine import Store
from fleet.store.tables import RegionEpoch
from fleet.store.transact import Statement, Transactions, transactions_of

log = structlog.get_logger(__name__)
Row = TypeVar("Row", bound=SQLModel)


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
        *,
        transactions: Transactions | None = None,
    ) -> None:
        self._store = store
        self._transactions = transactions or transactions_of(store, region, epoch)
        self._region = region
        self._epoch = epoch
        self._on_fatal = on_fatal
        self._on_commit = on_commit
        self._committing_since: float | None = None
        self._waiting_since = 0.0
        self._waiting: list[tuple[Sequence[Statement], asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._failed: BaseException | None = None
        self._task = asyncio.create_task(self._run())
        self.batches = 0
        self.writes = 0

    def submit(self, statements: Sequence[Statement]) -> asyncio.Future[None]:
        """Queue statements; the future is done once they are on disk. Whether somebody awaits it changes nothing."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._failed is not None:
            future.set_exception(self._failed)
            return future
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
        """Write what waits, then end."""
        try:
            await self.flush()
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._transactions.close()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            self._committing_since = self._waiting_since
            try:
                await self._commit([s for statements, _ in batch for s in statements])
            except Exception as error:
                self._fail(error, [future for _, future in batch])
                return
            self._committing_since = None
            for _, future in batch:
                if not future.done():
                    future.set_result(None)

    def _fail(self, error: Exception, futures: list[asyncio.Future[None]]) -> None:
        """What waits now or comes later is not written either: its order would be lost."""
        log.error("commit failed for good", region=self._region, epoch=self._epoch, error=repr(error))
        self._failed = error
        for future in futures + [future for _, future in self._waiting]:
            if not future.done():
                future.set_exception(error)
        self._waiting = []
        self._on_fatal(error)

    async def _commit(self, statements: list[Statement]) -> None:
        if not statements:
            return
        began = time.perf_counter()
        for attempt in itertools.count():
            try:
                await self._transactions.run(statements)
            except Exception as error:
                await self._store.pause(error, attempt)
                log.warning("commit is tried again", region=self._region, error=repr(error))
            else:
                self.batches += 1
                self.writes += len(statements)
                self._on_commit(time.perf_counter() - began, len(statements))
                return


@cache
def _columns(table: type[Any]) -> tuple[str, ...]:
    return tuple(column.name for column in table.__table__.columns)


def row_values(row: Any) -> dict[str, Any]:
    """Every column of a table object."""
    return {name: getattr(row, name) for name in _columns(cast("type[Any]", type(row)))}


def row_of(table: type[Row], values: dict[str, Any]) -> Row:
    """The reverse, for values that came from a row: made as a query makes its objects, at a tenth of the cost of the
    class's own checks."""
    row = manager_of_class(table).new_instance()
    instance_dict(row).update(values)
    return row


__all__ = ["GroupCommit", "Statement", "row_of", "row_values", "take_epoch"]
