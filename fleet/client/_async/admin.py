"""Projects as the fleet's operator sees them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, Unpack

from fleet.client._async.transport import AsyncResource, part
from fleet.client.models import (
    AuditOut,
    KeyListOut,
    NewKeyOut,
    NewProjectOut,
    PlanListOut,
    ProjectListOut,
    ProjectOut,
)
from fleet.client.requests import ProjectChange, ProjectIn
from fleet.client.waiting import run_async

PAGE = 100
_BASE = "/api/admin/v1"
_PATH = f"{_BASE}/projects"


class AsyncAdmin(AsyncResource):
    async def plans(self) -> PlanListOut:
        return await self._api.get(PlanListOut, f"{_BASE}/plans")

    async def list(self, *, limit: int = 50, offset: int = 0, include_deleted: bool = False) -> ProjectListOut:
        """One page of projects, oldest first."""
        return await self._api.get(ProjectListOut, _PATH, limit=limit, offset=offset, include_deleted=include_deleted)

    async def iterate(self, *, include_deleted: bool = False) -> AsyncIterator[ProjectOut]:
        """All of them."""
        offset, more = 0, True
        while more:
            page = await self.list(limit=PAGE, offset=offset, include_deleted=include_deleted)
            for project in page.projects:
                yield project
            offset += PAGE
            more = page.has_more

    async def create(self, **project: Unpack[ProjectIn]) -> NewProjectOut:
        """The answer holds its two keys, for the only time."""
        return await self._api.write(NewProjectOut, "POST", _PATH, body=project)

    async def get(self, project_id: str) -> ProjectOut:
        return await self._api.get(ProjectOut, f"{_PATH}/{part(project_id)}")

    async def change(self, project_id: str, **change: Unpack[ProjectChange]) -> ProjectOut:
        """Another name, another plan."""
        return await self._api.write(ProjectOut, "PATCH", f"{_PATH}/{part(project_id)}", body=change)

    async def suspend(self, project_id: str, *, drain: bool = False, reason: str | None = None) -> ProjectOut:
        """Its keys are refused; with `drain` its servers stop too."""
        body = {"drain": drain, "reason": reason}
        return await self._api.write(ProjectOut, "POST", f"{_PATH}/{part(project_id)}/suspend", body=body)

    async def resume(self, project_id: str) -> ProjectOut:
        return await self._api.write(ProjectOut, "POST", f"{_PATH}/{part(project_id)}/resume")

    async def delete(self, project_id: str, *, grace_seconds: int = 0) -> ProjectOut:
        """Its keys are refused at once; when its servers have ended, its data is exported, then deleted."""
        return await self._api.write(ProjectOut, "DELETE", f"{_PATH}/{part(project_id)}", grace_seconds=grace_seconds)

    async def export(self, project_id: str, target: Path) -> None:
        """What a deleted project had, as a ZIP."""
        found = await self._api.send("GET", f"{_PATH}/{part(project_id)}/export")
        await run_async(target.write_bytes, found.content)

    async def keys(self, project_id: str) -> KeyListOut:
        """Their hints; a key itself is stored nowhere."""
        return await self._api.get(KeyListOut, f"{_PATH}/{part(project_id)}/keys")

    async def rotate_key(
        self, project_id: str, kind: Literal["server", "client"], *, overlap_seconds: int = 0
    ) -> NewKeyOut:
        """A new key; the old one works for `overlap_seconds` yet."""
        path = f"{_PATH}/{part(project_id)}/keys/{kind}/rotate"
        return await self._api.write(NewKeyOut, "POST", path, body={"overlap_seconds": overlap_seconds})

    async def audit(
        self,
        *,
        limit: int = 100,
        before: int | None = None,
        project_id: str | None = None,
        action: str | None = None,
    ) -> AuditOut:
        """Every change that an operator made, newest first. `before`: the last page's `next_before`."""
        return await self._api.get(
            AuditOut, f"{_BASE}/audit", limit=limit, before=before, project_id=project_id, action=action
        )
