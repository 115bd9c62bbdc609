"""The images that a node has pulled: which are kept, and which go when the disk is needed.

Files tell who wanted which image and when, since all agents of a machine share one engine and each may die at any time:
`<home>/images/<key>/<build>`, touched whenever the build is launched. The engine itself refuses to remove an image
that a container has, so what runs stays whatever these files say.
"""

import asyncio
import hashlib
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import structlog

from fleet.builds.bundle_cache import FRESH_S, Held, superfluous, used_at
from fleet.builds.image_names import ImageName
from fleet.node.engine import Engine, EngineError
from fleet.settings import ImageLimits

log = structlog.get_logger(__name__)

PULLED, DERIVED = "fleet-image", "fleet-build"
Wanted = Mapping[str, Mapping[str, float]]  # an image's key to build to when it was wanted (s)


def image_key(image: str, digest: str) -> str:
    """What tells an image from all others: its repository and digest. Who has the digest from elsewhere has not read
    the image, so the same digest in another repository is another one."""
    name = ImageName.parse(image)
    return hashlib.sha256(f"{name.host}/{name.repository}@{digest}".encode()).hexdigest()


def pulled_name(key: str) -> str:
    """The engine's name for a pulled image."""
    return f"{PULLED}:{key}"


def idle_images(wanted: Wanted, sizes: Mapping[str, int], in_use: Iterable[str]) -> list[Held]:
    """The images that no container has. `sizes`: of pulled ones (bytes); `in_use`: builds that have containers."""
    used = frozenset(in_use)
    return [
        Held(digest, sizes.get(digest, 0), max(builds.values(), default=0.0))
        for digest, builds in wanted.items()
        if not used & builds.keys()
    ]


class ImageCache:
    """Of one home, on one engine."""

    def __init__(self, engine: Engine, home: Path, limits: ImageLimits) -> None:
        self._engine, self._folder, self._limits = engine, home / "images", limits
        self._root = Path()

    def on_disk(self, root: str) -> None:
        """Where the engine keeps images."""
        self._root = Path(root)

    def want(self, key: str, build_id: str) -> None:
        """This build needs the image from now on."""
        folder = self._folder / key
        folder.mkdir(parents=True, exist_ok=True)
        (folder / build_id).touch()

    def short(self) -> int:
        """Bytes that the engine's disk lacks of what must stay free; 0 or less if it lacks none."""
        try:
            disk = shutil.disk_usage(self._root)
        except OSError:  # the engine is elsewhere, or it is not for us to see
            return 0
        return int(disk.total * self._limits.min_free_percent / 100) - disk.free

    @property
    def largest(self) -> int:
        """Bytes that one image may have."""
        return int(self._limits.max_image_gb * 2**30)

    async def make_room(self, extra: int = 0) -> list[str]:
        """Remove what the limits do not allow once `extra` more bytes are here; the digests that went. EngineError."""
        wanted = await asyncio.to_thread(self._wanted)
        if not wanted:
            return []
        sizes = await self._sizes()
        over = sum(sizes.get(digest, 0) for digest in wanted) + extra - int(self._limits.max_gb * 2**30)
        short = await asyncio.to_thread(self.short)
        going = superfluous(
            idle_images(wanted, sizes, await self._in_use()),
            time.time(),
            needed=max(over, short + extra),
            max_unused_s=self._limits.max_unused_days * 86400,
        )
        return [digest for digest in going if await self._remove(digest, list(wanted[digest]))]

    def _wanted(self) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for mark in self._folder.glob("*/*"):
            with suppress(FileNotFoundError):
                found.setdefault(mark.parent.name, {})[mark.name] = mark.stat().st_mtime
        return found

    async def _sizes(self) -> dict[str, int]:
        rows = await self._engine.call("GET", "/images/json", params=_filter("reference", PULLED))
        names = ((name, int(row["Size"])) for row in rows for name in row["RepoTags"] or ())
        return {name.partition(":")[2]: size for name, size in names if name.startswith(f"{PULLED}:")}

    async def _in_use(self) -> set[str]:
        rows: list[dict[str, Any]] = await self._engine.call(
            "GET", "/containers/json", params={"all": "1"} | _filter("label", "fleet.build")
        )
        return {row["Labels"]["fleet.build"] for row in rows}

    async def _remove(self, digest: str, builds: list[str]) -> bool:
        """False if it was wanted meanwhile."""
        folder = self._folder / digest
        if any(time.time() - used_at(folder / build) < FRESH_S for build in builds):
            return False
        for name in [*(f"{DERIVED}:{build}" for build in builds), f"{PULLED}:{digest}"]:
            try:
                await self._engine.call("DELETE", f"/images/{name}")
            except EngineError as error:
                if error.status != 404:
                    log.info("image_kept", image=name, reason=error.message)
                    return False
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        log.info("image_removed", digest=digest, builds=len(builds))
        return True


def _filter(kind: str, value: str) -> dict[str, str]:
    return {"filters": orjson.dumps({kind: [value]}).decode()}
