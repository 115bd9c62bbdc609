"""Builds for the API replicas: asked for, uploaded, processed, listed, deleted. All scoped to the caller's project."""

import asyncio
import builtins
import re
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Literal

import structlog
from sqlalchemy import update
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from fleet.builds.artefacts import UploadLock, UploadSink, drop_upload
from fleet.builds.collect import collect
from fleet.builds.executable import DEFAULT_EXECUTABLE
from fleet.builds.pipeline import BEGUN_AGAIN, note, submit
from fleet.builds.secrets import hide_credentials, sign_upload, verify_upload
from fleet.builds.storage import check_room
from fleet.builds.turns import next_builds
from fleet.errors import BadRequest, Conflict, FleetError, NotFound
from fleet.events.journal import build_event
from fleet.limits.shares import limit_of, too_many
from fleet.operation import made_before, new_id, repeatable
from fleet.projects.scope import count_of, owned
from fleet.ray_calls import ray_call
from fleet.sealing import fleet_secret
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from fleet.store.tables import Build, BuildLog, Project
from fleet.times import now_ms

log = structlog.get_logger(__name__)

_COLLECT_EVERY_S = 600.0
CHUNK_S = 60.0  # between two parts of an upload
SUBMIT_S = 5.0  # for beginning a pipeline; then `recover` does it
_KNOWN = 1000
_NEWEST = (
    "SELECT build_id FROM build WHERE project_id = ? AND name = ? AND status = 'ready' ORDER BY version DESC LIMIT 1"
)
# registry/path:tag or @sha256:…; a reference without either would silently mean a moving "latest".
ReadyBy = Literal["ports", "game"]
_IMAGE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:/-]*(:[\w][\w.-]{0,127}|@sha256:[0-9a-f]{64})")


