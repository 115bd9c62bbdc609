"""The artefact store: immutable archives by content hash, and uploads on their way there.

`ArtefactStore` is what the rest needs of it; `DiskStore` keeps it in a folder. Every file appears whole or not at all.
"""

import asyncio
import errno
import fcntl
import hashlib
import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fleet.errors import Conflict, NotFound, PayloadTooLarge

_BLOCK = 4 << 20


class ArtefactStore(Protocol):
    """Keys are relative paths such as `archives/<sha256>.zip`. Methods block: call them in a thread."""

    def put_file(self, key: str, path: Path) -> None:
        """Take over a local file (it is moved away from `path`)."""
        ...

    def get_to(self, key: str, path: Path) -> None:
        """Copy an object to a local file; NotFound if there is none."""
        ...

    def exists(self, key: str) -> bool: ...

    def size(self, key: str) -> int:
        """Bytes; NotFound if there is none."""
        ...

    def delete(self, key: str) -> None:
        """No error if there is none."""
        ...

    def list(self, prefix: str) -> Iterator[str]: ...


class DiskStore:
    """A folder. Readers on the same machine may use `path` instead of copying."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: str) -> Path:
        found = (self._root / key).resolve()
        if not found.is_relative_to(self._root.resolve()):
            raise NotFound(f"There is no object '{key[:100]}'.")
        return found

    def put_file(self, key: str, path: Path) -> None:
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.replace(target)
        except OSError:  # another file system: copy beside it, then move
            beside = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.copyfile(path, beside)
            beside.replace(target)
            path.unlink()
        sync_folder(target.parent)

    def get_to(self, key: str, path: Path) -> None:
        source = self.path(key)
        if not source.is_file():
            raise NotFound(f"There is no object '{key}'.")
        shutil.copyfile(source, path)

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def size(self, key: str) -> int:
        if not self.exists(key):
            raise NotFound(f"There is no object '{key}'.")
        return self.path(key).stat().st_size

    def delete(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[str]:
        folder = self.path(prefix)
        if folder.is_dir():
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    yield str(file.relative_to(self._root.resolve()))


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class UploadLock:
    """The sole right to write an upload, among all processes; it ends with its holder. Conflict if it is taken."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file of its own: the data's file changes its name while the right must still hold.
        self._file = path.with_name(f"{path.name}.lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise Conflict("Another upload of this build is under way; wait for its end.") from None

    def __enter__(self) -> "UploadLock":
        return self

    def __exit__(self, *_raised: object) -> None:
        self._file.close()


def drop_upload(path: Path) -> bool:
    """Remove all files of an upload that is not wanted any more; False, and nothing done, while it is written."""
    try:
        with UploadLock(path):
            for suffix in ("", ".part", ".lock"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
    except Conflict:
        return False
    return True


class DirectFile:
    """A new file that is written past the page cache, where the file system can do that.

    The cache would only hold what is read once more at most, and filling it cost more of the processor than all else
    of an upload. Blocks begin at a page of memory (`mmap`); only the last one may end within a page.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o644)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._fd = os.open(path, flags, 0o644)

    def write(self, block: memoryview) -> None:
        while block:
            if len(block) % mmap.PAGESIZE:
                self._use_cache()
            try:
                block = block[os.write(self._fd, block) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._use_cache():
                    raise

    def _use_cache(self) -> bool:
        """From here on through the cache; False if it was so already."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        direct = getattr(os, "O_DIRECT", 0)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~direct)
        return bool(flags & direct)

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        """Closing twice is no error."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class UploadSink:
    """Writes a stream to a file through a thread, in big blocks, at most two of them in memory.

    The file appears under `path` when `finish` returns, on disk for good; before that only as `<path>.part`.
    Whoever makes a sink holds the path's `UploadLock`.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._file = DirectFile(self._part)
        self._max = max_bytes
        # Two buffers for good: a fresh one per block would cost more in page faults than the copy into it.
        self._filling, self._spare = mmap.mmap(-1, _BLOCK), mmap.mmap(-1, _BLOCK)
        self._filled = 0
        self._writing: asyncio.Future[None] | None = None
        self.size = 0

    async def write(self, chunk: bytes) -> None:
        """Take a chunk, waiting while the disk is behind. PayloadTooLarge above the limit."""
        self.size += len(chunk)
        if self.size > self._max:
            raise PayloadTooLarge(f"The upload is larger than {self._max >> 20} MB, the most that is taken here.")
        rest = memoryview(chunk)
        while rest:
            taken = min(len(rest), _BLOCK - self._filled)
            self._filling[self._filled : self._filled + taken] = rest[:taken]
            self._filled += taken
            rest = rest[taken:]
            if self._filled == _BLOCK:
                await self._flush()

    async def _flush(self) -> None:
        if self._writing is not None:
            await self._writing
        block = memoryview(self._filling)[: self._filled]
        self._filling, self._spare, self._filled = self._spare, self._filling, 0
        self._writing = asyncio.get_running_loop().run_in_executor(None, self._file.write, block)

    async def finish(self) -> int:
        """Bytes written, durable under the final name."""
        await self._flush()
        if self._writing is not None:
            await self._writing
        await asyncio.to_thread(self._close)
        return self.size

    def _close(self) -> None:
        self._file.sync()
        self._file.close()
        self._part.replace(self._path)
        sync_folder(self._path.parent)

    async def abort(self) -> None:
        """Leave nothing behind."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        self._file.close()
        self._part.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
