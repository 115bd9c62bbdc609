"""Replace the default project's keys, in the database and in the file that scripts read."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

from sqlmodel import col, select

from fleet.errors import NotFound
from fleet.ops import api
from fleet.ops.home import Access, Home, read_access, write_access
from fleet.projects.admin_keys import AdminKeys
from fleet.projects.admin_service import Admin, AdminService, note
from fleet.projects.model import KeyKind
from fleet.projects.plans import plan_book
from fleet.projects.service import ProjectService
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from fleet.store.tables import Project

CLI = Admin("cli")


async def rotate_key(home: Home, settings: FleetSettings, kind: KeyKind) -> str:
    """The new key; `fleet.json` has it too. Works whether the fleet runs or not."""
    async with open_admin(settings) as (admin, store):
        access = read_access(home) or Access(api.local_url(settings), "", "", await _first_project(store))
        key, _ = await admin.rotate(CLI, access.project_id, kind, 0)
    new = replace(access, server_key=key) if kind == "server" else replace(access, client_key=key)
    write_access(home, new)
    return key


async def rotate_admin_key(home: Home, settings: FleetSettings, overlap_s: int) -> str:
    """Another admin key, in clear for the only time."""
    key = AdminKeys(home.path).rotate(overlap_s)
    async with open_admin(settings) as (_, store), store.write() as session:
        note(session, CLI, "admin_key.rotate", None, overlap_seconds=overlap_s)
    return key


@asynccontextmanager
async def open_admin(settings: FleetSettings) -> AsyncGenerator[tuple[AdminService, Store]]:
    """The operator's hand on the database itself. The fleet, if it runs, sees what was done within seconds and carries
    on what takes longer."""
    store = Store(settings.database)
    try:
        yield AdminService(store, ProjectService(store), plan_book(settings.plans_config), None, None), store
    finally:
        await store.close()


async def _first_project(store: Store) -> str:
    query = select(Project.id).order_by(col(Project.created_at)).limit(1)
    async with store.read() as session:
        found = (await session.exec(query)).first()
    if found is None:
        raise NotFound("There is no project yet. Start the fleet once with 'fleet up'.")
    return found
