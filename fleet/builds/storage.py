"""How much of the fleet's disks the builds of a project take, and that its plan allows it.

Counted are archives, unpacked bundles and images of all builds that are not deleted and have not failed. What nodes
keep of it is bounded for all projects together (`bundle_cache.py`, `fleet/node/image_cache.py`).
"""

from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from fleet.projects.plans import check_storage, plan_book
from fleet.settings import FleetSettings
from fleet.store.tables import Build, Project

COUNTED = ("uploading", "processing", "ready")


async def used_bytes(session: AsyncSession, project_id: str, *, without: str = "") -> int:
    """Of a project's builds, but for one (`without`, a build's id)."""
    size = func.coalesce(col(Build.packed_bytes), 0) + func.coalesce(col(Build.unpacked_bytes), 0)
    mine = (col(Build.project_id) == project_id, col(Build.status).in_(COUNTED), col(Build.build_id) != without)
    return int((await session.exec(select(func.coalesce(func.sum(size), 0)).where(*mine))).one())


async def check_room(session: AsyncSession, settings: FleetSettings, build: Build, size: int) -> None:
    """`Forbidden`, with the figures, if the project may not have so many bytes more for this build."""
    project = await session.get(Project, build.project_id)
    if project is None:
        return
    plan = plan_book(settings.plans_config).get(project.plan)
    if plan.storage_mb is not None:
        check_storage(plan, await used_bytes(session, build.project_id, without=build.build_id), size)
