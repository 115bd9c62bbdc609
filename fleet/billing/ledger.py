"""Usage between the journal and the database: what has ended is kept by the hour, what runs is added when asked.

The aggregator follows the journal once, in its order, and writes how far it is in the transaction of what it found: no
entry is counted twice or left out, wherever it is killed. Everything after its position is computed when asked, in one
snapshot with it, so an answer never depends on how far it is.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, cast

from sqlalchemy import delete
from sqlalchemy import select as columns_of
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from fleet.billing.intervals import HOUR_MS, LIFE, Facts, Interval, Kind, tell
from fleet.billing.usage import Cell, Usage, spread
from fleet.errors import Conflict
from fleet.events.kept import JOB as RETENTION
from fleet.events.kept import Kept, state_of
from fleet.events.model import Position
from fleet.events.read import between, horizon, past
from fleet.jobs import Lease
from fleet.projects.scope import owned
from fleet.store.engine import Store
from fleet.store.tables import Job, Server, ServerEvent, UsageHour

JOB = "usage"
BATCH = 1000
_NAMES = 400  # at once in one IN: SQLite takes 999 parameters in its oldest form
_LIFE = sorted(LIFE)


def _place(entry: ServerEvent) -> Position:
    return Position(entry.tx or 0, entry.id or 0)


def position_of_usage(job: Job | None) -> Position:
    """How far the ledger's job has read the journal of servers."""
    if job is None:
        return Position(0, 0)
    state: dict[str, int] = job.state if job.state is not None else {}
    return Position(state.get("tx", 0), job.position)


# Following the journal -----------------------------------------------------------------------------------------------


async def aggregate(store: Store, lease: Lease, batch: int = BATCH) -> None:
    """Bring UsageHour up to the journal's end. `Fenced` once another replica does it."""
    while await _one_batch(store, lease, batch):
        pass


async def _one_batch(store: Store, lease: Lease, batch: int) -> bool:
    """False once there is nothing more to read now."""
    after = Position(int(lease.state.get("tx", 0)), lease.position)
    async with store.read() as session:
        until = (await horizon(store, session)).server
        query = between(store, ServerEvent, select(ServerEvent).where(col(ServerEvent.type).in_(_LIFE)), after, until)
        entries = cast("Sequence[ServerEvent]", (await session.exec(query.limit(batch))).all())
        end = _place(entries[-1]) if len(entries) == batch else max(after, until)
        names = {entry.instance_id for entry in entries}
        ended = _since(after, await _histories(session, names, end), await _facts(session, names))[0]
    if end != after:
        async with store.write() as session:
            for project_id, usage in _by_project(ended).items():
                await add_usage(store, session, project_id, usage)
            await lease.save(session, end.id, {"tx": end.tx})
    return len(entries) == batch


def _by_project(intervals: Iterable[Interval]) -> dict[str, Usage]:
    found: defaultdict[str, list[Interval]] = defaultdict(list)
    for interval in intervals:
        found[interval.facts.project_id].append(interval)
    return {project_id: spread(mine) for project_id, mine in found.items()}


async def add_usage(store: Store, session: AsyncSession, project_id: str, usage: Usage) -> None:
    """Add to what is kept."""
    insert: Any = sqlite.insert if store.sqlite else postgresql.insert
    keys = ("project_id", "hour", "region", "compute_size", "kind")
    rows = [dict(zip(keys, (project_id, *cell), strict=True)) | {"ms": ms} for cell, ms in sorted(usage.items()) if ms]
    for begin in range(0, len(rows), 100):
        statement = insert(UsageHour).values(rows[begin : begin + 100])
        more = {"ms": col(UsageHour.ms) + statement.excluded.ms}
        await session.exec(statement.on_conflict_do_update(index_elements=keys, set_=more))


async def forget(store: Store, lease: Lease) -> None:
    """Begin anew: the next `aggregate` computes all from the journal. Conflict once retention has deleted a part of it:
    what was used then is only in the sums."""
    async with store.write() as session:
        if Kept.of(state_of(await session.get(Job, RETENTION))).server.id:
            raise Conflict("Usage cannot be computed again: a part of the journal has been deleted by retention.")
        await session.exec(delete(UsageHour))
        await lease.save(session, 0, {"tx": 0})


