"""What containers may write to the disk, carried out: `disk.py` decides, `server_disks.py` mounts."""

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fleet.node.as_root import NotAllowed
from fleet.node.disk import DiskMeans, DiskPlan, DiskRefused, disk_plan
from fleet.node.docker_spec import ImageFacts
from fleet.node.runtime import BuildRef, EngineUnavailable, LaunchFailed, LaunchSpec, RunKey, RuntimePlace
from fleet.node.server_disks import ServerDisks


class DockerDisks:
    """Of one agent's containers."""

    def __init__(self, place: RuntimePlace) -> None:
        self.files = ServerDisks(place.servers_dir, place.min_free_percent)
        self._scope = place.region
        self._full: set[RunKey] = set()
        self.means = DiskMeans()

    async def look(self, info: dict[str, Any], socket: str) -> None:
        """What this machine can do. `info`: the engine's, which listens at `socket`."""
        self.means = await asyncio.to_thread(self.files.means, info, socket, self._scope)

    def check(self, build: BuildRef, image: ImageFacts) -> None:
        """LaunchFailed if nothing here can limit what servers of the build write."""
        self._plan(build, image, 1, 1)

    def plan(self, spec: LaunchSpec, image: ImageFacts) -> DiskPlan:
        return self._plan(spec.build, image, spec.disk_mb, spec.memory_mb)

    def _plan(self, build: BuildRef, image: ImageFacts, disk_mb: int, memory_mb: int) -> DiskPlan:
        writable = build.kind == "image" and build.writable
        try:
            return disk_plan(image.volumes, writable=writable, means=self.means, disk_mb=disk_mb, memory_mb=memory_mb)
        except DiskRefused as refused:
            raise LaunchFailed("STARTUP_FAILURE_EXECUTABLE", str(refused)) from refused

    async def ready(self, key: RunKey, plan: DiskPlan) -> Path:
        """Where the run's file system is, made if it is not there. OSError (no space) if there is no room for it."""
        if not plan.mounts:
            return self.files.path(str(key))
        try:
            return await asyncio.to_thread(self.files.ensure, str(key), plan.size_mb, len(plan.volumes))
        except NotAllowed as error:
            raise EngineUnavailable(f"the server's disk cannot be made: {error}") from error

    async def attach(self, key: RunKey, details: dict[str, Any]) -> None:
        """Before the start of a container that was made: what it writes goes to the run's own file system."""
        try:
            await asyncio.to_thread(self.files.attach, str(key), details)
        except NotAllowed as error:
            raise EngineUnavailable(f"the server's disk cannot be used: {error}") from error

    async def remove(self, key: RunKey) -> None:
        self._full.discard(key)
        try:
            await asyncio.to_thread(self.files.remove, str(key))
        except NotAllowed as error:
            raise EngineUnavailable(f"the server's disk cannot be removed: {error}") from error

    async def full(self, keys: Collection[RunKey]) -> frozenset[RunKey]:
        """Those of these runs whose file system is full."""
        before, look = frozenset(self._full), self.files.is_full
        self._full = await asyncio.to_thread(lambda: {key for key in keys if look(str(key), was_full=key in before)})
        return frozenset(self._full)
