"""The projects of the keeper's lobbies: their configs, and whom a match's server is started for.

Read again when older than a second, so a change of the settings holds for what comes a second later.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from sqlmodel import col, exists, select

from fleet.actors.single_flight import SingleFlight
from fleet.errors import NotFound
from fleet.lobbies.config import DEFAULTS, LobbyConfig, find_config
from fleet.projects.model import Principal
from fleet.store.engine import Store
from fleet.store.tables import Budget, Project

READ_S = 20.0
_FRESH_S = 1.0
_MAX_CONFIGS = 1000


@dataclass
class Known:
    principal: Principal
    configs: dict[str, LobbyConfig] = field(default_factory=dict[str, LobbyConfig])


class Projects:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Known] = {}
        self._read_at: dict[str, float] = {}
        self._reads: SingleFlight[str, None] = SingleFlight()

    async def refresh(self, project_ids: Iterable[str]) -> None:
        """Read what is older than a second. Those who ask at the same time share a read; what could not be read counts
        as not read. TimeoutError and the database's own errors."""
        for project_id in set(project_ids):
            now = asyncio.get_running_loop().time()
            if now - self._read_at.get(project_id, float("-inf")) >= _FRESH_S:
                await self._reads.do(project_id, partial(self._read_again, project_id, now), for_all=True)

    async def _read_again(self, project_id: str, now: float) -> None:
        async with asyncio.timeout(READ_S):
            await self._read(project_id)
        self._read_at[project_id] = now

    async def _read(self, project_id: str) -> None:
        changed = select(Project.updated_at).where(col(Project.id) == project_id, col(Project.deleted_at).is_(None))
        spent = exists(
            select(Budget.project_id).where(
                col(Budget.project_id) == project_id, col(Budget.stopped), col(Budget.hard_stop)
            )
        )
        at, out_of_budget = await self._store.first(changed), bool(await self._store.first(select(spent)))
        if at is None:
            self._known.pop(project_id, None)
            return
        known = self._known.get(project_id)
        if known and (known.principal.changed_at, known.principal.out_of_budget) == (at, out_of_budget):
            return
        project = await self._store.first(select(Project).where(col(Project.id) == project_id))
        if project is None:
            self._known.pop(project_id, None)
            return
        self._known[project_id] = Known(
            Principal(
                project_id=project.id,
                kind="server",
                plan=project.plan,
                valid_until=float("inf"),
                settings=project.settings or {},
                changed_at=project.updated_at,
                suspended=project.suspended_at is not None,
                out_of_budget=out_of_budget,
            )
        )

    async def close(self) -> None:
        await self._reads.close()

    def __contains__(self, project_id: str) -> bool:
        """Whether the project was there when last read."""
        return project_id in self._known

    def principal(self, project_id: str) -> Principal:
        """Who starts servers there; NotFound if the project is gone."""
        known = self._known.get(project_id)
        if known is None:
            raise NotFound("The project is gone.", error="Project not found")
        return known.principal

    def config(self, project_id: str, name: str) -> LobbyConfig:
        """As it was when last read; the same object until it changes."""
        known = self._known.get(project_id)
        if known is None:
            return DEFAULTS
        found = known.configs.get(name)
        if found is None:
            if len(known.configs) >= _MAX_CONFIGS:
                known.configs.clear()
            found = known.configs[name] = find_config(known.principal.settings.get("lobby_configs") or [], name)
        return found
