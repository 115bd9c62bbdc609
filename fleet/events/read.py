"""Reading the journals in an order in which nothing appears behind a reader's back.

On SQLite writers take turns, so ids appear in order. On PostgreSQL a transaction may draw a low id and commit after one
that drew a higher. There each entry carries its transaction's number; entries are read in the order of those, and only
of transactions older than every one that still runs (`pg_snapshot_xmin`): no other can come to be before them.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any, cast

from sqlalchemy import text, tuple_
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from fleet.events.model import Cursor, Event, Position, of_project, of_server
from fleet.projects.scope import owned
from fleet.store.engine import Store
from fleet.store.tables import ProjectEvent, ServerEvent

PAGE = 500
_EARLIER_MS = 3_600_000  # clocks differ, and a transaction takes its time
_MAX_ID = 2**63 - 1
_XMIN = text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")

Model = type[ServerEvent] | type[ProjectEvent]


async def horizon(store: Store, session: AsyncSession) -> Cursor:
    """Up to where this session's snapshot may be read."""
    if store.sqlite:
        newest = [(await session.exec(select(func.max(model.id)))).one() or 0 for model in (ServerEvent, ProjectEvent)]
        return Cursor(Position(0, newest[0]), Position(0, newest[1]))
    oldest_running = (await (await session.connection()).execute(_XMIN)).scalar_one()
    settled = Position(oldest_running - 1, _MAX_ID)
    return Cursor(settled, settled)


def between(store: Store, model: Model, query: SelectOfScalar[Any], after: Position, until: Position) -> Any:
    """Of `query`, the entries after one position up to another, in their order."""
    query = query.where(past(store, model, after))
    if store.sqlite:
        return query.where(col(model.id) <= until.id).order_by(col(model.id))
    place = tuple_(col(model.tx), col(model.id))
    return query.where(place <= until).order_by(col(model.tx), col(model.id))


def past(store: Store, model: Model, place: Position) -> Any:
    """Condition: the entry lies after that place."""
    if store.sqlite:
        return col(model.id) > place.id
    return tuple_(col(model.tx), col(model.id)) > place


async def since_about(session: AsyncSession, at: int) -> Cursor:
    """A place from which on everything of that time and later is read, and little of what was before. Found by halving:
    entries have no index of their time, and a walk over all of them may take minutes."""
    places = [await _before(session, model, at - _EARLIER_MS) for model in (ServerEvent, ProjectEvent)]
    return Cursor(*places)


async def _before(session: AsyncSession, model: Model, at: int) -> Position:
    """An entry from before that time, as new as can be, where times rise with ids but for moments."""
    low, high = Position(0, 0), (await session.exec(select(func.max(model.id)))).one() or 0
    while low.id < high:
        middle = (low.id + high + 1) // 2
        query: SelectOfScalar[Any] = select(model).where(col(model.id) >= middle).order_by(col(model.id)).limit(1)
        found = (await session.exec(query)).first()
        if found is None or found.at >= at:
            high = middle - 1
        else:
            low = Position(found.tx or 0, found.id or 0)
            high = max(high, low.id)
    return low


async def read_page(
    store: Store,
    session: AsyncSession,
    after: Cursor,
    until: Cursor,
    projects: Collection[str] | None,
    since: int = 0,
) -> tuple[list[Event], Cursor]:
    """The next entries of both journals (of these projects, from a time on), and where they end: at `until` if there
    are no more."""
    found: list[Event] = []
    ends: list[Position] = []
    for model, start, end in (
        (ServerEvent, after.server, until.server),
        (ProjectEvent, after.project, until.project),
    ):
        wanted = _of_projects(model, projects)
        wanted = wanted.where(col(model.at) >= since) if since else wanted
        query = between(store, model, wanted, start, end).limit(PAGE)
        rows = cast("Sequence[ServerEvent | ProjectEvent]", (await session.exec(query)).all())
        found += [of_server(row) if isinstance(row, ServerEvent) else of_project(row) for row in rows]
        ends.append(Position(rows[-1].tx or 0, rows[-1].id or 0) if len(rows) == PAGE else max(start, end))
    return merged(found), Cursor(*ends)


def _of_projects(model: Model, projects: Collection[str] | None) -> SelectOfScalar[Any]:
    if projects is None:
        return select(model)
    if len(projects) == 1:
        return owned(model, next(iter(projects)))
    return select(model).where(col(model.project_id).in_(projects))


def merged(events: list[Event]) -> list[Event]:
    """Both journals' entries by time as far as each journal's own order allows."""
    servers = [event for event in events if event.journal == "server"]
    others = [event for event in events if event.journal == "project"]
    found: list[Event] = []
    while servers and others:
        found.append((servers if servers[0].at <= others[0].at else others).pop(0))
    return found + servers + others


async def backlog(store: Store, project_id: str, after: Cursor, until: Cursor) -> AsyncIterator[tuple[Event, Cursor]]:
    """What the project has missed, page by page at the reader's pace; each with the position after it."""
    cursor, more = after, True
    while more:
        async with store.read() as session:
            events, end = await read_page(store, session, cursor, until, (project_id,))
        for event in events:
            cursor = cursor.past(event)
            yield event, cursor
        cursor = cursor.joined(end)
        more = cursor != cursor.joined(until)
