"""Replace the default project's keys, in the database and in the file that scripts read."""

from dataclasses import replace

from sqlmodel import col, select

from fleet.errors import NotFound
from fleet.ops import api
from fleet.ops.home import Access, Home, read_access, write_access
from fleet.projects.model import KeyKind
from fleet.projects.service import ProjectService
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from fleet.store.tables import Project


async def rotate_key(home: Home, settings: FleetSettings, kind: KeyKind) -> str:
    """The new key; `fleet.json` has it too. Works whether the fleet runs or not."""
    store = Store(settings.database)
    try:
        access = read_access(home) or Access(api.local_url(settings), "", "", await _first_project(store))
        key = await ProjectService(store).rotate(access.project_id, kind)
    finally:
        await store.close()
    new = replace(access, server_key=key) if kind == "server" else replace(access, client_key=key)
    write_access(home, new)
    return key


async def _first_project(store: Store) -> str:
    query = select(Project.id).order_by(col(Project.created_at)).limit(1)
    async with store.read() as session:
        found = (await session.exec(query)).first()
    if found is None:
        raise NotFound("There is no project yet. Start the fleet once with 'fleet up'.")
    return found
