"""Builds: upload a game, register an image, wait until it is ready."""

import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, Unpack

import httpx

from fleet.client._async.transport import AsyncResource, PlainErrors, good, part
from fleet.client.errors import Conflict, WaitFailed
from fleet.client.models import AcceptedOut, BuildListOut, BuildLogsOut, BuildOut, DeletedOut, UploadOut
from fleet.client.packing import Progress, as_archive
from fleet.client.requests import DockerImageIn
from fleet.client.waiting import run_async

PAGE = 100
CHUNK = 1 << 20
UPLOAD_TIMEOUT = httpx.Timeout(600.0, connect=10.0)
LONGEST_WAIT_S = 60.0
_PATH = "/api/v3/builds"


class AsyncBuilds(AsyncResource):
    async def list(self, *, name: str | None = None, limit: int = 50, offset: int = 0) -> BuildListOut:
        """One page, newest first."""
        return await self._api.get(BuildListOut, _PATH, name=name, limit=limit, offset=offset)

    async def iterate(self, *, name: str | None = None) -> AsyncIterator[BuildOut]:
        """All of them, over all pages, none twice."""
        seen: set[str] = set()
        offset, more = 0, True
        while more:
            page = await self.list(name=name, limit=PAGE, offset=offset)
            for build in page.builds:
                if build.build_id not in seen:
                    seen.add(build.build_id)
                    yield build
            offset += PAGE
            more = page.has_more

    async def get(self, build_id: str) -> BuildOut:
        return await self._api.get(BuildOut, f"{_PATH}/{part(build_id)}")

    async def upload(
        self,
        source: Path | str,
        *,
        name: str = "default",
        executable_path: str | None = None,
        writable: bool | None = None,
        ready_by: Literal["ports", "game"] | None = None,
        progress: Progress | None = None,
    ) -> BuildOut:
        """A build of a ZIP, or of a folder, which is packed first. Processing begins by itself: see `wait_ready`.

        The file is never in memory as a whole. `progress` hears how many bytes have gone out, and of how many."""
        with tempfile.TemporaryDirectory(prefix="fleet-upload-") as folder:
            archive, size = await run_async(as_archive, Path(source), Path(folder))
            begun = await self._api.write(
                UploadOut,
                "POST",
                f"{_PATH}/upload-url",
                name=name,
                executable_path=executable_path,
                writable=writable,
                ready_by=ready_by,
            )
            await self._put(begun, archive, size, progress)
        return await self.get(begun.build_id)

    async def _put(self, begun: UploadOut, archive: Path, size: int, progress: Progress | None) -> None:
        """Send the file, again from its beginning where a connection breaks."""
        headers = {"content-length": str(size), "content-type": "application/zip"}
        options: dict[str, Any] = {"headers": headers, "timeout": UPLOAD_TIMEOUT}
        async for attempt in self._api.repeated():
            with attempt, PlainErrors(begun.upload_url):
                try:
                    content = _chunks(archive, size, progress)
                    good(await self._api.http.put(begun.upload_url, content=content, **options))
                except Conflict:
                    # The first try may have arrived whole, and only its answer been lost.
                    first = attempt.retry_state.attempt_number == 1
                    if first or (await self.get(begun.build_id)).status == "uploading":
                        raise

    async def docker_image(self, **image: Unpack[DockerImageIn]) -> BuildOut:
        """A build of a container image, which the fleet checks: see `wait_ready`."""
        accepted = await self._api.write(AcceptedOut, "POST", f"{_PATH}/docker-image", body=image)
        return await self.get(accepted.build_id)

    async def wait_ready(self, build_id: str, *, within: float = 900.0) -> BuildOut:
        """The build once servers can start from it. `WaitFailed` with the pipeline's log if it failed."""
        until = time.monotonic() + within
        while True:
            held = max(0.0, min(until - time.monotonic(), LONGEST_WAIT_S))
            build = await self._api.get(
                BuildOut, f"{_PATH}/{part(build_id)}", within=held, wait_for="ready", timeout=held
            )
            if build.status == "ready":
                return build
            if build.status not in ("uploading", "processing"):
                raise WaitFailed(await self._why(build), build, error="The build failed")
            if time.monotonic() >= until:
                raise WaitFailed(f"Build {build_id} is still {build.status}.", build, error="Still processing")

    async def _why(self, build: BuildOut) -> str:
        lines = (await self.logs(build.build_id, limit=500)).logs
        told = "".join(f"\n  {line.level:7} {line.message}" for line in lines)
        return f"{build.failure_reason or build.status}{told}"

    async def logs(self, build_id: str, *, limit: int = 100, offset: int = 0) -> BuildLogsOut:
        """What was done with the build, oldest first."""
        return await self._api.get(BuildLogsOut, f"{_PATH}/{part(build_id)}/logs", limit=limit, offset=offset)

    async def delete(self, build_id: str) -> None:
        """No new server starts from it; those that run keep it."""
        await self._api.write(DeletedOut, "DELETE", f"{_PATH}/{part(build_id)}")


async def _chunks(archive: Path, size: int, progress: Progress | None) -> AsyncIterator[bytes]:
    sent = 0
    with archive.open("rb") as file:
        while chunk := await run_async(file.read, CHUNK):
            yield chunk
            sent += len(chunk)
            if progress is not None:
                progress(sent, size)
