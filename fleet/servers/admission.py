"""Starts that must be counted: of a plan with a limit of servers, or of a match that may have one server only.

A start becomes a row in its region's manager, a while after it was allowed here. What is allowed meanwhile must know
of it, over all replicas and regions. So each such start first leaves a note in the database, in a transaction that
comes after all others of its kind:

  StartReservation   counts as a server until its row is there, or it is so old that none can come any more
  MatchStart         names the id and the region of the match's server; every further start of the match takes both,
                     and the region's manager makes one server of one id, however often it is asked

Starts that need neither pay nothing.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy import delete
from sqlmodel import col, exists, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from fleet.projects.plans import Plan, check_count
from fleet.projects.scope import count_of, owned
from fleet.store.engine import Store
from fleet.store.tables import MatchStart, Server, StartReservation
from fleet.times import now_ms

if TYPE_CHECKING:
    from fleet.servers.wanted import Wanted

# Twice as long as a replica waits for a region's answer: no row comes of a reservation that is older.
PENDING_MS = 120_000


@dataclass(frozen=True, slots=True)
class Admitted:
    """`server`: the match has it already. Else `wanted` is to be started, with the id and region it has now."""

    wanted: "Wanted"
    server: Server | None = None


class Admission:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def admit(self, wanted: "Wanted", plan: Plan) -> Admitted:
        """Leave the notes for this start. Conflict if the plan has no room for one more server."""
        if wanted.once and (server := await self._match_server(wanted)) is not None:
            return Admitted(wanted, server)
        if plan.max_servers is not None:  # most refusals need no turn among the writers
            async with self._store.read() as session:
                check_count(plan, (await session.exec(count_of(_live(wanted)))).one())
        async with self._store.write() as session:
            if wanted.once:
                match = (await session.exec(_match(wanted))).first()
                for query in _servers_of(match) if match is not None else ():
                    if (server := (await session.exec(query)).first()) is not None:
                        return Admitted(wanted, server)
                wanted = _join(session, wanted, match)
            if plan.max_servers is not None:
                await _reserve(session, wanted, plan)
        return Admitted(wanted)

    async def _match_server(self, wanted: "Wanted") -> Server | None:
        match = await self._store.first(_match(wanted))
        for query in _servers_of(match) if match is not None else ():
            if (server := await self._store.first(query)) is not None:
                return server
        return None

    async def became(self, wanted: "Wanted", server: Server) -> None:
        """The start has its server. A warm one has an id of its own, which takes the place of the one noted."""
        if server.instance_id == wanted.instance_id:
            return  # its row is all that is needed
        async with self._store.write() as session:
            await session.exec(_reservation(wanted))
            if wanted.once and (match := (await session.exec(_match(wanted))).first()) is not None:
                match.instance_id = server.instance_id

    async def failed(self, wanted: "Wanted") -> None:
        """The region has refused for certain: what was noted for this start alone is taken back."""
        async with self._store.write() as session:
            if wanted.once and (match := (await session.exec(_match(wanted))).first()) is not None:
                match.holders -= 1
                if match.holders > 0:
                    return  # others may be making the same server now
                await session.delete(match)
            await session.exec(_reservation(wanted))


def _join(session: AsyncSession, wanted: "Wanted", match: MatchStart | None) -> "Wanted":
    if match is not None:
        match.holders += 1
        return replace(wanted, instance_id=match.instance_id, region=match.region)
    session.add(
        MatchStart(
            project_id=wanted.project_id,
            match_id=wanted.request.match_id or "",
            instance_id=wanted.instance_id,
            region=wanted.region,
            created_at=now_ms(),
        )
    )
    return wanted


async def _reserve(session: AsyncSession, wanted: "Wanted", plan: Plan) -> None:
    now = now_ms()
    mine = owned(StartReservation, wanted.project_id).where(
        col(StartReservation.instance_id) != wanted.instance_id,
        col(StartReservation.at) > now - PENDING_MS,
        ~exists(select(Server.instance_id).where(col(Server.instance_id) == col(StartReservation.instance_id))),
    )
    # One statement, so one state of the database: in two, a row that is committed in between would count never.
    both = count_of(_live(wanted)).scalar_subquery() + count_of(mine).scalar_subquery()
    check_count(plan, (await session.exec(select(both))).one())
    gone = (col(StartReservation.project_id) == wanted.project_id, col(StartReservation.at) <= now - PENDING_MS)
    await session.exec(delete(StartReservation).where(*gone))
    await session.merge(StartReservation(instance_id=wanted.instance_id, project_id=wanted.project_id, at=now))


def _live(wanted: "Wanted") -> SelectOfScalar[Server]:
    """The project's other servers, without idle pool servers."""
    return owned(Server, wanted.project_id).where(
        col(Server.status).in_(("launching", "running")),
        or_(col(Server.is_pool_server).is_(False), col(Server.pool_claimed_at).is_not(None)),
        col(Server.instance_id) != wanted.instance_id,
    )


def _match(wanted: "Wanted") -> SelectOfScalar[MatchStart]:
    return owned(MatchStart, wanted.project_id).where(col(MatchStart.match_id) == wanted.request.match_id)


def _servers_of(match: MatchStart) -> tuple[SelectOfScalar[Server], ...]:
    """The server that the match has: of the id noted, or the warm one that was claimed for it before a crash. Each
    question has its index; for both in one there is none."""
    mine = owned(Server, match.project_id)
    return (
        mine.where(col(Server.instance_id) == match.instance_id),
        mine.where(col(Server.last_op) == match.instance_id, col(Server.match_id) == match.match_id),
    )


def _reservation(wanted: "Wanted"):
    return delete(StartReservation).where(
        col(StartReservation.project_id) == wanted.project_id,
        col(StartReservation.instance_id) == wanted.instance_id,
    )
