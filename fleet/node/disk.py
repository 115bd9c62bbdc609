"""How much a server of an image may write, and what holds it to that. Pure: no engine, no files.

Two kinds of places in a container lead to the host's disk: the volumes that its image declares, and the whole root of a
`writable` image. Everything else is read-only, or memory that counts as the server's. What a host can do differs, so
the way is chosen per launch; where there is none the image is refused, with the reason.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# Of a file system that is as good as full, as a share of it; it counts as having room again above the second.
FULL_SHARE, ROOM_SHARE = 0.01, 0.05
# Volumes in memory: their share of the server's memory, so that a full volume does not end the game.
_MEMORY_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class DiskMeans:
    """What this machine can do. `loop`: why no file system can be mounted from a file, empty if it can; `layers`: the
    same of the engine's layer of a container on such a file system. `quota`: the engine itself limits that layer."""

    loop: str = "nobody has looked yet"
    layers: str = ""
    quota: bool = False


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """Where a container's writes go. `root` is None where its root is read-only. `volumes`: paths inside."""

    root: Literal["quota", "loop"] | None = None
    volumes: tuple[str, ...] = ()
    volumes_in: Literal["loop", "memory"] = "loop"
    size_mb: int = 0
    volume_mb: int = 0  # of each volume in memory

    @property
    def mounts(self) -> bool:
        """Whether it needs a file system of its own."""
        return self.root == "loop" or (bool(self.volumes) and self.volumes_in == "loop")


class DiskRefused(Exception):
    """Nothing here can hold the image to its limit; says why."""


def disk_plan(volumes: Iterable[str], *, writable: bool, means: DiskMeans, disk_mb: int, memory_mb: int) -> DiskPlan:
    """How an image's writes are limited to `disk_mb`, all its places together where they are on disk."""
    paths = tuple(sorted(volumes))
    root = _root(means) if writable else None
    if not paths or (not means.loop and root != "quota"):
        return DiskPlan(root, paths, "loop", disk_mb)
    # A limit of the engine's own is of the root alone, so volumes do not come on top of it on the disk.
    in_memory = min(disk_mb, int(memory_mb * _MEMORY_SHARE))
    return DiskPlan(root, paths, "memory", disk_mb, max(1, in_memory // len(paths)))


def _root(means: DiskMeans) -> Literal["quota", "loop"]:
    if means.quota:
        return "quota"
    problem = means.loop or means.layers
    if problem:
        raise DiskRefused(
            "This node cannot limit what a writable image writes to its disk, so it does not run it: "
            f"{problem}. Make the build without `writable`, and write to a VOLUME or to /tmp."
        )
    return "loop"


def has_quota(info: Mapping[str, Any], mounts: str) -> bool:
    """Whether the engine (its `/info`) can limit a container's layer, given the kernel's list of mounts
    (`/proc/self/mounts`)."""
    driver = str(info.get("Driver"))
    if driver in ("btrfs", "zfs"):
        return True
    if driver != "overlay2":
        return False
    folder = str(info.get("DockerRootDir"))
    best = ("", "", "")
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 4:
            continue
        place = fields[1].rstrip("/")
        if (folder == place or folder.startswith(f"{place}/")) and len(place) >= len(best[0]):
            best = (place, fields[2], fields[3])
    options = best[2].split(",")
    return best[1] == "xfs" and ("prjquota" in options or "pquota" in options)


def no_room(size: int, promised: int, free: int, total: int, min_free_percent: float) -> str:
    """Why a file system of so many bytes cannot be promised; empty if it can. `promised`: what others may yet write."""
    left = free - promised - int(total * min_free_percent / 100)
    if size <= left:
        return ""
    return (
        f"the server may write {size >> 20} MB, and this node's disk has {max(0, left) >> 20} MB left for that beside "
        "what it must keep free and what other servers may write"
    )


def is_full(free: int, total: int, *, was_full: bool) -> bool:
    """Whether a file system counts as full: it does until there is clearly room again."""
    return free < total * (ROOM_SHARE if was_full else FULL_SHARE)
