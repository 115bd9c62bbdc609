"""A page of a project's servers, at the same price for a thousand as for a hundred thousand.

The page is read in the order of an index, one status after the other, and one row more than asked for, which says
whether there are more. Where there are none, the total is known without counting. Else it is counted, in the index
alone, up to COUNTED; beyond that, a whole count that is at most FRESH_S old is told, and brought up to what the page
itself shows. So `total` is exact up to COUNTED and some seconds late above.
"""

import time
from typing import Any

from sqlalchemy import literal_column, union_all
from sqlmodel import col, func, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from fleet.projects.scope import count_of, owned
from fleet.servers.model import ListQuery
from fleet.store.engine import Store
from fleet.store.tables import Server

COUNTED = 5_000
FRESH_S = 5.0
_REMEMBERED = 1000

_Filter = tuple[str, tuple[str, ...], bool]  # project, statuses, pool servers too


class Listing:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._totals: dict[_Filter, tuple[float, int]] = {}

    async def page(self, project_id: str, query: ListQuery) -> tuple[list[Server], int]:
        """Newest first, and the number of all that match."""
        statuses = query.statuses or (("running", "launching") if query.include_launching else ("running",))
        which = (project_id, tuple(sorted(set(statuses))), query.include_pool)
        async with self._store.read() as session:
            found = list((await session.exec(_page(which, query))).all())
            servers, more = found[: query.limit], len(found) > query.limit
            seen = query.offset + len(servers)
            if not more and (servers or not query.offset):
                return servers, seen
            total = await self._count(session, which)
            return servers, max(total, seen + more) if servers else min(total, query.offset)

    async def _count(self, session: AsyncSession, which: _Filter) -> int:
        known = self._totals.get(which)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        if known is None:
            number = (await session.exec(_count_up_to(COUNTED + 1, which))).one()
            if number <= COUNTED:
                return number
        else:
            self._remember(which, known[1])  # those who ask while it is counted need not count too
        number = (await session.exec(count_of(_matching(which)))).one()
        if number > COUNTED:
            self._remember(which, number)
        else:
            self._totals.pop(which, None)
        return number

    def _remember(self, which: _Filter, number: int) -> None:
        self._totals.pop(which, None)
        if len(self._totals) >= _REMEMBERED:
            del self._totals[next(iter(self._totals))]
        self._totals[which] = (time.monotonic() + FRESH_S, number)


def _matching(which: _Filter) -> SelectOfScalar[Server]:
    project_id, statuses, with_pool = which
    rows = owned(Server, project_id).where(col(Server.status).in_(statuses))
    if with_pool:
        return rows
    return rows.where(or_(col(Server.is_pool_server).is_(False), col(Server.pool_claimed_at).is_not(None)))


def _page(which: _Filter, query: ListQuery) -> SelectOfScalar[Server]:
    project_id, statuses, with_pool = which
    newest = (col(Server.created_at).desc(), col(Server.instance_id))
    if len(statuses) == 1:
        return _matching(which).order_by(*newest).limit(query.limit + 1).offset(query.offset)
    # Of each status its newest, in the index's order; the page is among them.
    reach = query.offset + query.limit + 1
    each: list[Any] = [_matching((project_id, (status,), with_pool)) for status in statuses]
    parts = [one.with_only_columns(Server.instance_id).order_by(*newest).limit(reach).subquery() for one in each]
    among = union_all(*(select(part.c.instance_id) for part in parts)).subquery()
    rows = owned(Server, project_id).join(among, col(Server.instance_id) == among.c.instance_id)
    return rows.order_by(*newest).limit(query.limit + 1).offset(query.offset)


def _count_up_to(most: int, which: _Filter) -> SelectOfScalar[int]:
    some: Any = _matching(which)
    return select(func.count()).select_from(some.with_only_columns(literal_column("1")).limit(most).subquery())