class BuildService:
    """`submit` begins a build's pipeline somewhere and returns at once; losing it is made good by `recover`."""

    def __init__(self, store: Store, settings: FleetSettings, submit: Callable[[str], None] = submit) -> None:
        self._store = store
        self._settings = settings
        self._submit = submit
        self._collect_at = 0.0
        self._known: dict[str, Build] = {}

    # Beginning --------------------------------------------------------------------------------------------------

    async def request_upload(
        self,
        project_id: str,
        name: str,
        executable_path: str | None,
        *,
        writable: bool = False,
        ready_by: ReadyBy = "ports",
    ) -> Build:
        """A new version in `uploading`; its link (`upload_path`) holds for `upload.url_ttl_s`."""
        now = now_ms()
        build = self._new(project_id, name, "zip", "uploading", now)
        build.executable_path = executable_path or DEFAULT_EXECUTABLE
        build.writable = writable
        build.ready_by = ready_by
        build.upload_expires_at = now + self._settings.upload.url_ttl_s * 1000
        return await self._insert(build)

    def upload_path(self, build: Build) -> str:
        """Path and query of the signed link."""
        expires = (build.upload_expires_at or 0) // 1000
        signature = sign_upload(fleet_secret(self._settings.home), build.build_id, expires)
        return f"/upload/{build.build_id}?expires={expires}&signature={signature}"

    async def docker_image(
        self,
        project_id: str,
        name: str,
        image_url: str,
        executable_path: str | None,
        credentials: dict[str, str] | None,
        *,
        writable: bool = False,
        ready_by: ReadyBy = "ports",
    ) -> Build:
        """A new version in `processing`, whose image is checked by the pipeline."""
        if not _IMAGE.fullmatch(image_url) or len(image_url) > 512:
            raise BadRequest(
                "image_url must be an image reference with a tag or digest, such as registry.example.com/game:1.4.",
                error="Bad image reference",
            )
        build = self._new(project_id, name, "docker_image", "processing", now_ms())
        build.image_url = image_url
        build.executable_path = executable_path
        build.writable = writable
        build.ready_by = ready_by
        if credentials:
            build.registry_credentials = hide_credentials(credentials, self._settings)
        build = await self._insert(build)
        await self._begin(build.build_id)
        return build

    async def _begin(self, build_id: str, *, waits: bool = True) -> None:
        """Begin its pipeline, if that `waits` for no turn, or it is its turn. Else the run that ends next begins it."""
        try:
            if waits and build_id not in await self._next_builds():
                log.info("build_waits", build_id=build_id)
                return
            await ray_call("the start of a build's pipeline", partial(self._submit, build_id), SUBMIT_S)
        except Exception as error:  # the caller's work is committed, and `recover` begins what this could not
            log.warning("pipeline_not_begun", build_id=build_id, error=repr(error))

    def _new(self, project_id: str, name: str, kind: str, status: str, now: int) -> Build:
        return Build(
            build_id=new_id(),
            project_id=project_id,
            name=name,
            version=0,
            status=status,
            build_type=kind,
            created_at=now,
        )

    async def _insert(self, build: Build) -> Build:
        """Number it within its name; the write transaction makes the number ours alone."""
        async with self._store.write() as session:
            if repeatable() and (made := await session.get(Build, build.build_id)) is not None:
                return made  # by an earlier try of this write
            mine = (col(Build.project_id) == build.project_id, col(Build.name) == build.name)
            await self._check_share(session, build.project_id)
            await check_room(session, self._settings, build, 0)
            last = (await session.exec(select(func.max(Build.version)).where(*mine))).one()
            build.version = (last or 0) + 1
            session.add(build)
            if build.status == "processing":  # an image: there is nothing to upload
                session.add(build_event(build, "processing"))
        return build

    async def _check_share(self, session: AsyncSession, project_id: str) -> None:
        """`TooMany` if the project has as many builds under way as it may."""
        project = await session.get(Project, project_id)
        limit = limit_of(self._settings, project.plan if project else "", "builds")
        busy = owned(Build, project_id).where(col(Build.status).in_(("uploading", "processing")))
        if (number := (await session.exec(count_of(busy))).one()) >= limit:
            raise too_many("builds", number)

    # Uploading --------------------------------------------------------------------------------------------------

    async def receive_upload(self, build_id: str, expires: int, signature: str, chunks: AsyncIterator[bytes]) -> Build:
        """Take the ZIP's bytes and begin processing. A transfer that breaks off changes nothing: PUT again."""
        verify_upload(fleet_secret(self._settings.home), build_id, expires, signature, now_ms() / 1000)
        return await self._take_upload(build_id, chunks)

    async def owner_of(self, build_id: str, expires: int, signature: str) -> tuple[str, str]:
        """Project and plan of the build that this link uploads. Forbidden for a link that is none of ours."""
        verify_upload(fleet_secret(self._settings.home), build_id, expires, signature, now_ms() / 1000)
        query = select(Project.id, Project.plan).join(Build, col(Build.project_id) == col(Project.id))
        async with self._store.read() as session:
            found = (await session.exec(query.where(col(Build.build_id) == build_id))).first()
        if found is None:
            raise NotFound("There is no such build.", error="Build not found")
        return found

    async def upload(self, project_id: str, name: str, chunks: AsyncIterator[bytes]) -> Build:
        """A new version from bytes that the caller's own request brings. If they break off, it will fail."""
        build = await self.request_upload(project_id, name, None)
        return await self._take_upload(build.build_id, chunks)

    async def _take_upload(self, build_id: str, chunks: AsyncIterator[bytes]) -> Build:
        file = self._upload_file(build_id)
        # Held until the commit, and the state is looked at inside: nobody can change a file that is being processed.
        with UploadLock(file):
            async with self._store.read() as session:
                self._takes_upload(await session.get(Build, build_id))
            size = await self._receive(file, chunks)
            try:
                build = await self._received(build_id, size)
            except FleetError:  # deleted meanwhile, or more than the plan allows
                file.unlink(missing_ok=True)
                raise
        await self._begin(build_id)
        return build

    async def _receive(self, file: Path, chunks: AsyncIterator[bytes]) -> int:
        sink = UploadSink(file, self._settings.upload.max_packed_mb << 20)
        try:
            while (chunk := await _next(chunks)) is not None:
                await sink.write(chunk)
            if sink.size == 0:
                raise BadRequest("The upload is empty. PUT the ZIP's bytes as the request body.")
            return await sink.finish()
        except BaseException:
            await asyncio.shield(sink.abort())
            raise

    async def _received(self, build_id: str, size: int) -> Build:
        async with self._store.write() as session:
            build = self._takes_upload(await session.get(Build, build_id))
            await check_room(session, self._settings, build, size)
            build.status, build.packed_bytes, build.updated_at = "processing", size, now_ms()
            note(session, build_id, "info", f"Received {size} bytes.")
            session.add_all([build_event(build, "uploaded"), build_event(build, "processing")])
        return build

    def _takes_upload(self, build: Build | None) -> Build:
        if build is None or build.status == "deleted":
            raise NotFound("There is no such build.", error="Build not found")
        if build.status != "uploading":
            raise Conflict(f"The build is '{build.status}' and takes no upload. Ask for a new upload URL.")
        return build

    def _upload_file(self, build_id: str) -> Path:
        return self._settings.artefacts / "uploads" / f"{build_id}.zip"

    async def process(self, project_id: str, build_id: str, name: str | None) -> Build:
        """Begin processing if that has not happened by itself. Repeating it changes nothing."""
        build = await self.get(project_id, build_id)
        if name is not None and name != build.name:
            raise BadRequest(f"Build {build_id} is named '{build.name}', not '{name[:64]}'.")
        if build.status == "uploading":
            with UploadLock(self._upload_file(build_id)):
                if not self._upload_file(build_id).exists():
                    raise Conflict("Nothing has been uploaded yet: PUT the ZIP to the upload_url first.")
                await self._restart(build, "uploading")
        elif build.status == "failed":
            if build.build_type == "zip" and not self._upload_file(build_id).exists():
                raise Conflict(f"The build failed: {build.error} Ask for a new upload URL and upload it again.")
            await self._restart(build, "failed")
        return await self.get(project_id, build_id)

    async def stored(self, build_id: str) -> bool:
        """An object store says that a build's ZIP is complete: process it, unless that has begun. True if it did now.

        Not scoped to a project: who calls this knows the fleet's own secret.
        """
        async with self._store.read() as session:
            build = await session.get(Build, build_id)
        if build is None or build.status != "uploading" or not self._upload_file(build_id).exists():
            return False
        try:
            lock = UploadLock(self._upload_file(build_id))
        except Conflict:  # its upload is still coming in, and will begin the processing
            return False
        with lock:
            await self._restart(build, "uploading")
        return True

    async def _restart(self, build: Build, status: str) -> None:
        values = {"status": "processing", "error": None, "lease_until": None}
        async with self._store.write() as session:
            if status == "failed":
                await self._check_share(session, build.project_id)
            found = (col(Build.build_id) == build.build_id, col(Build.status) == status)
            if (await session.exec(update(Build).where(*found).values(values))).rowcount:
                note(session, build.build_id, "info", BEGUN_AGAIN)
                session.add(build_event(build, "processing"))
        await self._begin(build.build_id)

    # Reading ----------------------------------------------------------------------------------------------------

    async def get(self, project_id: str, build_id: str) -> Build:
        query = owned(Build, project_id).where(col(Build.build_id) == build_id)
        build = await self._store.first(query)
        if build is None:
            raise NotFound(f"There is no build '{build_id[:64]}' in this project.", error="Build not found")
        return build

    async def settled(self, project_id: str, build_id: str, timeout_s: float) -> Build:
        """The build once it is ready, failed or deleted, or as it is at the timeout."""
        deadline = time.monotonic() + timeout_s
        build = await self.get(project_id, build_id)
        while build.status in ("uploading", "processing") and (left := deadline - time.monotonic()) > 0:
            await self._store.changed(left)
            build = await self.get(project_id, build_id)
        return build

    async def logs(self, project_id: str, build_id: str, limit: int, offset: int) -> tuple[list[BuildLog], int]:
        """One page of the pipeline's log, oldest first, and the number of all lines."""
        await self.get(project_id, build_id)
        mine = col(BuildLog.build_id) == build_id
        page = select(BuildLog).where(mine).order_by(col(BuildLog.id)).limit(limit).offset(offset)
        async with self._store.read() as session:
            total = (await session.exec(select(func.count()).select_from(BuildLog).where(mine))).one()
            return list((await session.exec(page)).all()), total

    async def resolve(self, project_id: str, name: str, version: int | None) -> Build:
        """The newest ready build of a name, or that very version."""
        if version is None and (known := self._newest_known(project_id, name)) is not None:
            return known
        rows = owned(Build, project_id).where(col(Build.name) == name).order_by(col(Build.version).desc())
        if version is not None:
            found = await self._store.first(rows.where(col(Build.version) == version))
        else:
            found = await self._store.first(rows.where(col(Build.status) == "ready").limit(1))
            found = found or await self._store.first(rows.where(col(Build.status) != "deleted").limit(1))
        which = f"'{name[:64]}'" + (f" version {version}" if version is not None else "")
        if found is None or found.status == "deleted":
            raise NotFound(f"There is no ready build {which}. Upload one first.", error="No ready build")
        if found.status != "ready":
            raise Conflict(f"There is no ready build {which}: it is '{found.status}'.", error="No ready build")
        self._known[found.build_id] = found
        if len(self._known) > _KNOWN:
            del self._known[next(iter(self._known))]
        return found

    def _newest_known(self, project_id: str, name: str) -> Build | None:
        """The newest ready build if its row was read before: asked at every start. A ready build changes in nothing
        but its status, which is asked anew each time."""
        build_id = self._store.glance(_NEWEST, project_id, name)
        return self._known.get(build_id) if build_id is not None else None

    # Ending -----------------------------------------------------------------------------------------------------

    async def delete(self, project_id: str, build_id: str) -> None:
        """Hide it from starts and lists; running servers keep it. Its storage goes when nothing needs it."""
        async with self._store.write() as session:
            query = owned(Build, project_id).where(col(Build.build_id) == build_id)
            build = (await session.exec(query)).first()
            if build is not None and build.status == "deleted" and made_before():
                return  # by an earlier try of this write
            if build is None or build.status == "deleted":
                raise NotFound(f"There is no build '{build_id[:64]}' in this project.", error="Build not found")
            build.status, build.updated_at = "deleted", now_ms()
            session.add(build_event(build, "deleted"))
        await self._begin(build_id, waits=False)  # for a deleted build the pipeline collects garbage

    async def expire_uploads(self) -> int:
        """Builds whose link ran out without an upload have failed; how many."""
        now = now_ms()
        query = select(Build.build_id).where(col(Build.status) == "uploading", col(Build.upload_expires_at) < now)
        async with self._store.read() as session:
            late = list((await session.exec(query)).all())
        return sum([await self._expire(build_id, now) for build_id in late])

    async def _expire(self, build_id: str, now: int) -> bool:
        """False if the build's upload is still coming in, or no longer awaited."""
        file = self._upload_file(build_id)
        try:
            lock = UploadLock(file)
        except Conflict:
            return False
        with lock:
            async with self._store.write() as session:
                build = await session.get(Build, build_id)
                if build is None or build.status != "uploading":
                    return False
                build.status, build.updated_at = "failed", now
                build.error = "No upload was completed before the link expired. Ask for a new upload URL."
                note(session, build_id, "error", build.error)
                session.add(build_event(build, "failed"))
        drop_upload(file)
        return True

    async def recover(self) -> int:
        """Submit builds whose turn it is and that no run holds, such as those whose process was lost; how many. Now and
        then, collect garbage."""
        builds = await self._next_builds()
        for build_id in builds:
            await self._begin(build_id, waits=False)
        if time.monotonic() >= self._collect_at:  # a server's end, which frees its build, is not told to us
            await collect(self._store, self._settings)
            self._collect_at = time.monotonic() + _COLLECT_EVERY_S
        return len(builds)

    async def _next_builds(self) -> builtins.list[str]:
        async with self._store.read() as session:
            return await next_builds(session, self._settings.pipeline, now_ms())

    # Last, since inside the class its name hides the built-in type.
    async def list(self, project_id: str, name: str | None, limit: int, offset: int) -> tuple[list[Build], int]:
        """One page, newest first, without deleted builds, and the number of all."""
        rows = owned(Build, project_id).where(col(Build.status) != "deleted")
        if name is not None:
            rows = rows.where(col(Build.name) == name)
        page = rows.order_by(col(Build.created_at).desc(), col(Build.version).desc()).limit(limit).offset(offset)
        async with self._store.read() as session:
            total = (await session.exec(count_of(rows))).one()
            return list((await session.exec(page)).all()), total


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    """The next part of an upload, None at its end. A client that sends nothing any more is let go."""
    try:
        async with asyncio.timeout(CHUNK_S):
            return await anext(chunks, None)
    except TimeoutError:
        text = f"The upload made no progress for {CHUNK_S:.0f} s. PUT it again while the link is valid."
        raise BadRequest(text, error="Upload interrupted", status=408) from None
