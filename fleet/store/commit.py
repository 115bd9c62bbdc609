"""Group commit: what arrives together is one transaction, so that durability costs a batch, not a command.

The writer's order is kept. Each transaction first checks the writer's epoch, so a manager that has been replaced
can change nothing. A database that is away, locked or full is waited for, however long that takes: nothing that was
submitted is lost, and meanwhile `check()` refuses what is new, so that it does not pile up. A commit that can never be
done (the writer is fenced, a statement is wrong), or whose outcome nobody knows, means that memory and disk differ: the
owner must end, and its successor rebuilds from the database.
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

from fleet.actors.tasks import SupervisedTasks
from fleet.errors import Unavailable
from fleet.store.engine import Store
from fleet.store.tables import RegionEpoch
from fleet.store.transact import Statement, Transactions, transactions_of
from fleet.store.trouble import may_pass, retry_s
from fleet.times import now_ms

log = structlog.get_logger(__name__)
Row = TypeVar("Row", bound=SQLModel)
Batch = list[tuple[Sequence[Statement], "asyncio.Future[None]"]]

REFUSE_AFTER_S = 5.0  # what is new is refused while something has waited so long for its commit
CLOSE_S = 10.0  # an orderly end waits so long for a database that is away


async def take_epoch(store: Store, region: str) -> int:
    """Become the one writer of a region: raises its epoch, which fences the writer before. Waits for a database that is
    away for as long as that takes."""
    for failures in itertools.count(1):
        try:
            return await _raise_epoch(store, region)
        except Exception as error:
            if not may_pass(error):
                raise
            log.warning("epoch_not_taken", region=region, failures=failures, error=repr(error))
            await asyncio.sleep(retry_s(failures))
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
    """One queue of statements, one committer task. `on_fatal` is called when a commit can never be done, or may have
    been done without our knowing.

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
        refuse_after_s: float = REFUSE_AFTER_S,
    ) -> None:
        self._transactions = transactions or transactions_of(store, region, epoch)
        self._region = region
        self._epoch = epoch
        self._on_fatal = on_fatal
        self._on_commit = on_commit
        self._refuse_after_s = refuse_after_s
        self._committing_since: float | None = None
        self._waiting_since = 0.0
        self._steady_since = 0
        self._waiting: Batch = []
        self._committing: Batch = []
        self._wake = asyncio.Event()
        self._failed: BaseException | None = None
        self.batches = 0
        self.writes = 0
        self._tasks = SupervisedTasks("commit", region=region)
        self._tasks.keep("commits", self._run)

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

    def steady_since(self) -> int:
        """The end of the last time (ms) in which the database did not take what was written; now, while it lasts."""
        if self._stands_still():
            self._steady_since = now_ms()
        return self._steady_since

    def _stands_still(self) -> bool:
        return self.lag_s() > self._refuse_after_s

    def check(self) -> None:
        """`Unavailable` while the database does not take what was written before. To be asked before anything is
        changed, since what is submitted waits in memory until it is on disk."""
        if self._stands_still() or self._failed is not None:
            raise Unavailable("The database does not answer now, so nothing was changed. Try again.")

    async def flush(self) -> None:
        """Return once everything queued so far is on disk."""
        await self.submit(())

    async def close(self) -> None:
        """Write what waits, then end. `Unavailable` if the database has not taken it within `CLOSE_S`."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        except TimeoutError:
            left = sum(len(statements) for statements, _ in self._committing + self._waiting)
            log.error("commits_left", region=self._region, statements=left)
            raise Unavailable(f"The database does not answer: {left} statements were not written.") from None
        finally:
            await self._tasks.close()
            await self._transactions.close()

    async def _run(self) -> None:
        while self._failed is None:
            if not self._committing:
                await self._wake.wait()
                self._wake.clear()
                self._committing, self._waiting = self._waiting, []
                self._committing_since = self._waiting_since
            began = time.perf_counter()
            statements = [s for statements, _ in self._committing for s in statements]
            try:
                await self._commit(statements)
            except Exception as error:
                self._fail(error)
                return
            self.steady_since()
            self._committing_since = None
            done, self._committing = self._committing, []
            for _, future in done:
                if not future.done():
                    future.set_result(None)
            if statements:
                self.batches += 1
                self.writes += len(statements)
                self._on_commit(time.perf_counter() - began, len(statements))

    def _fail(self, error: Exception) -> None:
        """What waits now or comes later is not written either: its order would be lost."""
        log.error("commit_failed_for_good", region=self._region, epoch=self._epoch, error=repr(error))
        self._failed = error
        for _, future in self._committing + self._waiting:
            if not future.done():
                future.set_exception(error)
        self._committing, self._waiting = [], []
        self._on_fatal(error)

    async def _commit(self, statements: list[Statement]) -> None:
        if not statements:
            return
        for failures in itertools.count(1):
            try:
                return await self._transactions.run(statements)
            except Exception as error:
                if not may_pass(error):
                    raise
                log.warning("commit_tried_again", region=self._region, failures=failures, error=repr(error))
            await asyncio.sleep(retry_s(failures))


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
