"""A run's secrets that are files: in memory (tmpfs) where the host has that, read-only, for the game's user alone.

They lie outside the run's folder, below one that only the agent's user may enter, and go with the run.
"""

import hashlib
import os
import shutil
import stat
from pathlib import Path

import structlog

from fleet.node.runtime import LaunchFailed, RunKey
from fleet.node.server_folder import server_folder

log = structlog.get_logger(__name__)

SECRETS = "/run/secrets"  # where a containerised game finds them
TOLD = "PLAYFLOW_SECRETS"  # the variable that says so; plain processes have theirs elsewhere
WHOLE = 0o555  # mode of a folder once all its files are there
IN_MEMORY = Path("/dev/shm")


def owner_of(user: str) -> tuple[int, int] | None:
    """Ids of an image's `USER`; None if only the image itself knows them."""
    name, _, group = user.partition(":")
    if not name:
        return 0, 0
    if not name.isdigit() or (group and not group.isdigit()):
        return None
    return int(name), int(group or 0)


class SecretFiles:
    """Of one agent. `servers_dir` names it: agents of one machine keep theirs apart."""

    def __init__(self, fleet_id: str, servers_dir: Path, in_memory: Path = IN_MEMORY) -> None:
        self._servers = servers_dir
        name = hashlib.blake2b(str(servers_dir.resolve()).encode(), digest_size=6).hexdigest()
        memory = os.access(in_memory, os.W_OK) and _is_tmpfs(in_memory)
        self.root = in_memory / f"fleet-{fleet_id}-{name}" if memory else servers_dir.parent / f"secrets-{name}"

    def folder(self, key: RunKey) -> Path:
        return self.root / str(key)

    def write(self, key: RunKey, files: dict[str, str], owner: tuple[int, int] | None) -> None:
        """Put them there, whole; those that a run has already stay, since it may be running on them. `owner`: whom the
        game runs as, if that is known; else everybody inside the container may read them, and nobody outside may enter
        the folder. LaunchFailed if that cannot be."""
        if not files or _is_whole(self.folder(key)):
            return
        try:
            self._write(key, files, owner)
        except OSError as error:
            _remove(self.folder(key))
            raise LaunchFailed("STARTUP_FAILURE_URL", f"The node cannot keep the project's secrets: {error}") from error

    def _write(self, key: RunKey, files: dict[str, str], owner: tuple[int, int] | None) -> None:
        _remove(self.folder(key))  # what an earlier try has left half made
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.root.lstat()
        if self.root.is_symlink() or found.st_uid != os.getuid():
            raise PermissionError(f"{self.root} belongs to somebody else")
        self.root.chmod(0o700)
        folder = self.folder(key)
        folder.mkdir(mode=0o700)
        for name, text in files.items():
            _write(folder / name, text, owner)
        folder.chmod(WHOLE)

    def remove_run(self, key: RunKey) -> None:
        """Remove the run's own folder, and its secrets."""
        shutil.rmtree(server_folder(self._servers, key), ignore_errors=True)
        _remove(self.folder(key))

    def sweep(self) -> None:
        """Remove what belongs to no run that has a folder here."""
        for left in list(self.root.glob("*.*")):
            if not (self._servers / left.name).exists():
                log.warning("orphan_secrets_removed", folder=left.name)
                _remove(left)


def _write(path: Path, text: str, owner: tuple[int, int] | None) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text.encode())
        mode = 0o444
        if owner is not None and _give(file.fileno(), owner):
            mode = 0o400
        os.fchmod(file.fileno(), mode)


def _give(descriptor: int, owner: tuple[int, int]) -> bool:
    """Whether the file is that user's now; only root may give files away."""
    if os.fstat(descriptor).st_uid == owner[0]:
        return True
    try:
        os.fchown(descriptor, *owner)
    except PermissionError:
        return False
    return True


def _remove(folder: Path) -> None:
    if folder.exists():
        folder.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    return folder.exists() and stat.S_IMODE(folder.stat().st_mode) == WHOLE


def _is_tmpfs(path: Path) -> bool:
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return False
    return any(parts[1] == str(path) and parts[2] == "tmpfs" for parts in (line.split(" ") for line in mounts))
