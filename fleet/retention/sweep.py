"""The job that lets go of what is too old: one pass over all projects, in portions with pauses between them.

A portion is one short transaction of at most `rows_at_once` rows that checks the job's lease, so that no two delete at
once. The pause after it is at least four times as long as it took: whatever the disk, managers and replicas have the
database four fifths of the time. A pass that is cut short loses nothing; the next one goes on.

A server goes after its events, and its events only once usage has been counted from them (`fleet/billing/ledger.py`):
what is billed never changes by what is forgotten here. Hours of usage become days of usage, with the same sums.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Any, cast

import structlog
from sqlalchemy import CursorResult, delete, tuple_
from sqlalchemy import select as columns_of
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from fleet.billing import ledger
from fleet.billing.ledger import add_usage, position_of_usage
from fleet.billing.usage import Cell, Usage
from fleet.events.kept import JOB, Kept
from fleet.events.model import Position
from fleet.events.read import past
from fleet.jobs import Lease
from fleet.projects.scope import owned
from fleet.retention.rules import DAY_MS, Rule, cutoff, rules_of
from fleet.settings import RetentionSettings
from fleet.store.engine import Store
from fleet.store.space import FREE_PAGES_KEPT, PAGES_AT_ONCE, give_back
from fleet.store.tables import Job, Project, ProjectEvent, Server, ServerEvent, UsageHour, ended
from fleet.times import now_ms

log = structlog.get_logger(__name__)

SHARE = 4  # a pause is so many times as long as the portion before it
_SERVERS_AT_ONCE = 50

Portion = Callable[[AsyncSession], Awaitable[int]]


class Retention:
    """`work` is the job's."""

    def __init__(self, store: Store, settings: RetentionSettings, now: Callable[[], int] = now_ms) -> None:
        self._store = store
        self._settings = settings
        self._now = now

    async def work(self, lease: Lease) -> None:
        """One pass over everything."""
        await _Pass(self._store, self._settings, lease, self._now()).run()


