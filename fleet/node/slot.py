"""Which agent of a region on this machine an agent is: several may share one, each with its own games and a name.

An agent holds a lock file as long as it lives. One that Ray started again finds the file that names it, and so its
games; a new one takes the first that nobody holds. Slot 0 is the machine's own, the only one where a node is a machine.
"""

import fcntl
import os
import time
from pathlib import Path

AGAIN_S = 10.0


def take_slot(folder: Path, region: str, agent_id: str) -> int:
    """A slot, kept until this process ends. `agent_id` stays the same when Ray starts the agent again. Blocks."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in sorted(folder.glob(f"{region}.*.slot")):
        if path.read_text() == agent_id and (slot := _wait(path, region)) is not None:
            return slot
    slot = 0
    while not _hold(_file(folder, region, slot), agent_id):
        slot += 1
    return slot


def _wait(path: Path, region: str) -> int | None:
    """Its last holder was this agent, whose process may not be quite gone."""
    deadline = time.monotonic() + AGAIN_S
    agent_id = path.read_text()
    while time.monotonic() < deadline:
        if _hold(path, agent_id):
            return int(path.name.removeprefix(f"{region}.").removesuffix(".slot"))
        time.sleep(0.05)
    return None


def _file(folder: Path, region: str, slot: int) -> Path:
    return folder / f"{region}.{slot}.slot"


def _hold(path: Path, agent_id: str) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False
    os.ftruncate(fd, 0)
    os.pwrite(fd, agent_id.encode(), 0)
    return True  # the descriptor stays open: the lock ends with the process
