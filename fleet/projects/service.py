"""Keys and authentication.

A key is 256 random bits, so it needs no slow hash: its SHA-256 is the primary key of `api_key`, and the key
itself is shown once and stored nowhere.
"""

import hashlib
import secrets
import time
from pathlib import Path
from typing import Any, cast

from sqlalchemy import delete
from sqlmodel import col, exists, select
from sqlmodel.ext.asyncio.session import AsyncSession

from fleet.errors import Forbidden, NotFound, Unauthorized
from fleet.events.journal import project_event
from fleet.operation import new_id, repeatable
from fleet.projects.model import KeyKind, NewProject, Principal
from fleet.projects.scope import owned
from fleet.projects.settings import SettingsChange, changed, sealed
from fleet.sealing import Sealer, Variables
from fleet.store.engine import Store
from fleet.store.tables import ApiKey, Budget, Project
from fleet.times import now_ms

PREFIX: dict[KeyKind, str] = {"server": "pf_", "client": "pfclient_"}
MAX_KEY_LENGTH = 128
CHANGED_AT = "SELECT updated_at FROM project WHERE id = ?"


def new_key(kind: KeyKind) -> str:
    """A fresh key: `pf_` or `pfclient_` and 43 URL-safe characters."""
    return PREFIX[kind] + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def hint_of(key: str) -> str:
    """Its kind and last characters: enough to tell keys apart, of no use to anyone else."""
    return f"{key.partition('_')[0]}_…{key[-4:]}"


class ProjectService:
    """Looks keys up with a short memory: a changed or revoked key is noticed within `memory_s` seconds."""

    def __init__(
        self, store: Store, home: Path | None = None, *, memory_s: float = 5.0, max_remembered: int = 10_000
    ) -> None:
        self._store = store
        self._sealer = Sealer(home, "auth") if home else None
        self._variables = Variables(home) if home else None
        self._memory_s = memory_s
        self._max = max_remembered
        self._known: dict[str, tuple[float, Principal | None]] = {}

    async def authenticate(self, key: str | None) -> Principal:
        """Whose key this is; `Unauthorized` if nobody's, or expired."""
        if not key:
            raise Unauthorized("Send your project's key in the 'api-key' header.", error="Missing API key")
        principal = await self._remembered(key) if len(key) <= MAX_KEY_LENGTH else None
        if principal is None:
            raise Unauthorized("This key is unknown. Copy it again from the project.", error="Invalid API key")
        if principal.suspended:
            raise Forbidden("This project is suspended by the fleet's operator. Ask there.", error="Project suspended")
        return principal

    async def _remembered(self, key: str) -> Principal | None:
        digest, now = hash_key(key), time.monotonic()
        found = self._known.get(digest)
        if found and found[0] > now and self._still(found[1]):
            return found[1]
        principal = await self._look_up(digest, now + self._memory_s)
        if len(self._known) >= self._max:
            self._known.pop(next(iter(self._known)))
        self._known.pop(digest, None)
        self._known[digest] = (principal.valid_until if principal else now + self._memory_s, principal)
        return principal

    def _still(self, principal: Principal | None) -> bool:
        """False if the project has changed since: then a start would miss a pool that was just made.

        PostgreSQL cannot tell for free, so there a change is noticed when the memory ends.
        """
        changed_at = self._store.glance(CHANGED_AT, principal.project_id) if principal else None
        return principal is None or changed_at is None or changed_at == principal.changed_at

    async def _look_up(self, digest: str, until: float) -> Principal | None:
        used_up = col(Budget.stopped) & col(Budget.hard_stop)
        spent = exists(select(Budget.project_id).where(col(Budget.project_id) == col(Project.id), used_up))
        query = select(ApiKey, Project, spent).join(Project).where(col(ApiKey.hash) == digest)
        async with self._store.read() as session:
            row = (await session.exec(query)).first()
        if row is None:
            return None
        key, project, out_of_budget = row
        if key.expires_at is not None:
            left_s = (key.expires_at - now_ms()) / 1000
            if left_s <= 0:
                return None
            until = min(until, time.monotonic() + left_s)
        return Principal(
            project_id=project.id,
            kind=cast(KeyKind, key.kind),
            plan=project.plan,
            valid_until=until,
            settings=project.settings or {},
            changed_at=project.updated_at,
            suspended=project.suspended_at is not None or project.deleted_at is not None,
            out_of_budget=bool(out_of_budget),
        )

    def forget(self) -> None:
        """A project or key has been changed here: every key is looked up again."""
        self._known.clear()

    async def rotate(self, project_id: str, kind: KeyKind, overlap_s: int = 0) -> str:
        """Replace the project's key of that kind; the old one works for so long yet. Seen elsewhere in seconds."""
        async with self._store.write() as session:
            key = await rotate_key(session, await project_of(session, project_id), kind, overlap_s)
        self.forget()
        return key

    async def settings(self, project_id: str) -> Project:
        """The project with its settings, uncached; `NotFound` for an unknown project."""
        async with self._store.read() as session:
            return await project_of(session, project_id)

    def environment_of(self, project: Project) -> dict[str, str]:
        """Its variables in clear, for who has the project's server key."""
        stored = (project.settings or {}).get("environment_variables")
        return self._variables.open(stored) if self._variables else {}

    async def change_settings(self, project_id: str, change: SettingsChange) -> tuple[Project, dict[str, Any]]:
        """Apply a checked change; the project as it is now, and the settings it had. Seen elsewhere within seconds."""
        if self._sealer is None or self._variables is None:
            raise TypeError("without a home this service cannot store secrets")
        stored = sealed(change, self._sealer, self._variables)
        async with self._store.write() as session:
            project = await project_of(session, project_id)
            before = project.settings or {}
            project.settings = changed(before, stored)
            touch(project)
            told = {"parts": sorted(change)}
            session.add(project_event(project_id, "project", project_id, "project.settings_changed", told))
        self.forget()
        return project, before