class _Pass:
    def __init__(self, store: Store, settings: RetentionSettings, lease: Lease, now: int) -> None:
        self._store = store
        self._settings = settings
        self._lease = lease
        self._now = now
        self._gone: Counter[str] = Counter()

    async def run(self) -> None:
        async with self._store.read() as session:
            projects = (await session.exec(select(Project.id).order_by(col(Project.id)))).all()
        for project_id in projects:
            for rule in rules_of(self._settings, project_id, self._now):
                await self._all(rule.name, lambda session, rule=rule: self._by_rule(session, rule))
            await self._servers(project_id)
            await self._project_events(project_id)
            await self._usage(project_id)
        pages = await self._give_back()
        if self._gone:
            log.info("history_forgotten", pages_given_back=pages, **self._gone)

    async def _all(self, name: str, portion: Portion) -> None:
        """Portions until one finds nothing more."""
        while (rows := await self._one(portion)) > 0:
            self._gone[name] += rows

    async def _one(self, portion: Portion) -> int:
        began = time.monotonic()
        async with self._store.write() as session:
            await self._lease.check(session)
            rows = await portion(session)
        took = time.monotonic() - began
        await asyncio.sleep(max(self._settings.pause_s, SHARE * took) if rows else 0)
        return rows

    async def _by_rule(self, session: AsyncSession, rule: Rule) -> int:
        some: Any = columns_of(*rule.keys).where(*rule.conditions).limit(self._settings.rows_at_once)
        return await _rows(session, delete(rule.table).where(rule.key.in_(some)))

    # Servers and their events -------------------------------------------------------------------------------------

    async def _servers(self, project_id: str) -> None:
        old = cutoff(self._settings.servers_days, self._now)
        if old is None:
            return
        after = (0, "")
        while names := await self._ended(project_id, old, after):
            after = names[-1]
            billed = await self._billed([name for _, name in names])
            if billed:
                await self._all("server_event", lambda session, billed=billed: self._events_of(session, billed))
                self._gone["server"] += await self._one(lambda session, billed=billed: self._rows_of(session, billed))

    async def _ended(self, project_id: str, old: int, after: tuple[int, str]) -> list[tuple[int, str]]:
        """(when it stopped, id) of the next that ended before that time, the oldest first."""
        place = tuple_(col(Server.stopped_at), col(Server.instance_id))
        query = owned(Server, project_id).where(ended(), col(Server.stopped_at) < old, place > after)
        query = query.where(col(Server.stopped_at) >= after[0])  # for the index
        some: Any = query.with_only_columns(col(Server.stopped_at), col(Server.instance_id))
        ordered = some.order_by(col(Server.stopped_at), col(Server.instance_id)).limit(_SERVERS_AT_ONCE)
        async with self._store.read() as session:
            rows: list[Any] = list((await (await session.connection()).execute(ordered)).all())
        return [(int(stopped), str(name)) for stopped, name in rows]

    async def _billed(self, names: list[str]) -> list[str]:
        """Those of which every event has been counted. The others' turn comes once the ledger has caught up."""
        async with self._store.read() as session:
            counted = position_of_usage(await session.get(Job, ledger.JOB))
            unread = past(self._store, ServerEvent, counted)
            query = select(ServerEvent.instance_id).where(col(ServerEvent.instance_id).in_(names), unread)
            left = set((await session.exec(query.distinct())).all())
        return [name for name in names if name not in left]

    async def _events_of(self, session: AsyncSession, names: Collection[str]) -> int:
        query = select(ServerEvent.id, ServerEvent.tx).where(col(ServerEvent.instance_id).in_(names))
        found = (await session.exec(query.limit(self._settings.rows_at_once))).all()
        await self._forget(session, ServerEvent, [Position(tx or 0, number or 0) for number, tx in found])
        return len(found)

    async def _rows_of(self, session: AsyncSession, names: Collection[str]) -> int:
        return await _rows(session, delete(Server).where(col(Server.instance_id).in_(names), ended()))

    async def _forget(self, session: AsyncSession, table: Any, places: list[Position]) -> None:
        """Delete entries of a journal, and note up to where some are missing now, in one transaction."""
        if not places:
            return
        await session.exec(delete(table).where(col(table.id).in_([place.id for place in places])))
        kept = Kept.of(self._lease.state).without(table is ServerEvent, max(places))
        await self._lease.save(session, self._lease.position, self._lease.state | kept.state())

    # Project events, usage ----------------------------------------------------------------------------------------

    async def _project_events(self, project_id: str) -> None:
        old = cutoff(self._settings.events_days, self._now)
        if old is not None:
            await self._all("project_event", lambda session: self._oldest_events(session, project_id, old))

    async def _oldest_events(self, session: AsyncSession, project_id: str, old: int) -> int:
        """The oldest are looked at in the order of their ids, which is that of their times but for moments."""
        query = select(ProjectEvent.id, ProjectEvent.tx, ProjectEvent.at).where(
            col(ProjectEvent.project_id) == project_id
        )
        oldest = (await session.exec(query.order_by(col(ProjectEvent.id)).limit(self._settings.rows_at_once))).all()
        places = [Position(tx or 0, number or 0) for number, tx, at in oldest if at < old]
        await self._forget(session, ProjectEvent, places)
        return len(places)

    async def _usage(self, project_id: str) -> None:
        old = cutoff(self._settings.usage_hours_days, self._now)
        if old is not None:
            whole = old - old % DAY_MS
            await self._all("usage_hour", lambda session: self._fold(session, project_id, whole))

    async def _fold(self, session: AsyncSession, project_id: str, before: int) -> int:
        """Hours of old days become part of their day's first hour."""
        hours = owned(UsageHour, project_id).where(col(UsageHour.hour) < before, col(UsageHour.hour) % DAY_MS != 0)
        found = (await session.exec(hours.limit(self._settings.rows_at_once))).all()
        days: Usage = Counter()
        for row in found:
            kind: Any = row.kind
            days[Cell(row.hour - row.hour % DAY_MS, row.region, row.compute_size, kind)] += row.ms
            await session.delete(row)
        await session.flush()
        await add_usage(self._store, session, project_id, days)
        return len(found)

    # Space --------------------------------------------------------------------------------------------------------

    async def _give_back(self) -> int:
        """SQLite: free pages go back to the file system, a few at a time; how many went."""
        given, more = 0, self._store.file is not None
        while more:
            began = time.monotonic()
            assert self._store.file is not None
            pages, left = await asyncio.to_thread(give_back, self._store.file, FREE_PAGES_KEPT, PAGES_AT_ONCE)
            given, more = given + pages, pages > 0 and left > 0
            await asyncio.sleep(max(self._settings.pause_s, SHARE * (time.monotonic() - began)))
        return given


async def _rows(session: AsyncSession, statement: Any) -> int:
    found = cast("CursorResult[Any]", await session.exec(statement))  # pyright: ignore
    return found.rowcount


__all__ = ["JOB", "Retention"]
