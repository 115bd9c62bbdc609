"""What a launch tells a game of its project's secrets: read and opened for it, and kept nowhere."""

from pathlib import Path

import structlog
from sqlalchemy import update
from sqlmodel import col

from fleet.actors.tasks import SupervisedTasks
from fleet.node.runtime import NO_SECRETS, GameSecrets
from fleet.projects.scope import owned
from fleet.projects.secrets import sealer_of
from fleet.projects.service import CHANGED_AT
from fleet.store.engine import Store
from fleet.store.tables import Secret
from fleet.times import now_ms

log = structlog.get_logger(__name__)

MOST_KNOWN = 10_000
NOTED_MS = 60_000  # the time of the last use is so exact


async def no_secrets(_project_id: str) -> GameSecrets:
    return NO_SECRETS


class SecretsOf:
    """`await secrets(project_id)`: as they are now. On SQLite a project without any costs no query."""

    def __init__(self, store: Store, home: Path) -> None:
        self._store = store
        self._home = home
        self._without: dict[str, int] = {}  # projects without secrets, as they were when they changed last
        self._tasks = SupervisedTasks("secrets")

    async def __call__(self, project_id: str) -> GameSecrets:
        changed_at = self._store.glance(CHANGED_AT, project_id)
        if changed_at is not None and self._without.get(project_id) == changed_at:
            return NO_SECRETS
        async with self._store.read() as session:
            found = (await session.exec(owned(Secret, project_id))).all()
        if not found:
            self._remember(project_id, changed_at)
            return NO_SECRETS
        now, told = now_ms(), GameSecrets()
        for one in found:
            into = told.variables if one.given_as == "variable" else told.files
            into[one.name] = sealer_of(self._home, project_id, one.name).open(one.sealed)
        if any(now - (one.last_used_at or 0) > NOTED_MS for one in found):
            self._tasks.once("note_use", self._note(project_id, now))  # the next launch notes it, if this fails
        return told

    def _remember(self, project_id: str, changed_at: int | None) -> None:
        if changed_at is not None:
            self._without[project_id] = changed_at
        if len(self._without) > MOST_KNOWN:
            del self._without[next(iter(self._without))]

    async def _note(self, project_id: str, now: int) -> None:
        async with self._store.write() as session:
            mine = (
                col(Secret.project_id) == project_id,
                col(Secret.last_used_at).is_(None) | (col(Secret.last_used_at) < now),
            )
            await session.exec(update(Secret).where(*mine).values(last_used_at=now))

    async def close(self) -> None:
        await self._tasks.close()
