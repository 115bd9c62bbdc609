"""How a project's servers are drained, and how a project ends.

Both are jobs of the table `Job`, named `project:<id>`, that any replica carries on where another died:

  drain    stop its servers
  delete   wait until its servers have ended, or stop them when the grace is over; wait for its builds' pipelines;
           export everything to `exports/<id>.zip`; say in the job that this is done; delete the rows, in portions

The row of the project itself stays, without settings and plan: journals of other nouns may still speak of it, and a
server that was on its way into the database meanwhile is found by it, and stopped too.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

import structlog
from sqlalchemy import delete, inspect, update
from sqlmodel import SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from fleet.actors.tasks import SupervisedTasks
from fleet.errors import FleetError
from fleet.faults import crash_point
from fleet.jobs import Lease, run_once
from fleet.projects.export import export_project
from fleet.projects.scope import owned
from fleet.projects.service import project_of, touch
from fleet.store.engine import Store
from fleet.store.lobby_tables import Lobby, Match, PlayerRating
from fleet.store.tables import (
    ApiKey,
    Budget,
    Build,
    BuildLog,
    Idempotency,
    Job,
    MatchStart,
    PoolMemory,
    PoolMinute,
    Project,
    ProjectEvent,
    Secret,
    Server,
    ServerEvent,
    StartReservation,
    Webhook,
    WebhookDelivery,
    live,
)
from fleet.times import now_ms

log = structlog.get_logger(__name__)

What = Literal["drain", "delete"]
REASONS: dict[What, tuple[str, str]] = {
    "drain": ("requested", "The project is suspended."),
    "delete": ("requested", "The project is deleted."),
}
PREFIX = "project:"
# What refers to others comes before them. Usage stays: what was used is on the books, and so does the audit log.
_ROWS: tuple[type[SQLModel], ...] = (
    ApiKey,
    Secret,
    WebhookDelivery,
    Webhook,
    ServerEvent,
    Server,
    Build,
    ProjectEvent,
    PoolMinute,
    PoolMemory,
    Budget,
    MatchStart,
    StartReservation,
    Lobby,
    Match,
    PlayerRating,
)
ROUND_S = 3600.0  # one round of one project at most, its export included; the next goes on with it
_PORTION = 2000
_AT_ONCE = 16
_LOOK_S, _LOOKS = 1.0, 60


class Stopper(Protocol):
    """The part of the regions that this needs."""

    async def stop(self, region: str, instance_id: str, reason: str, detail: str | None) -> Server: ...


async def begin_ending(session: AsyncSession, project_id: str, what: What, stop_at: int) -> None:
    """Note the job, in the transaction that decides on it. A deletion is never made a drain again."""
    job = await session.get(Job, PREFIX + project_id)
    if job is None:
        job = Job(name=PREFIX + project_id, updated_at=0)
        session.add(job)
    state = dict(job.state or {})
    if state.get("do") == "delete":
        stop_at, what = min(stop_at, state.get("stop_at", stop_at)), "delete"
    job.state = state | {"do": what, "stop_at": stop_at}


async def cancel_drain(session: AsyncSession, project_id: str) -> None:
    job = await session.get(Job, PREFIX + project_id)
    if job is not None and (job.state or {}).get("do") == "drain":
        job.state = {}


class ProjectEnding:
    """Carries the jobs on. `look` is asked by every replica now and then, `poke` when there is something new."""

    def __init__(self, store: Store, regions: Stopper, exports: Path) -> None:
        self._store = store
        self._regions = regions
        self._exports = exports
        self.tasks = SupervisedTasks("project_ending")

    def export_of(self, project_id: str) -> Path:
        return self._exports / f"{project_id}.zip"

    def poke(self) -> None:
        """Look soon; nobody waits for it. If that fails, the next look of any replica goes on with it."""
        self.tasks.once("look", self.look())

    async def close(self) -> None:
        """Stop what was poked; another replica goes on."""
        await self.tasks.close()

    async def look(self) -> None:
        """Do what is to be done and nobody else is doing."""
        await self._find_stragglers()
        async with self._store.read() as session:
            jobs = (await session.exec(select(Job).where(col(Job.name).startswith(PREFIX)))).all()
        waiting = [job.name for job in jobs if (job.state or {}).get("do")]
        rounds = (run_once(self._store, name, self._work, limit_s=ROUND_S) for name in waiting)
        failures = [one for one in await asyncio.gather(*rounds, return_exceptions=True) if isinstance(one, Exception)]
        if failures:  # told after all have had their round: no project's fault holds up another's
            raise failures[0]

    async def _find_stragglers(self) -> None:
        """Servers of projects that are gone: their start was under way when the project went."""
        gone = select(Server.project_id).join(Project)
        gone = gone.where(live(), col(Project.deleted_at).is_not(None), col(Project.plan) == "")
        async with self._store.read() as session:
            found = set((await session.exec(gone)).all())
        for project_id in found:
            async with self._store.write() as session:
                await begin_ending(session, project_id, "delete", now_ms())

    async def _work(self, lease: Lease) -> None:
        """One round. What cannot be done now is for the next."""
        project_id, what = lease.name.removeprefix(PREFIX), lease.state.get("do")
        if what == "drain":
            await self._stop_all(project_id, "drain")
        elif what != "delete" or not await self._delete(lease, project_id):
            return
        async with self._store.write() as session:
            state = await _state(session, lease)
            if state.get("do") == what:  # else something more has been asked for meanwhile
                await lease.save(session, lease.position, {k: v for k, v in state.items() if k == "exported_at"})
        log.info("project_ended", project=project_id, what=what)

    async def _delete(self, lease: Lease, project_id: str) -> bool:
        """False if it is not over yet."""
        await self._end_builds(project_id)
        if not await self._has_ended(project_id, lease.state.get("stop_at", 0)):
            return False
        if "exported_at" not in lease.state:
            await export_project(self._store, project_id, self.export_of(project_id))
            crash_point("ending.exported")
            async with self._store.write() as session:  # never again after this: rows will be missing
                state = await _state(session, lease) | {"exported_at": now_ms()}
                await lease.save(session, lease.position, state)
        await self._delete_rows(project_id)
        async with self._store.write() as session:
            await lease.check(session)
            project = await project_of(session, project_id)
            project.settings, project.plan = None, ""
            touch(project)
        return True

    async def _has_ended(self, project_id: str, stop_at: int) -> bool:
        """Whether no server is left and no pipeline works on a build; when the grace is over that is brought about."""
        for _ in range(_LOOKS):
            async with self._store.read() as session:
                left = (await session.exec(_unfinished(project_id).limit(1))).first()
                busy = owned(Build, project_id).where(col(Build.lease_until) > now_ms()).limit(1)
                working = (await session.exec(busy)).first()
            if left is None and working is None:
                return True
            if now_ms() < stop_at:
                return False
            await self._stop_all(project_id, "delete")
            await self._store.changed(_LOOK_S)
        return False

    async def _end_builds(self, project_id: str) -> None:
        async with self._store.write() as session:
            mine = (col(Build.project_id) == project_id, col(Build.status) != "deleted")
            await session.exec(update(Build).where(*mine).values(status="deleted", updated_at=now_ms()))

    async def _stop_all(self, project_id: str, what: What) -> None:
        """Each server once; one whose region does not answer is for the next round."""
        async with self._store.read() as session:
            servers = (await session.exec(_unfinished(project_id).where(col(Server.status) != "stopped"))).all()
        failures = await _in_turns([self._stopping(server, what) for server in servers])
        crash_point("ending.stopped")
        if failures and what == "drain":
            raise failures[0]

    def _stopping(self, server: Server, what: What) -> Callable[[], Awaitable[Any]]:
        return lambda: self._regions.stop(server.region, server.instance_id, *REASONS[what])

    async def _delete_rows(self, project_id: str) -> None:
        logs = select(BuildLog.id).where(
            col(BuildLog.build_id).in_(owned(Build, project_id).with_only_columns(col(Build.build_id)))
        )
        await self._in_portions(lambda: delete(BuildLog).where(col(BuildLog.id).in_(logs.limit(_PORTION))))
        for table in _ROWS:
            key: Any = getattr(table, str(inspect(table).primary_key[0].key))
            keys = owned(table, project_id).with_only_columns(key).limit(_PORTION)
            mine: Any = table
            await self._in_portions(
                lambda table=table, key=key, keys=keys, mine=mine: delete(table).where(
                    mine.project_id == project_id, key.in_(keys)
                )
            )
            crash_point("ending.deleting")
        await self._in_portions(lambda: delete(Idempotency).where(col(Idempotency.scope) == project_id))

    async def _in_portions(self, statement: Callable[[], Any]) -> None:
        """Short transactions: managers must get their commits in between."""
        while True:
            async with self._store.write() as session:
                rows: int = (await session.exec(statement())).rowcount  # pyright: ignore
            if rows < 1:
                return


async def _state(session: AsyncSession, lease: Lease) -> dict[str, Any]:
    """As it is now: an operator may have asked for more."""
    job = await session.get(Job, lease.name)
    return dict((job and job.state) or {})


def _unfinished(project_id: str) -> SelectOfScalar[Server]:
    return owned(Server, project_id).where(live())


async def _in_turns(calls: Iterable[Callable[[], Awaitable[Any]]]) -> list[FleetError]:
    """A few at a time; the failures that may pass."""
    gate, failures = asyncio.Semaphore(_AT_ONCE), list[FleetError]()

    async def one(call: Callable[[], Awaitable[Any]]) -> None:
        async with gate:
            try:
                await call()
            except FleetError as error:
                log.warning("server_not_stopped", error=error.detail)
                failures.append(error)

    await asyncio.gather(*(one(call) for call in calls))
    return failures
