"""What became of writes that carry a key. A row is made before the write's effect and completed before its answer.

A row without an answer is under way, and its lease says whose it is. Whoever finds the lease expired (the replica was
killed, or its event loop hung) carries the write out again under the same `op_id`: what it makes has the same ids, and
what commands it sends are one effect with the first ones. Faults (5xx) are not kept, but the `op_id` is, since the
effect may have happened.
"""

from dataclasses import dataclass
from typing import Any, Literal

import structlog
from cryptography.fernet import Fernet
from sqlalchemy import delete, update
from sqlmodel import col, func, select

from fleet.operation import new_id
from fleet.store.engine import Store
from fleet.store.tables import Idempotency
from fleet.times import now_ms

log = structlog.get_logger(__name__)

KEEP_MS = 24 * 3600 * 1000
LEASE_MS = 10_000
RENEW_S = 3.0
MAX_ROWS = 100_000  # of one project; beyond that the oldest are forgotten early
MAX_BODY = 1024 * 1024
_AT_ONCE = 2000


@dataclass(frozen=True, slots=True)
class Ask:
    """A write with a key: whose, which, and a hash of all that it says."""

    scope: str
    key_hash: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Turn:
    """It is ours to carry out. `repeated`: somebody has begun it before."""

    op_id: str
    owner: str
    repeated: bool


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Mismatch(Exception):
    """The key was used for another write."""


class IdempotencyService:
    """Kept answers are sealed: some hold keys that are shown once."""

    def __init__(self, store: Store, cipher: Fernet) -> None:
        self._store = store
        self._cipher = cipher

    async def begin(self, ask: Ask) -> Turn | Answer | None:
        """Our turn, or the answer there is, or None: somebody is at it (`settled` waits). `Mismatch` for another
        write's key."""
        found = await self._store.first(select(Idempotency).where(*_row(ask)))
        if found is not None and (done := self._judge(found, ask)) is not False:
            return done
        async with self._store.write() as session:
            row = await session.get(Idempotency, (ask.scope, ask.key_hash), populate_existing=True)
            if row is not None and row.expires_at > now_ms():
                if (done := self._judge(row, ask)) is not False:
                    return done
                row.owner, row.lease_until = new_id(), now_ms() + LEASE_MS
                return Turn(row.op_id, row.owner, repeated=True)
            if row is not None:
                await session.delete(row)
                await session.flush()
            row = _new(ask, now_ms())
            session.add(row)
            return Turn(row.op_id, row.owner or "", repeated=False)

    def _judge(self, row: Idempotency, ask: Ask) -> Answer | Literal[False] | None:
        """The answer, None if it is under way, False if it is free (or too old to count)."""
        if row.expires_at <= now_ms():
            return False
        if row.fingerprint != ask.fingerprint:
            raise Mismatch
        if row.status is not None:
            return Answer(row.status, row.headers or {}, self._cipher.decrypt(row.body or b""))
        return None if row.lease_until is not None and row.lease_until > now_ms() else False

    async def settled(self, timeout_s: float) -> None:
        """Return when it may be worth to `begin` again."""
        await self._store.changed(timeout_s)

    async def renew(self, ask: Ask, turn: Turn) -> None:
        await self._set(ask, turn, lease_until=now_ms() + LEASE_MS)

    async def finish(self, ask: Ask, turn: Turn, answer: Answer) -> None:
        """Keep the answer for whoever asks again."""
        values = {"status": answer.status, "headers": answer.headers, "body": self._cipher.encrypt(answer.body)}
        await self._set(ask, turn, **values, lease_until=None, owner=None)

    async def release(self, ask: Ask, turn: Turn) -> None:
        """There is no answer to keep: the next may carry it out again."""
        await self._set(ask, turn, lease_until=None, owner=None)

    async def forget(self, ask: Ask, turn: Turn) -> None:
        """It was refused before anything was done: as if it had never come."""
        async with self._store.write() as session:
            await session.exec(delete(Idempotency).where(*_row(ask), col(Idempotency.owner) == turn.owner))

    async def _set(self, ask: Ask, turn: Turn, **values: Any) -> None:
        async with self._store.write() as session:
            mine = (*_row(ask), col(Idempotency.owner) == turn.owner)
            if not (await session.exec(update(Idempotency).where(*mine).values(**values))).rowcount:
                log.warning("idempotent_write_taken_over", op_id=turn.op_id)

    async def expire(self) -> int:
        """Forget what is older than a day, and of each project what is beyond its bound; how many."""
        gone = await self._delete(col(Idempotency.expires_at) < now_ms())
        async with self._store.read() as session:
            counted = select(Idempotency.scope, func.count()).group_by(col(Idempotency.scope))
            full = (await session.exec(counted.having(func.count() > MAX_ROWS))).all()
        for scope, count in full:
            gone += await self._forget_oldest(scope, count - MAX_ROWS)
        return gone

    async def _forget_oldest(self, scope: str, count: int) -> int:
        mine = col(Idempotency.scope) == scope
        async with self._store.read() as session:
            times = select(Idempotency.created_at).where(mine).order_by(col(Idempotency.created_at))
            until = (await session.exec(times.offset(count - 1).limit(1))).first()
        if until is None:
            return 0
        over = col(Idempotency.status).is_not(None) | col(Idempotency.lease_until).is_(None)
        return await self._delete(mine, col(Idempotency.created_at) <= until, over)

    async def _delete(self, *which: Any) -> int:
        """In small transactions, so that no other writer waits long."""
        total = 0
        while True:
            async with self._store.write() as session:
                some = select(Idempotency.scope, Idempotency.key_hash).where(*which).limit(_AT_ONCE)
                rows = (await session.exec(some)).all()
                for scope, key_hash in rows:
                    gone = (col(Idempotency.scope) == scope, col(Idempotency.key_hash) == key_hash)
                    await session.exec(delete(Idempotency).where(*gone))
            total += len(rows)
            if len(rows) < _AT_ONCE:
                return total


def _row(ask: Ask) -> tuple[Any, Any]:
    return col(Idempotency.scope) == ask.scope, col(Idempotency.key_hash) == ask.key_hash


def _new(ask: Ask, now: int) -> Idempotency:
    return Idempotency(
        scope=ask.scope,
        key_hash=ask.key_hash,
        fingerprint=ask.fingerprint,
        op_id=new_id(),
        owner=new_id(),
        lease_until=now + LEASE_MS,
        created_at=now,
        expires_at=now + KEEP_MS,
    )
