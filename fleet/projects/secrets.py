"""A project's secrets: names and values that are only ever written. Games are told them at their launch, nobody else.

A value is sealed for its project and its name, so a row that is moved to another project or name opens nothing.
"""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from fleet.errors import Conflict, NotFound
from fleet.events.journal import project_event
from fleet.projects.scope import owned
from fleet.projects.service import ProjectService, project_of, touch
from fleet.sealing import Sealer
from fleet.servers.limits import MAX_VARIABLE_BYTES, Unprocessable
from fleet.store.engine import Store
from fleet.store.tables import Project, Secret
from fleet.times import now_ms

GivenAs = Literal["file", "variable"]
NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
MAX_SECRETS = 64  # of a project
MAX_FILE_BYTES = 32 * 1024
MAX_ALL_BYTES = 256 * 1024
OURS = "PLAYFLOW_"  # variables of this name are the fleet's own
SECRETS_AT = "secrets_changed_at"  # in the project's settings: a warm server of before is of another kind
_NAME = re.compile(NAME_PATTERN.replace("$", r"\Z"))


class SecretService:
    """`told`: has the project's regions look at its settings again."""

    def __init__(
        self, store: Store, home: Path, projects: ProjectService, told: Callable[[Project], Awaitable[None]]
    ) -> None:
        self._store = store
        self._home = home
        self._projects = projects
        self._told = told

    async def all_of(self, project_id: str) -> list[Secret]:
        """In the order of their names. Nothing of it says what is in them."""
        async with self._store.read() as session:
            return list((await session.exec(owned(Secret, project_id).order_by(col(Secret.name)))).all())

    async def put(self, project_id: str, name: str, value: str, given_as: GivenAs) -> Secret:
        """Make it, or replace it. Servers that start from now on have it."""
        size = check_secret(name, value, given_as)
        async with self._store.write() as session:
            others = [one for one in await _all(session, project_id) if one.name != name]
            if len(others) >= MAX_SECRETS:
                raise Conflict(
                    f"A project has at most {MAX_SECRETS} secrets; delete one first.", error="Too many secrets"
                )
            if size + sum(one.size for one in others) > MAX_ALL_BYTES:
                detail = f"The project's secrets would be over {MAX_ALL_BYTES} bytes together; delete one first."
                raise Conflict(detail, error="Too many secrets")
            old, now = await _find(session, project_id, name), now_ms()
            new = Secret(
                project_id=project_id,
                name=name,
                given_as=given_as,
                sealed=sealer_of(self._home, project_id, name).seal(value),
                size=size,
                created_at=old.created_at if old else now,
                updated_at=now,
                last_used_at=old.last_used_at if old else None,
            )
            secret = await session.merge(new)
            project = await _changed(session, project_id, name, "project.secret_set")
        await self._tell(project)
        return secret

    async def delete(self, project_id: str, name: str) -> None:
        async with self._store.write() as session:
            secret = await _find(session, project_id, name)
            if secret is None:
                raise NotFound(f"There is no secret '{name[:64]}' in this project.", error="Secret not found")
            await session.delete(secret)
            project = await _changed(session, project_id, name, "project.secret_deleted")
        await self._tell(project)

    async def _tell(self, project: Project) -> None:
        self._projects.forget()
        await self._told(project)


def check_secret(name: str, value: str, given_as: GivenAs) -> int:
    """The value's size in bytes; Unprocessable says what is wrong, without the value."""
    if _NAME.match(name) is None:
        raise Unprocessable(
            "A secret's name has letters, digits and _, at most 64, and begins with no digit.", field="name"
        )
    size, most = len(value.encode()), MAX_FILE_BYTES if given_as == "file" else MAX_VARIABLE_BYTES
    if not 0 < size <= most:
        raise Unprocessable(f"A secret that is given as a {given_as} has 1 to {most} bytes.", field="value")
    if given_as == "variable" and "\0" in value:
        raise Unprocessable("A variable cannot hold a NUL character; give it as a file.", field="value")
    if given_as == "variable" and name.upper().startswith(OURS):
        raise Unprocessable(f"Variables that begin with {OURS} are the fleet's own.", field="name")
    return size


def sealer_of(home: Path, project_id: str, name: str) -> Sealer:
    return Sealer(home, f"secret:{project_id}:{name}")


async def _all(session: AsyncSession, project_id: str) -> list[Secret]:
    return list((await session.exec(owned(Secret, project_id))).all())


async def _find(session: AsyncSession, project_id: str, name: str) -> Secret | None:
    return (await session.exec(owned(Secret, project_id).where(col(Secret.name) == name))).first()


async def _changed(session: AsyncSession, project_id: str, name: str, event: str) -> Project:
    project = await project_of(session, project_id)
    at = max(now_ms(), (project.settings or {}).get(SECRETS_AT, 0) + 1)
    project.settings = {**(project.settings or {}), SECRETS_AT: at}
    touch(project)
    session.add(project_event(project_id, "project", project_id, event, {"name": name}))
    return project
