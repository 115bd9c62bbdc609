"""Bundles: unpacked builds in folders named by the SHA-256 of their ZIP, made once per node and never changed.

Beside a game's executable a link `playflow.json` leads to a folder that each server gets at `/playflow`, so that all
servers of a build share its files and each still reads its own configuration.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TextIO

import structlog

from fleet.builds.archive import ArchiveError, Manifest, unpack
from fleet.builds.artefacts import ArtefactStore, DiskStore, sha256_of
from fleet.errors import Unavailable
from fleet.settings import UploadLimits

log = structlog.get_logger(__name__)

CONFIG_NAME = "playflow.json"
CONFIG_TARGET = "/playflow/playflow.json"
HASH = re.compile("[0-9a-f]{64}")
_STAGING = ".staging-"
LOCK_S = 3600.0  # a large build takes long to fetch and unpack


def archive_key(content_hash: str) -> str:
    return f"archives/{content_hash}.zip"


def game_folders(root: str, executable: str | None) -> tuple[str, ...]:
    """Folders of a bundle that get the link: the game's own, and the executable's where that is deeper."""
    beside = str(PurePosixPath(root) / PurePosixPath(executable or "").parent)
    return tuple(dict.fromkeys(["" if folder == "." else folder for folder in (root or ".", beside)]))


def ensure_bundle(
    store: ArtefactStore, content_hash: str, folders: tuple[str, ...], bundles: Path, limits: UploadLimits
) -> Path:
    """The bundle's folder on this machine, fetched and unpacked if it is not here. Blocks; safe in many processes.

    ArchiveError if the archive is damaged, NotFound if the store has none.
    """
    target = bundles / content_hash
    if target.is_dir() and all(is_linked(target / folder) for folder in folders):
        os.utime(target)  # last use, for eviction
        return target
    with locked(bundles, content_hash):
        if not target.is_dir():
            with _local_archive(store, content_hash, bundles) as archive:
                unpack_bundle(archive, content_hash, bundles, limits)
        for folder in folders:
            link_config(target / folder)
    return target


def progress(bundles: Path, content_hash: str) -> tuple[int, int, int]:
    """Another value as long as something happens to a bundle that is being made here, by whichever process: bytes and
    files of what is fetched or unpacked, and, once there are files, what the final sync has yet to write."""
    size = files = dirty_kb = 0
    for entry in bundles.glob(f"{_STAGING}{content_hash}-*"):
        folder = entry.is_dir()
        for path in (entry, *entry.rglob("*")) if folder else (entry,):
            with contextlib.suppress(OSError):  # moved or removed meanwhile
                size, files = size + path.lstat().st_size, files + 1
        dirty_kb = _dirty_kb() if folder else dirty_kb
    return size, files, dirty_kb


def _dirty_kb() -> int:
    """Memory that the kernel has yet to write to disks."""
    rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(row[1]) for row in rows if row[0] in ("Dirty:", "Writeback:"))


@contextmanager
def _local_archive(store: ArtefactStore, content_hash: str, bundles: Path) -> Generator[Path]:
    if isinstance(store, DiskStore) and store.exists(archive_key(content_hash)):
        yield store.path(archive_key(content_hash))
        return
    fetched = bundles / f"{_STAGING}{content_hash}-{secrets.token_hex(4)}.zip"
    try:
        store.get_to(archive_key(content_hash), fetched)
        if sha256_of(fetched) != content_hash:
            raise ArchiveError("The stored archive is damaged. Upload the build again.")
        yield fetched
    finally:
        fetched.unlink(missing_ok=True)


def unpack_bundle(archive: Path, content_hash: str, bundles: Path, limits: UploadLimits) -> Manifest:
    """Unpack beside, then rename: a bundle is there whole or not at all. Hold the lock."""
    staging = _staging(bundles, content_hash)
    staging.mkdir(parents=True)
    try:
        manifest = unpack(archive, staging, limits)
        os.sync()  # one sync for thousands of files; the rename must not be on disk before them
        staging.replace(bundles / content_hash)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return manifest


def _staging(bundles: Path, content_hash: str) -> Path:
    return bundles / f"{_STAGING}{content_hash}-{secrets.token_hex(4)}"


def is_linked(folder: Path) -> bool:
    link = folder / CONFIG_NAME
    return link.is_symlink() and os.readlink(link) == CONFIG_TARGET


def link_config(folder: Path) -> bool:
    """Put the link there; True if it replaced a file that the game shipped."""
    if is_linked(folder):
        return False
    link = folder / CONFIG_NAME
    shipped = link.exists() or link.is_symlink()
    beside = folder / f".{CONFIG_NAME}.{secrets.token_hex(4)}"
    os.symlink(CONFIG_TARGET, beside)
    beside.replace(link)
    return shipped


@contextmanager
def locked(bundles: Path, content_hash: str, *, wait: bool = True, within_s: float = LOCK_S) -> Generator[None]:
    """One process at a time works on one bundle. The lock ends with its holder, however that ends.

    Blocks while another holds it, then Unavailable; without `wait`, BlockingIOError.
    """
    (bundles / ".locks").mkdir(parents=True, exist_ok=True)
    with (bundles / ".locks" / content_hash).open("w") as file:
        end = time.monotonic() + within_s
        while not _lock(file, wait):
            if time.monotonic() > end:
                raise Unavailable(f"Another process has worked on bundle {content_hash} for {within_s:.0f} s.")
            time.sleep(0.05)
        yield


def _lock(file: TextIO, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise
        return False
    return True


def link_configs(bundles: Path, content_hash: str, folders: tuple[str, ...]) -> bool:
    """Put the link into each folder of a bundle; True if it replaced a file that the game shipped."""
    with locked(bundles, content_hash):
        return any([link_config(bundles / content_hash / folder) for folder in folders])


def remove_bundle(bundles: Path, content_hash: str) -> None:
    """Remove a bundle that nothing needs. Hold the lock."""
    target = bundles / content_hash
    if target.exists():
        doomed = _staging(bundles, content_hash)
        target.replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def sweep_staging(bundles: Path) -> int:
    """Remove what killed unpackers left behind, known by their lock being free; how many."""
    removed = 0
    for entry in list(bundles.glob(f"{_STAGING}*")):
        content_hash = entry.name.removeprefix(_STAGING).partition("-")[0]
        with contextlib.suppress(BlockingIOError), locked(bundles, content_hash, wait=False):
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
            removed += 1
    return removed
