"""The unpacked builds of one node: what runs is marked, and the longest unused go when the disk is needed.

Marks are files, since all agents of a machine share one folder of bundles and each may die at any time:
`.used/<region>/<hash>/<run>`. An agent marks before it launches, and removes the marks of runs that it no longer has.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from fleet.builds.bundles import HASH, locked, remove_bundle, sweep_staging
from fleet.errors import Unavailable
from fleet.settings import BundleLimits

log = structlog.get_logger(__name__)

# One just fetched may not be marked yet.
FRESH_S = 600.0
MARK_S = 5.0


@dataclass(frozen=True, slots=True)
class Held:
    """A bundle that nobody runs: how large it is and when it was last wanted (seconds)."""

    content_hash: str
    size: int
    used_at: float


def superfluous(idle: Iterable[Held], now: float, *, needed: int, max_unused_s: float) -> list[str]:
    """Which idle bundles go: those unused for too long, and of the rest the oldest until `needed` bytes are freed."""
    gone: list[str] = []
    for held in sorted(idle, key=lambda held: (held.used_at, held.content_hash)):
        age = now - held.used_at
        if age > max_unused_s or (needed > 0 and age > FRESH_S):
            gone.append(held.content_hash)
            needed -= held.size
    return gone


class BundleCache:
    """The bundles below one folder as one region's agent sees them. Methods block: call them in a thread.

    `promised`: bytes of the same disk that others may yet take."""

    def __init__(
        self, bundles: Path, region: str, limits: BundleLimits, promised: Callable[[], int] = lambda: 0
    ) -> None:
        self._bundles, self._promised = bundles, promised
        self._marks = bundles / ".used" / region
        self._limits = limits
        self._sizes: dict[str, int] = {}

    def mark(self, content_hash: str, run: str) -> None:
        """This run needs the bundle from now on."""
        # Under the lock whoever removes it sees the mark, or has ended. One held for longer is held by who makes it.
        with suppress(Unavailable), locked(self._bundles, content_hash, within_s=MARK_S):
            self._touch(content_hash, run)
            return
        self._touch(content_hash, run)

    def _touch(self, content_hash: str, run: str) -> None:
        folder = self._marks / content_hash
        folder.mkdir(parents=True, exist_ok=True)
        (folder / run).touch()

    def release(self, runs: Callable[[str], bool]) -> None:
        """Remove the marks of runs that the agent does not have (any more)."""
        for mark in self._marks.glob("*/*"):
            if not runs(mark.name):
                mark.unlink(missing_ok=True)
                with suppress(OSError):  # another mark is there
                    mark.parent.rmdir()

    def make_room(self, extra: int = 0, beside: int = 0) -> list[str]:
        """Remove what the limits do not allow once `extra` more bytes are here, and `beside` others on the disk; what
        went."""
        if not self._bundles.is_dir():
            return []
        sweep_staging(self._bundles)
        held = [self._held(path) for path in self._bundles.iterdir() if HASH.fullmatch(path.name)]
        total = sum(each.size for each in held)
        disk = shutil.disk_usage(self._bundles)
        over = total + extra - int(self._limits.max_gb * 2**30)
        short = int(disk.total * self._limits.min_free_percent / 100) + extra + beside + self._promised() - disk.free
        marked = self._marked()
        idle = [each for each in held if each.content_hash not in marked]
        unused_s = self._limits.max_unused_days * 86400
        going = superfluous(idle, time.time(), needed=max(over, short), max_unused_s=unused_s)
        return [content_hash for content_hash in going if self._remove(content_hash)]

    def _held(self, path: Path) -> Held:
        if path.name not in self._sizes:
            self._sizes[path.name] = tree_bytes(path)
        return Held(path.name, self._sizes[path.name], used_at(path))

    def _marked(self) -> set[str]:
        return {mark.parent.name for mark in self._bundles.glob(".used/*/*/*")}

    def _remove(self, content_hash: str) -> bool:
        with suppress(BlockingIOError), locked(self._bundles, content_hash, wait=False):
            # Looked at again under the lock, under which marks are made.
            fresh = time.time() - used_at(self._bundles / content_hash) < FRESH_S
            if fresh or content_hash in self._marked():
                return False
            remove_bundle(self._bundles, content_hash)
            self._sizes.pop(content_hash, None)
            log.info("bundle removed", content_hash=content_hash)
            return True
        return False


def used_at(path: Path) -> float:
    """When it was last touched (s); 0 if it is not there."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def tree_bytes(tree: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(tree) for name in names)
