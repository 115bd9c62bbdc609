"""Pools for the API replicas: what is wished goes into the project's settings, what is so is asked of the regions."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import structlog

from fleet.catalog import Catalog
from fleet.errors import FleetError, NotFound
from fleet.events.targets import Network, check_url
from fleet.pools.config import pooled_regions
from fleet.projects.model import Principal
from fleet.projects.plans import PlanBook, check_pools
from fleet.projects.service import ProjectService
from fleet.projects.settings import SettingsChange
from fleet.servers.limits import check_environment, check_ports
from fleet.settings import ServerLimits
from fleet.store.tables import Project

log = structlog.get_logger(__name__)


class PoolRegions(Protocol):
    """The part of the regions that this needs."""

    async def pools_changed(self, regions: Iterable[str], project_id: str) -> None: ...
    async def pools(self, region: str, project_id: str) -> list[dict[str, Any]]: ...


class PoolService:
    """All calls are scoped to the caller's project."""

    def __init__(
        self,
        projects: ProjectService,
        regions: PoolRegions,
        catalog: Catalog,
        limits: ServerLimits,
        plans: PlanBook,
        networks: Sequence[Network] = (),
    ) -> None:
        self._projects = projects
        self._plans = plans
        self._regions = regions
        self._catalog = catalog
        self._limits = limits
        self._networks = networks

    async def change_settings(self, caller: Principal, change: SettingsChange) -> Project:
        """Check and store; the regions concerned hear of it before this returns. Nothing changes if it raises."""
        check_ports(change.get("port_configs") or [], self._limits)
        check_environment(change.get("environment_variables") or {}, self._limits)
        if (url := (change.get("auth_config") or {}).get("jwks_url")) is not None:
            check_url(str(url), self._networks, http=False)
        config = change.get("pool_config")
        if config is not None:
            check_pools(self._plans.get(caller.plan), config)
        project, before = await self._projects.change_settings(caller.project_id, change)
        concerned = pooled_regions(before) | pooled_regions(project.settings)
        await self._regions.pools_changed(sorted(concerned), caller.project_id)
        return project

    async def list(self, caller: Principal) -> list[dict[str, Any]]:
        """Every pool, ordered by region and size. A region that does not answer now is left out, and logged."""
        regions = sorted(pooled_regions((await self._projects.settings(caller.project_id)).settings))
        found = await asyncio.gather(
            *(self._regions.pools(region, caller.project_id) for region in regions), return_exceptions=True
        )
        pools: list[dict[str, Any]] = []
        for region, answer in zip(regions, found, strict=True):
            if isinstance(answer, FleetError):
                log.warning("a region's pools are not shown", region=region, error=answer.detail)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                pools += answer
        return sorted(pools, key=lambda pool: (pool["region"], pool["compute_size"], pool["build"]))

    async def get(self, caller: Principal, region: str, size: str, build: str | None) -> dict[str, Any]:
        """One pool; of several builds the one named, else the first."""
        where = self._catalog.region(region).id
        if where in pooled_regions((await self._projects.settings(caller.project_id)).settings):
            for pool in await self._regions.pools(where, caller.project_id):
                if pool["compute_size"] == size and build in (None, pool["build"]):
                    return pool
        raise NotFound(f"The project has no pool {where}/{size[:64]}. Pools are set in pool_config.", error="No pool")
