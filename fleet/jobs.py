"""Work that one replica does for all of them: aggregating usage, sending webhooks, cleaning up.

A job's row says who has it and until when. Its holder renews that while it works; what it writes it writes with
`Lease.save`, which refuses once another has taken the job. A replica that dies is succeeded when its time has run out.
A round that raises is tried again by whoever runs it (`SupervisedTasks.keep`), later and later, but never later than
the job's own period.
"""

import asyncio
import random
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from fleet.actors.tasks import first_done
from fleet.errors import Fenced
from fleet.store.engine import Store
from fleet.store.tables import Job
from fleet.times import now_ms

log = structlog.get_logger(__name__)

LEASE_MS = 15_000
RETRY_FIRST_S = 1.0  # before the second attempt at a round that failed; then twice as long each time
RELEASE_S = 5.0  # for giving a job back; after that its lease runs out by itself
_LOOK_S = 5.0  # how often another replica looks whether the holder is still there


class Lease:
    """The right to do a job now. `position` and `state` are as the round before left them."""

    def __init__(self, store: Store, name: str, owner: str, position: int, state: dict[str, Any]) -> None:
        self._store = store
        self.name = name
        self.owner = owner
        self.position = position
        self.state: dict[str, Any] = state

    async def save(self, session: AsyncSession, position: int, state: dict[str, Any] | None = None) -> None:
        """How far the job is, in the transaction of what it did. `Fenced` if another has taken it: all is undone."""
        values: dict[str, Any] = {"position": position, "state": self.state if state is None else state}
        await self._update(session, values)
        self.position, self.state = position, values["state"]

    async def check(self, session: AsyncSession) -> None:
        """`Fenced` if another has taken the job; none can until this transaction ends."""
        await self._update(session, {"owner": self.owner})

    async def _update(self, session: AsyncSession, values: dict[str, Any]) -> None:
        mine = (col(Job.name) == self.name, col(Job.owner) == self.owner)
        if not (await session.exec(update(Job).where(*mine).values(values))).rowcount:
            raise Fenced(f"The job {self.name} has been taken over by another replica.")


Work = Callable[[Lease], Coroutine[Any, Any, None]]
Needed = Callable[[Store], Coroutine[Any, Any, bool]]


async def run_leased(
    store: Store,
    name: str,
    work: Work,
    every_s: float,
    *,
    limit_s: float | None = 600.0,
    needed: Needed | None = None,
) -> None:
    """Have `work` done every `every_s` by whichever replica comes first, until cancelled; raises what a round raised.

    `limit_s` bounds a round; None for work that goes on as long as it has the lease. Where `needed` says no, the lease
    is not even taken, which costs two commits.
    """
    while True:
        if needed is None or await needed(store):
            await run_once(store, name, work, every_s, limit_s=limit_s)
        # Soon enough to succeed a dead holder, not all replicas at the same instant.
        await asyncio.sleep(min(every_s, _LOOK_S) * random.uniform(0.8, 1.2))


def retry_most_s(every_s: float) -> float:
    """The longest pause before a round that failed is tried again."""
    return max(every_s, _LOOK_S)


async def run_once(store: Store, name: str, work: Work, every_s: float = 0.0, *, limit_s: float | None = None) -> bool:
    """One round, here and now. False if another has the job, or did it less than `every_s` ago.

    `Fenced` if the lease was lost on the way; the work is cancelled then.
    """
    lease = await _take(store, name, str(uuid.uuid4()), int(every_s * 1000))
    if lease is None:
        return False
    well = False
    try:
        async with asyncio.timeout(limit_s):
            await first_done(work(lease), _renew(store, lease))
        well = True
    finally:
        await asyncio.shield(_release(store, lease, well))
    return True


async def _take(store: Store, name: str, owner: str, every_ms: int) -> Lease | None:
    async with store.read() as session:  # as a rule there is nothing to take, and a look costs no write
        if not _free(await session.get(Job, name), now_ms(), every_ms):
            return None
    async with store.write() as session:
        now = now_ms()
        job = await session.get(Job, name)
        if not _free(job, now, every_ms):
            return None
        if job is None:
            job = Job(name=name, updated_at=0)
            session.add(job)
        job.owner, job.lease_until = owner, now + LEASE_MS
        return Lease(store, name, owner, job.position, dict(job.state or {}))


def _free(job: Job | None, now: int, every_ms: int) -> bool:
    """`updated_at` is when the last round ended well; a clock that went back must not make it wait for ever."""
    if job is None:
        return True
    if job.owner is not None:
        return job.lease_until is None or job.lease_until < now or job.lease_until > now + 2 * LEASE_MS
    return not 0 <= now - job.updated_at < every_ms * 0.9


async def _renew(store: Store, lease: Lease) -> None:
    """`Fenced` when another has the job, or when it could not be renewed for as long as it held."""
    until = now_ms() + LEASE_MS
    while True:
        await asyncio.sleep(LEASE_MS / 3000)
        try:
            now = now_ms()
            async with asyncio.timeout(LEASE_MS / 1000):
                mine = await _change(store, lease, lease_until=now + LEASE_MS)
            until = now + LEASE_MS
        except Exception as error:
            log.warning("job_not_renewed", job=lease.name, error=repr(error))
            mine = now_ms() <= until
        if not mine:
            raise Fenced(f"The job {lease.name} has been taken over by another replica, or may be.")


async def _release(store: Store, lease: Lease, well: bool) -> None:
    """Give the job back. After a failure `updated_at` stays, so that any replica may try again at once."""
    values: dict[str, Any] = {"owner": None, "lease_until": None}
    try:
        async with asyncio.timeout(RELEASE_S):
            await _change(store, lease, **(values | {"updated_at": now_ms()} if well else values))
    except Exception as error:  # it runs out by itself
        log.warning("job_not_released", job=lease.name, error=repr(error))


async def _change(store: Store, lease: Lease, **values: Any) -> bool:
    mine = (col(Job.name) == lease.name, col(Job.owner) == lease.owner)
    async with store.write() as session:
        return bool((await session.exec(update(Job).where(*mine).values(values))).rowcount)


async def position_of(store: Store, name: str) -> Job | None:
    """How far a job is, for those who only look."""
    async with store.read() as session:
        return (await session.exec(select(Job).where(col(Job.name) == name))).first()
