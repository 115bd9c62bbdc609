"""What the fleet's operator does with projects. Each act leaves an entry in the audit log, in its own transaction."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from fleet.errors import BadRequest, Conflict
from fleet.events.journal import project_event
from fleet.projects.ending import ProjectEnding, begin_ending, cancel_drain
from fleet.projects.model import KeyKind, NewProject
from fleet.projects.plans import PlanBook
from fleet.projects.scope import count_of, owned
from fleet.projects.service import ProjectService, add_project, project_of, rotate_key, touch
from fleet.store.engine import Store
from fleet.store.tables import AdminEvent, ApiKey, Project
from fleet.times import now_ms

ProjectStatus = Literal["active", "suspended", "deleting", "deleted"]
Told = Callable[[Project], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Admin:
    """Who acts: an admin key by its hint, or "cli"."""

    actor: str
    request_id: str | None = None


def status_of(project: Project) -> ProjectStatus:
    """A project that is asked to go keeps its settings until its data is gone."""
    if project.deleted_at is not None:
        return "deleted" if project.plan == "" else "deleting"
    return "active" if project.suspended_at is None else "suspended"


class AdminService:
    """`told` hears of a project whose pools may have to change, after the fact; who is not told sees it by himself."""

    def __init__(
        self, store: Store, projects: ProjectService, plans: PlanBook, ending: ProjectEnding | None, told: Told | None
    ) -> None:
        self._store = store
        self._projects = projects
        self._plans = plans
        self._ending = ending
        self._told = told

    # Reading ----------------------------------------------------------------------------------------------------

    async def page(self, limit: int, offset: int, *, deleted: bool = False) -> tuple[list[Project], int]:
        """One page of projects, oldest first, and the number of all."""
        query = select(Project)
        if not deleted:
            query = query.where(col(Project.plan) != "")
        async with self._store.read() as session:
            total = (await session.exec(select(func.count()).select_from(query.subquery()))).one()
            page = query.order_by(col(Project.created_at), col(Project.id)).limit(limit).offset(offset)
            return list((await session.exec(page)).all()), total

    async def get(self, project_id: str) -> Project:
        async with self._store.read() as session:
            return await project_of(session, project_id)

    async def keys(self, project_id: str) -> list[ApiKey]:
        async with self._store.read() as session:
            await project_of(session, project_id)
            rows = owned(ApiKey, project_id).order_by(col(ApiKey.created_at), col(ApiKey.hash))
            return list((await session.exec(rows)).all())

    async def audit(
        self, limit: int, before: int | None, project_id: str | None, action: str | None
    ) -> tuple[list[AdminEvent], int]:
        """The newest entries, or those before an id; and how many match in all."""
        query = select(AdminEvent) if project_id is None else owned(AdminEvent, project_id)
        if action is not None:
            query = query.where(col(AdminEvent.action) == action)
        page = query if before is None else query.where(col(AdminEvent.id) < before)
        async with self._store.read() as session:
            total = (await session.exec(count_of(query))).one()
            return list((await session.exec(page.order_by(col(AdminEvent.id).desc()).limit(limit))).all()), total

    # Acting -----------------------------------------------------------------------------------------------------

    async def create(self, admin: Admin, name: str, plan: str) -> tuple[Project, NewProject]:
        self._check_plan(plan)
        async with self._store.write() as session:
            made = await add_project(session, name, plan)
            note(session, admin, "project.create", made.project_id, name=name, plan=plan)
            return await project_of(session, made.project_id), made

    async def change(self, admin: Admin, project_id: str, *, name: str | None, plan: str | None) -> Project:
        """Rename, or move to another plan. A running server goes on; pools beyond the plan are emptied."""
        if plan is not None:
            self._check_plan(plan)
        async with self._store.write() as session:
            project = await _alive(session, project_id)
            if name is not None and name != project.name:
                note(session, admin, "project.rename", project_id, before=project.name, after=name)
                project.name = name
            moved = plan is not None and plan != project.plan
            if plan is not None and moved:
                note(session, admin, "project.plan", project_id, before=project.plan, after=plan)
                told = {"before": project.plan, "after": plan}
                session.add(project_event(project_id, "project", project_id, "project.plan_changed", told))
                project.plan = plan
            touch(project)
        await self._changed(project if moved else None)
        return project

    async def suspend(self, admin: Admin, project_id: str, *, drain: bool, reason: str | None) -> Project:
        """Refuse its keys from now on. Its servers go on, unless they shall be stopped too."""
        async with self._store.write() as session:
            project = await _alive(session, project_id)
            project.suspended_at = project.suspended_at or now_ms()
            touch(project)
            note(session, admin, "project.suspend", project_id, drain=drain, reason=reason)
            session.add(project_event(project_id, "project", project_id, "project.suspended"))
            if drain:
                await begin_ending(session, project_id, "drain", now_ms())
        await self._changed(project)
        return project

    async def resume(self, admin: Admin, project_id: str) -> Project:
        async with self._store.write() as session:
            project = await _alive(session, project_id)
            project.suspended_at = None
            touch(project)
            await cancel_drain(session, project_id)
            note(session, admin, "project.resume", project_id)
            session.add(project_event(project_id, "project", project_id, "project.resumed"))
        await self._changed(project)
        return project

    async def delete(self, admin: Admin, project_id: str, *, grace_s: int) -> Project:
        """Have the project end: see `ending.py`. Asked again, only the grace may become shorter."""
        async with self._store.write() as session:
            project = await project_of(session, project_id)
            if status_of(project) == "deleted":
                return project
            now = now_ms()
            if project.deleted_at is None:
                project.deleted_at = now
                session.add(project_event(project_id, "project", project_id, "project.deleting"))
            touch(project)
            await begin_ending(session, project_id, "delete", now + grace_s * 1000)
            note(session, admin, "project.delete", project_id, grace_seconds=grace_s)
        await self._changed(project)
        return project

    async def rotate(self, admin: Admin, project_id: str, kind: KeyKind, overlap_s: int) -> tuple[str, list[ApiKey]]:
        """A new key in clear, and the old ones that still work for a while."""
        async with self._store.write() as session:
            key = await rotate_key(session, await _alive(session, project_id), kind, overlap_s)
            note(session, admin, "project.rotate", project_id, kind=kind, overlap_seconds=overlap_s)
        await self._changed(None)
        old = [one for one in await self.keys(project_id) if one.kind == kind and one.expires_at is not None]
        return key, old

    async def exported(self, admin: Admin, project_id: str) -> None:
        """The project's data has been given out."""
        async with self._store.write() as session:
            note(session, admin, "project.export", (await project_of(session, project_id)).id)

    async def _changed(self, project: Project | None) -> None:
        self._projects.forget()
        if project is not None and self._told is not None:
            await self._told(project)
        if self._ending is not None:
            self._ending.poke()

    def _check_plan(self, plan: str) -> None:
        known = self._plans.names()
        if plan not in known:
            raise BadRequest(f"There is no plan '{plan[:64]}'. Use one of: {', '.join(known)}.", error="Unknown plan")


async def _alive(session: AsyncSession, project_id: str) -> Project:
    project = await project_of(session, project_id)
    if project.deleted_at is not None:
        raise Conflict("This project is being deleted.", error="Project deleted")
    return project


def note(session: AsyncSession, admin: Admin, action: str, project_id: str | None, **data: Any) -> None:
    session.add(
        AdminEvent(
            at=now_ms(),
            actor=admin.actor,
            action=action,
            project_id=project_id,
            request_id=admin.request_id,
            data=data or None,
        )
    )
