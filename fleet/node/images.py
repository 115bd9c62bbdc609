"""Images of builds: pulled by the digest that the pipeline has found, and derived once.

The engine knows a pulled image by repository and digest alone (`fleet-image:<hash of both>`), so it is shared by those
builds whose own login has proved that they may read it, and by no others. It is pulled from our own mirror
(`registry_mirror.py`).

The derived image `fleet-build:<build_id>` adds one symlink, playflow.json beside the executable, pointing into the
per-server folder that is mounted at launch.
"""

import asyncio
import contextlib
import io
import posixpath
import tarfile
from typing import Any

import structlog

from fleet.builds.image_names import ImageName, Registries
from fleet.builds.registry import Registry
from fleet.errors import FleetError, Unavailable
from fleet.node.base_image import image_exists, pull_image
from fleet.node.docker_spec import CONFIG, ImageFacts
from fleet.node.engine import Engine, EngineError
from fleet.node.image_cache import DERIVED, ImageCache, image_key, pulled_name
from fleet.node.registry_mirror import RegistryMirror
from fleet.node.runtime import BuildRef, EngineUnavailable, LaunchFailed, RuntimePlace
from fleet.node.secret_files import SECRETS
from fleet.node.server_folder import CONFIG_FILE

log = structlog.get_logger(__name__)


class BuildImages:
    """Images of this node's builds. What it remembers is a cache of what the engine holds."""

    def __init__(self, engine: Engine, place: RuntimePlace) -> None:
        self._engine, self._no_progress_s = engine, place.no_progress_s
        self._registries = Registries(place.registries)
        self._mirror = RegistryMirror()
        self.cache = ImageCache(engine, place.servers_dir.parent, place.image_limits)
        self._facts: dict[str, ImageFacts] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def prepare(self, build: BuildRef) -> ImageFacts:
        """The derived image of `build`, made if it is not there. LaunchFailed says why not."""
        if build.content_hash:
            await asyncio.to_thread(self.cache.want, image_key(build.image or "", build.content_hash), build.build_id)
        if build.build_id in self._facts:
            return self._facts[build.build_id]
        async with self._locks.setdefault(build.build_id, asyncio.Lock()):
            if build.build_id not in self._facts:
                self._facts[build.build_id] = await self._prepare(build)
        return self._facts[build.build_id]

    async def close(self) -> None:
        await self._mirror.close()

    def forget(self, build: BuildRef) -> None:
        """The engine says the image is gone: look again next time."""
        self._facts.pop(build.build_id, None)

    async def _prepare(self, build: BuildRef) -> ImageFacts:
        derived = f"{DERIVED}:{build.build_id}"
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
        """The very image that the pipeline saw: the pulled one, or, of an image that no registry has, by its id."""
        digest = build.content_hash or ""
        if not digest:
            raise LaunchFailed("STARTUP_FAILURE_DOWNLOAD", f"Build {build.build_id} names no image.")
        pulled = pulled_name(image_key(build.image or "", digest))
        if await image_exists(self._engine, pulled):
            return pulled
        if not build.packed_bytes:  # of the operator's local ones
            if await image_exists(self._engine, digest):
                return digest
            message = f"This node's engine does not have the local image '{build.image}'."
            raise LaunchFailed("STARTUP_FAILURE_DOWNLOAD", message)
        await self._pull(build, digest, pulled)
        return pulled

    async def _pull(self, build: BuildRef, digest: str, pulled: str) -> None:
        await self.cache.make_room(build.packed_bytes)
        name = ImageName.parse(build.image or "")
        silence_s = self._no_progress_s
        async with (
            Registry(name, build.credentials, self._registries, silence_s=silence_s) as registry,
            self._mirror.offer(registry) as (repository, offer),
        ):
            source = f"{repository}@{digest}"
            try:
                await pull_image(self._engine, source, silence_s, look=self._check_room)
                await self._take(source, pulled)
            except EngineError as error:
                log.warning("pull_failed", build_id=build.build_id, error=error.message, problem=repr(offer.problem))
                raise _pull_failed(build, offer.problem) from error

    async def _take(self, source: str, pulled: str) -> None:
        """Keep what was pulled under a name of its own, if it is not too large."""
        details = await self._engine.call("GET", f"/images/{source}/json")
        size, (repository, _, tag) = int(details.get("Size") or 0), pulled.partition(":")
        too_large = size > self.cache.largest
        if not too_large:
            await self._engine.call("POST", f"/images/{details['Id']}/tag", params={"repo": repository, "tag": tag})
        await self._engine.call("DELETE", f"/images/{source}")
        if too_large:
            most = self.cache.largest >> 20
            message = f"The image has {size >> 20} MB unpacked; {most} MB are allowed."
            raise LaunchFailed("STARTUP_FAILURE_DOWNLOAD", message)

    def _check_room(self) -> None:
        """During a pull: how much a stranger's layers unpack to is known only while they do."""
        if self.cache.short() > 0:
            raise EngineUnavailable("the engine's disk has no room for the image")

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
    volumes = {posixpath.normpath(path) for path in config.get("Volumes") or ()} - {CONFIG, SECRETS}
    user = str(config.get("User") or "")
    return ImageFacts(reference, entrypoint, command, names, tuple(sorted(volumes)), user)


def _pull_failed(build: BuildRef, problem: FleetError | None) -> Exception:
    """What went wrong with the registry is told; what an engine says of a stranger's layers is for the log alone."""
    if isinstance(problem, Unavailable):
        return EngineUnavailable(f"the image of build {build.build_id} cannot be pulled now: {problem.detail}")
    detail = problem.detail if problem else "The engine cannot take it in: it is not what its manifest says, or broken."
    return LaunchFailed("STARTUP_FAILURE_DOWNLOAD", f"The image '{build.image}' cannot be pulled. {detail}")