async def project_of(session: AsyncSession, project_id: str) -> Project:
    project = await session.get(Project, project_id)
    if project is None:
        raise NotFound(f"There is no project {project_id[:64]}.", error="Project not found")
    return project


def touch(project: Project) -> None:
    """Another `updated_at`, whatever the clock does: by it replicas see that they must look again."""
    project.updated_at = max(now_ms(), project.updated_at + 1)


async def rotate_key(session: AsyncSession, project: Project, kind: KeyKind, overlap_s: int) -> str:
    """A new key of that kind, in clear for the only time. The others of the kind end, at once or after a while."""
    now = now_ms()
    mine = owned(ApiKey, project.id).where(col(ApiKey.kind) == kind)
    for old in (await session.exec(mine)).all():
        old.expires_at = min(old.expires_at or now + overlap_s * 1000, now + overlap_s * 1000)
        if old.expires_at <= now:
            await session.delete(old)
    key = new_key(kind)
    session.add(_key_row(key, project.id, kind, now))
    touch(project)
    return key


def _key_row(key: str, project_id: str, kind: KeyKind, now: int) -> ApiKey:
    return ApiKey(hash=hash_key(key), project_id=project_id, kind=kind, hint=hint_of(key), created_at=now)


async def add_project(session: AsyncSession, name: str, plan: str) -> NewProject:
    made = NewProject(new_id(), new_key("server"), new_key("client"))
    now = now_ms()
    if repeatable() and await session.get(Project, made.project_id) is not None:
        # By an earlier try of this write. Nobody has been told its keys, so these take their place.
        await session.exec(delete(ApiKey).where(col(ApiKey.project_id) == made.project_id))
    else:
        session.add(Project(id=made.project_id, name=name, plan=plan, created_at=now, updated_at=now))
        await session.flush()
    session.add(_key_row(made.server_key, made.project_id, "server", now))
    session.add(_key_row(made.client_key, made.project_id, "client", now))
    return made


async def create_project(store: Store, name: str, plan: str = "pro") -> NewProject:
    """Make a project with one key of each kind."""
    async with store.write() as session:
        return await add_project(session, name, plan)


async def ensure_default_project(store: Store) -> NewProject | None:
    """Make the project "default" if there is no project yet; None if there is one already."""
    async with store.read() as session:
        if (await session.exec(select(Project.id).limit(1))).first() is not None:
            return None
    return await create_project(store, "default")