def _since(
    after: Position, histories: dict[str, list[ServerEvent]], facts: dict[str, Facts]
) -> tuple[list[Interval], list[tuple[Facts, int, Kind]]]:
    """What ended after that position, and what still runs: (what, since, kind)."""
    ended: list[Interval] = []
    running: list[tuple[Facts, int, Kind]] = []
    for name, entries in histories.items():
        if name not in facts:
            continue  # the project and its servers have been deleted meanwhile
        before, _ = tell(facts[name], (entry for entry in entries if _place(entry) <= after))
        run, found = tell(facts[name], (entry for entry in entries if _place(entry) > after), before)
        ended += found
        if run.since is not None:
            running.append((facts[name], run.since, "idle" if run.idle else "used"))
    return ended, running


async def _histories(
    session: AsyncSession, names: Collection[str], until: Position | None
) -> dict[str, list[ServerEvent]]:
    """The whole life of these servers, each in the journal's order, up to a position."""
    found: dict[str, list[ServerEvent]] = {name: [] for name in names}
    for some in _chunks(names):
        query = select(ServerEvent).where(col(ServerEvent.instance_id).in_(some), col(ServerEvent.type).in_(_LIFE))
        for entry in (await session.exec(query)).all():
            if until is None or _place(entry) <= until:
                found[entry.instance_id].append(entry)
    for entries in found.values():
        entries.sort(key=_place)
    return found


async def _facts(session: AsyncSession, names: Collection[str]) -> dict[str, Facts]:
    columns = (Server.instance_id, Server.project_id, Server.region, Server.compute_size, Server.is_pool_server)
    connection = await session.connection()
    found: dict[str, Facts] = {}
    for some in _chunks(names):
        query = columns_of(*map(col, columns)).where(col(Server.instance_id).in_(some))
        for name, *rest in (await connection.execute(query)).all():
            found[str(name)] = Facts(*cast("tuple[str, str, str, bool]", rest))
    return found


def _chunks(names: Collection[str]) -> Iterable[list[str]]:
    ordered = sorted(names)
    return (ordered[begin : begin + _NAMES] for begin in range(0, len(ordered), _NAMES))


# Asking --------------------------------------------------------------------------------------------------------------


async def usage_of(store: Store, project_id: str, start: int, end: int, now: int) -> Usage:
    """The project's usage in [start, end), whole hours, with what runs counted up to `now`."""
    async with store.read() as session:
        after = position_of_usage(await session.get(Job, JOB))
        usage = await _kept(session, project_id, start, end)
        names = await _touched(store, session, project_id, after)
        ended, running = _since(after, await _histories(session, names, None), await _facts(session, names))
        running += await _running(session, project_id, names)
    alive = [Interval(facts, kind, since, max(since, now)) for facts, since, kind in running]
    return usage + spread([*ended, *alive], start, end)


async def _kept(session: AsyncSession, project_id: str, start: int, end: int) -> Usage:
    first = start - start % HOUR_MS
    query = owned(UsageHour, project_id).where(col(UsageHour.hour) >= first, col(UsageHour.hour) < end)
    usage: Usage = Counter()
    for row in (await session.exec(query)).all():
        usage[Cell(row.hour, row.region, row.compute_size, cast(Kind, row.kind))] += row.ms
    return usage


async def _touched(store: Store, session: AsyncSession, project_id: str, after: Position) -> set[str]:
    """Servers of which the journal says more than the aggregator has read. All that this snapshot sees, also what the
    aggregator may not read yet: the rows of running servers are of the same moment."""
    query: SelectOfScalar[Any] = owned(ServerEvent, project_id).where(col(ServerEvent.type).in_(_LIFE))
    query = query.where(past(store, ServerEvent, after))
    names = query.with_only_columns(col(ServerEvent.instance_id)).distinct()
    return {row[0] for row in (await (await session.connection()).execute(names)).all()}


async def _running(session: AsyncSession, project_id: str, told: Collection[str]) -> list[tuple[Facts, int, Kind]]:
    """Servers that run, of which the journal has told nothing since."""
    query = owned(Server, project_id).where(col(Server.status) == "running")
    found: list[tuple[Facts, int, Kind]] = []
    for row in (await session.exec(query)).all():
        if row.instance_id in told or row.started_at is None:
            continue
        facts = Facts(row.project_id, row.region, row.compute_size, row.is_pool_server)
        if row.is_pool_server and row.pool_claimed_at is None:
            found.append((facts, row.started_at, "idle"))
        else:
            found.append((facts, max(row.started_at, row.pool_claimed_at or 0), "used"))
    return found
