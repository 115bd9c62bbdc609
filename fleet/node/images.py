"""Images of builds: a docker_image build is pulled once and derived once, so that a moving tag cannot change it.

The derived image `fleet-build:<build_id>` adds one symlink, playflow.json beside the executable, pointing into the
per-server folder that is mounted at launch.
"""

import asyncio
import base64
import contextlib
import io
import posixpath
import tarfile
from typing import Any

import orjson
import structlog

from fleet.node.base_image import image_exists, pull_image
from fleet.node.docker_spec import CONFIG, ImageFacts
from fleet.node.engine import Engine, EngineError
from fleet.node.runtime import BuildRef, EngineUnavailable, LaunchFailed
from fleet.node.server_folder import CONFIG_FILE

log = structlog.get_logger(__name__)


class BuildImages:
    """Images of this node's builds. What it remembers is a cache of what the engine holds."""

    def __init__(self, engine: Engine, no_progress_s: float) -> None:
        self._engine, self._no_progress_s = engine, no_progress_s
        self._facts: dict[str, ImageFacts] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def prepare(self, build: BuildRef) -> ImageFacts:
        """The derived image of `build`, made if it is not there. LaunchFailed says why not."""
        if build.build_id in self._facts:
            return self._facts[build.build_id]
        async with self._locks.setdefault(build.build_id, asyncio.Lock()):
            if build.build_id not in self._facts:
                self._facts[build.build_id] = await self._prepare(build)
        return self._facts[build.build_id]

    def forget(self, build: BuildRef) -> None:
        """The engine says the image is gone: look again next time."""
        self._facts.pop(build.build_id, None)

    async def _prepare(self, build: BuildRef) -> ImageFacts:
        derived = f"fleet-build:{build.build_id}"
        try:
            if not await image_exists(self._engine, derived):
                await self._derive(build, derived)
            return facts_of(derived, await self._engine.call("GET", f"/images/{derived}/json"))
        except EngineError as error:
            raise EngineUnavailable(f"image of build {build.build_id}: {error.message}") from error

    async def _derive(self, build: BuildRef, derived: str) -> None:
        source = await self._source(build)
        details = await self._engine.call("GET", f"/images/{source}/json")
        folder = config_folder(build, details["Config"] or {})
        # Without a command the engine refuses to create; it is never started, and launches bring their own.
        entrypoint = {"Entrypoint": [build.executable]} if build.executable else {}
        created = await self._create({"Image": details["Id"], "Labels": {"fleet.build": build.build_id}} | entrypoint)
        try:
            if build.executable:
                await self._check_executable(created, build.executable, source)
            await self._add_link(created, folder)
            name, _, tag = derived.partition(":")
            params = {"container": created, "repo": name, "tag": tag}
            await self._engine.call("POST", "/commit", params=params, json={}, timeout_s=300)
        finally:
            # If this fails too, it is found by its label (`docker_orphans.py`).
            with contextlib.suppress(EngineError, EngineUnavailable):
                await self._engine.call("DELETE", f"/containers/{created}", params={"v": "1", "force": "1"})
        log.info("image_derived", build_id=build.build_id, image=source, id=details["Id"])

    async def _source(self, build: BuildRef) -> str:
        """The very image that the pipeline saw, by its id, if it is here; else the name, pulled if need be.

        Never asks a registry for what is here: a local-only image is fine.
        """
        if build.content_hash and await image_exists(self._engine, build.content_hash):
            return build.content_hash
        source = build.image or ""
        if not source:
            raise LaunchFailed("STARTUP_FAILURE_DOWNLOAD", f"Build {build.build_id} names no image.")
        if not await image_exists(self._engine, source):
            await self._pull(source, build)
        return source

    async def _pull(self, source: str, build: BuildRef) -> None:
        try:
            await pull_image(self._engine, source, self._no_progress_s, auth_header(build.credentials))
        except EngineError as error:
            message = f"Image '{source}' cannot be pulled: {error.message[:300]}. Check its name and credentials."
            raise LaunchFailed("STARTUP_FAILURE_DOWNLOAD", message) from error

    async def _create(self, config: dict[str, Any]) -> str:
        try:
            return (await self._engine.call("POST", "/containers/create", json=config))["Id"]
        except EngineError as error:
            if error.status != 400:
                raise
            message = f"The image cannot start: {error.message[:300]}. Give it an ENTRYPOINT, or set executable_path."
            raise LaunchFailed("STARTUP_FAILURE_EXECUTABLE", message) from error

    async def _check_executable(self, container: str, executable: str, image: str) -> None:
        if not executable.startswith("/"):
            return  # looked up in the image's PATH at start
        try:
            path = f"/containers/{container}/archive"
            await self._engine.call("GET", path, params={"path": executable}, decode=False)
        except EngineError as error:
            if error.status != 404:
                raise
            message = f"'{executable}' is not in image '{image}'."
            raise LaunchFailed("STARTUP_FAILURE_EXECUTABLE", message) from error

    async def _add_link(self, container: str, folder: str) -> None:
        path = posixpath.join(folder, CONFIG_FILE).lstrip("/")
        await self._engine.call(
            "PUT", f"/containers/{container}/archive", params={"path": "/"}, data=link_archive(path), timeout_s=300
        )


def config_folder(build: BuildRef, config: dict[str, Any]) -> str:
    """Folder of the build's own executable if it names one, else the image's working directory."""
    working: str = config.get("WorkingDir") or "/"
    if not build.executable:
        return working
    return posixpath.dirname(posixpath.normpath(posixpath.join(working, build.executable)))


def link_archive(path: str) -> bytes:
    """A tar that holds the symlink `path` → the mounted playflow.json."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo(path)
        link.type, link.linkname, link.mode = tarfile.SYMTYPE, f"{CONFIG}/{CONFIG_FILE}", 0o777
        archive.addfile(link)
    return buffer.getvalue()


def facts_of(reference: str, details: dict[str, Any]) -> ImageFacts:
    """What a launch needs of the engine's description of an image."""
    config: dict[str, list[str] | None] = details.get("Config") or {}
    names = frozenset(entry.partition("=")[0] for entry in config.get("Env") or [])
    entrypoint, command = tuple(config.get("Entrypoint") or ()), tuple(config.get("Cmd") or ())
    # Ours go before the image's: what is mounted there is read-only.
    volumes = {posixpath.normpath(path) for path in config.get("Volumes") or ()} - {CONFIG}
    return ImageFacts(reference, entrypoint, command, names, tuple(sorted(volumes)))


def auth_header(credentials: dict[str, str] | None) -> dict[str, str] | None:
    if not credentials:
        return None
    return {"X-Registry-Auth": base64.urlsafe_b64encode(orjson.dumps(credentials)).decode()}
