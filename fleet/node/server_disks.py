"""File systems of single servers: each a sparse file of the server's size, mounted by the kernel's loop device.

    <servers>/.disks/<run>/disk.img      the file; it takes what is really written
    <servers>/.disks/<run>/fs/diff       the writable half of the container's layer (`work`: beside it)
    <servers>/.disks/<run>/fs/volumes/   one folder for each declared volume

The game sees a disk of that size, which can be full; the host sees a file. The engine mounts a container's layer itself
and has its writable half in a folder of its own; so once it has made a container, that half is moved here and a link is
left. Whatever removes the container removes the link, and `remove` the rest. Mounts outlive the agent, as games do;
those that no container needs are found by `docker_orphans.py`. All methods block.
"""

import errno
import os
import posixpath
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import structlog

from fleet.node.as_root import NotAllowed, may_be_root, missing_tools, run_script
from fleet.node.disk import DiskMeans, has_quota, is_full, no_room
from fleet.node.file_lock import held

log = structlog.get_logger(__name__)

FOLDER = ".disks"
_IMAGE, _MOUNT, _VOLUMES = "disk.img", "fs", "volumes"
_TOOLS = ("mkfs.ext4", "mount", "umount", "mountpoint", "truncate")
_PROBE, _LOCK = ".probe", ".lock"
LOCK_S = 60.0  # while other agents of this machine make theirs
_PROBE_MB = 2

# No journal: a machine that fails takes its runs with it. `discard`: what is deleted inside is given back to the host.
_MAKE = """
folder=$1 size=$2 volumes=$3
mkdir -p "$folder/fs"
truncate -s "${size}M" "$folder/disk.img"
chmod 600 "$folder/disk.img"
mkfs.ext4 -q -F -m 0 -O ^has_journal -E lazy_itable_init=1,nodiscard "$folder/disk.img"
mount -o loop,nodev,nosuid,noatime,discard,noinit_itable "$folder/disk.img" "$folder/fs"
mkdir "$folder/fs/volumes"
number=0
while [ "$number" -lt "$volumes" ]; do mkdir "$folder/fs/volumes/$number"; number=$((number + 1)); done
"""
_ATTACH = """
fs=$1 layer=$2
for half in diff work; do
  [ ! -L "$layer/$half" ] || continue
  rm -rf "$fs/$half"
  mv "$layer/$half" "$fs/$half"
  ln -s "$fs/$half" "$layer/$half"
done
"""
_REMOVE = """
folder=$1
if mountpoint -q "$folder/fs"; then umount "$folder/fs" || umount -l "$folder/fs"; fi
rm -rf "$folder"
"""
_SAME_MOUNTS = '[ "$(readlink "/proc/$1/ns/mnt")" = "$(readlink /proc/self/ns/mnt)" ] || echo other'


class NoRoom(OSError):
    """The node's disk has no room to promise now."""


class ServerDisks:
    """Of all regions' runs in one folder of servers."""

    def __init__(self, servers_dir: Path, min_free_percent: float) -> None:
        self._folder = servers_dir / FOLDER
        self._min_free_percent = min_free_percent

    def means(self, info: dict[str, Any], engine_socket: str, scope: str) -> DiskMeans:
        """What this machine can do, tried out. `info`: the engine's; `scope`: who asks, of several agents."""
        driver = str(info.get("Driver"))
        layers = "" if driver == "overlay2" else f"the engine's storage driver is {driver}, not overlay2"
        try:
            mounts = Path("/proc/self/mounts").read_text()
        except OSError:
            mounts = ""
        means = DiskMeans(self._problem(engine_socket, scope), layers, has_quota(info, mounts))
        if means.loop:
            log.warning("server_disks_not_mounted", reason=means.loop)
        return means

    def _problem(self, engine_socket: str, scope: str) -> str:
        """Why no file system can be mounted here for the engine to see."""
        if not may_be_root():
            return "the agent is neither root nor may it use sudo without a password"
        if missing := missing_tools(_TOOLS):
            return f"{', '.join(missing)} not installed"
        probe = self._folder / f"{_PROBE}-{scope}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            pid = _peer(engine_socket)
            if not pid or run_script(_SAME_MOUNTS, pid):
                return "the engine does not see what this machine mounts"
            run_script(_REMOVE, probe)
            run_script(_MAKE, probe, _PROBE_MB, 1)
            run_script(_REMOVE, probe)
        except (OSError, NotAllowed) as error:
            return f"no file system can be mounted from a file: {error}"
        return ""

    def ensure(self, run: str, size_mb: int, volumes: int) -> Path:
        """Where this run's file system is mounted, made anew unless it is there. NoRoom, NotAllowed."""
        folder = self._folder / run
        if os.path.ismount(folder / _MOUNT):
            return folder / _MOUNT
        self._folder.mkdir(parents=True, exist_ok=True)
        with held(self._folder / _LOCK, LOCK_S):  # what two promise at the same time is promised once
            self.remove(run)
            self._check_room(size_mb << 20)
            run_script(_MAKE, folder, size_mb, volumes)
        return folder / _MOUNT

    def path(self, run: str) -> Path:
        return self._folder / run / _MOUNT

    def attach(self, run: str, details: dict[str, Any]) -> None:
        """Take the writable half of a container that was made and not started. `details`: the engine's of it."""
        driver: dict[str, Any] = details.get("GraphDriver") or {}
        halves: dict[str, str] = driver.get("Data") or {}
        layer = posixpath.dirname(halves.get("UpperDir", ""))
        if driver.get("Name") != "overlay2" or not layer or posixpath.dirname(halves.get("WorkDir", "")) != layer:
            raise NotAllowed(f"the engine keeps containers in a way that is not known ({driver.get('Name')})")
        run_script(_ATTACH, self.path(run), layer)

    def remove(self, run: str) -> None:
        """Nothing is left of it. No error if there is nothing. NotAllowed if it cannot be removed."""
        if (self._folder / run).exists():
            run_script(_REMOVE, self._folder / run)

    def runs(self) -> set[str]:
        """Those that have a file system here."""
        return {path.name for path in self._folder.glob("*") if not path.name.startswith(".")}

    def is_full(self, run: str, *, was_full: bool) -> bool:
        """Whether the game can write nothing more, as it would see it."""
        try:
            seen = os.statvfs(self.path(run))
        except OSError:
            return False
        room = is_full(seen.f_bavail, seen.f_blocks, was_full=was_full)
        return room or is_full(seen.f_favail, seen.f_files, was_full=was_full)

    def promised(self) -> int:
        """Bytes that servers may yet write."""
        return sum(size - min(size, written) for size, written in self._files())

    def _files(self) -> Iterable[tuple[int, int]]:
        for file in self._folder.glob(f"*/{_IMAGE}"):
            try:
                seen = file.stat()
            except FileNotFoundError:
                continue
            yield seen.st_size, seen.st_blocks * 512

    def _check_room(self, size: int) -> None:
        disk = os.statvfs(self._folder)
        free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        if problem := no_room(size, self.promised(), free, total, self._min_free_percent):
            raise NoRoom(errno.ENOSPC, problem)


def _peer(path: str) -> int:
    """The process that listens there; 0 if it is in another world of processes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking:
        knocking.settimeout(5.0)
        knocking.connect(path)
        credentials = knocking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])
