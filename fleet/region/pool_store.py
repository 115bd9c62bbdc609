"""What the pools of a region need from the database: wishes, newest builds, and what was learned before."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import delete, insert
from sqlmodel import and_, col, func, select

from fleet.errors import FleetError
from fleet.pools.config import PoolKey, PoolWish, wishes
from fleet.projects.model import project_ports
from fleet.projects.plans import PlanBook, plan_book
from fleet.projects.secrets import SECRETS_AT
from fleet.sealing import Variables
from fleet.store.commit import Statement, row_values
from fleet.store.engine import Store
from fleet.store.tables import Build, PoolMemory, PoolMinute, Project, Server

log = structlog.get_logger(__name__)

RECENT_CLAIMS_MS = 300_000
KEEP_MINUTES_MS = 35 * 24 * 3_600_000  # five weeks: the forecast's season is a week


@dataclass(frozen=True, slots=True)
class Wished:
    """One wish with what the project's servers share."""

    wish: PoolWish
    environment: dict[str, str] = field(repr=False)
    port_configs: list[dict[str, Any]]
    stored: str | None = field(default=None, repr=False)  # the same variables, as rows of servers have them
    secrets_at: int = 0  # when the project's secrets changed last


class PoolStore:
    """Reads for one region."""

    def __init__(self, store: Store, region: str, plans: PlanBook | None = None, home: Path | None = None) -> None:
        self._store = store
        self._variables = Variables(home or Path("nowhere"))
        self._plans = plans or plan_book()
        self._region = region

    async def wished(self, project_id: str | None = None) -> dict[PoolKey, Wished]:
        """Every project's pools here, or one project's: what its settings wish and its plan has, while it may start."""
        query = select(Project).where(
            col(Project.settings).is_not(None), col(Project.suspended_at).is_(None), col(Project.deleted_at).is_(None)
        )
        if project_id is not None:
            query = query.where(col(Project.id) == project_id)
        async with self._store.read() as session:
            projects = (await session.exec(query)).all()
        found: dict[PoolKey, Wished] = {}
        for project in projects:
            settings = project.settings or {}
            ports: list[dict[str, Any]] = [dict(port) for port in project_ports(settings)]
            stored, secrets_at = settings.get("environment_variables"), settings.get(SECRETS_AT, 0)
            for wish in self._wishes(project):
                found[wish.key] = Wished(wish, self._variables.open(stored), ports, stored, secrets_at)
        return found

    def _wishes(self, project: Project) -> list[PoolWish]:
        try:
            plan = self._plans.get(project.plan)
            found = wishes(project.id, project.settings, self._region) if plan.pools else []
            return [wish for wish in found if plan.has_size(wish.compute_size)]
        except (ValidationError, ValueError) as error:  # stored by another version of this software
            log.error("pool_config is not valid any more", project=project.id, error=str(error))
        except FleetError as error:
            log.error("the project's plan is not known", project=project.id, plan=project.plan, error=error.detail)
        return []

    async def newest_builds(self, names: set[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, int]]:
        """(project, build name) -> (id, version) of the newest ready build."""
        if not names:
            return {}
        ready = (col(Build.status) == "ready", col(Build.project_id).in_({project for project, _ in names}))
        newest = (
            select(Build.project_id, Build.name, func.max(Build.version).label("version"))
            .where(*ready)
            .group_by(col(Build.project_id), col(Build.name))
            .subquery()
        )
        query = select(Build.project_id, Build.name, Build.build_id, Build.version).join(
            newest,
            and_(
                col(Build.project_id) == newest.c.project_id,
                col(Build.name) == newest.c.name,
                col(Build.version) == newest.c.version,
            ),
        )
        async with self._store.read() as session:
            rows = (await session.exec(query)).all()
        return {(project, name): (build, version) for project, name, build, version in rows if (project, name) in names}

    async def learned(self) -> dict[PoolKey, dict[str, Any]]:
        """The states that an earlier manager kept."""
        async with self._store.read() as session:
            rows = (await session.exec(select(PoolMemory).where(col(PoolMemory.region) == self._region))).all()
        return {(row.project_id, row.compute_size, row.build_name): row.state for row in rows if row.state}

    async def recent_claims(self, now: int) -> dict[str, str]:
        """op id -> instance id of claims that a caller may ask for again."""
        query = select(Server.last_op, Server.instance_id).where(
            col(Server.region) == self._region, col(Server.pool_claimed_at) >= now - RECENT_CLAIMS_MS
        )
        async with self._store.read() as session:
            return {op: name for op, name in (await session.exec(query)).all() if op}


def minute_statements(row: PoolMinute) -> list[Statement]:
    """Write a minute, again if need be (clocks go back)."""
    mine = (
        col(PoolMinute.region) == row.region,
        col(PoolMinute.project_id) == row.project_id,
        col(PoolMinute.compute_size) == row.compute_size,
        col(PoolMinute.build_name) == row.build_name,
        col(PoolMinute.at) == row.at,
    )
    return [(delete(PoolMinute).where(*mine), None), (insert(PoolMinute), [row_values(row)])]


def state_statements(row: PoolMemory) -> list[Statement]:
    mine = (
        col(PoolMemory.region) == row.region,
        col(PoolMemory.project_id) == row.project_id,
        col(PoolMemory.compute_size) == row.compute_size,
        col(PoolMemory.build_name) == row.build_name,
    )
    return [(delete(PoolMemory).where(*mine), None), (insert(PoolMemory), [row_values(row)])]


def old_minutes(region: str, now: int) -> Statement:
    """Forget minutes beyond five weeks."""
    return delete(PoolMinute).where(col(PoolMinute.region) == region, col(PoolMinute.at) < now - KEEP_MINUTES_MS), None
