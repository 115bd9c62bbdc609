"""Which agent of a region on this machine an agent is: several may share one, each with its own games and a name.

An agent holds a lock file as long as it lives. One that Ray started again finds the file that names it, and so its
games; a new one takes the first that nobody holds. Slot 0 is the machine's own, the only one where a node is a machine.

The lock is also the fence between two lives of an agent: the new one does nothing before the old one is dead. A holder
that nobody needs any more, because Ray has started the same agent again or because its raylet is dead, and that does
not end by itself, hangs, and is killed; its games run on.
"""

import fcntl
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import structlog

from fleet.errors import Unavailable
from fleet.node.shim import start_time

log = structlog.get_logger(__name__)

AGAIN_S = 10.0  # within which a process that is to end has ended
KILLED_S = 10.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds, or held, a slot. Processes are named by pid and start; 0: not known. `parent`: its raylet."""

    agent: str
    pid: int = 0
    start: int = 0
    parent: int = 0
    parent_start: int = 0

    @property
    def orphaned(self) -> bool:
        """Its raylet is dead, so no region can speak to it any more."""
        return self.parent_start > 0 and not _runs(self.parent, self.parent_start)


def take_slot(folder: Path, region: str, agent_id: str) -> int:
    """A slot, kept until this process ends. `agent_id` stays the same when Ray starts the agent again. Blocks.

    Unavailable if the agent's own slot is held by what can be neither waited for nor killed.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in sorted(folder.glob(f"{region}.*.slot")):
        holder = _holder(path)
        if holder.agent != agent_id:
            continue
        if holder.pid != os.getpid() or holder.start != start_time(os.getpid()):  # else: taken by an earlier try
            _take_over(path, agent_id)
        return int(path.name.removeprefix(f"{region}.").removesuffix(".slot"))
    slot = 0
    while not _hold(path := folder / f"{region}.{slot}.slot", agent_id):
        if _holder(path).orphaned:
            _take_over(path, agent_id)
            break
        slot += 1
    return slot


def _take_over(path: Path, agent_id: str) -> None:
    """Hold it as soon as its last holder is dead."""
    if _hold_within(path, agent_id, AGAIN_S):
        return
    holder = _holder(path)
    if not holder.pid or not _runs(holder.pid, holder.start):
        raise Unavailable(f"{path} is held by a process that is not known. Find it with 'fuser {path}' and end it.")
    log.error("hung_agent_killed", pid=holder.pid, slot=path.name)
    try:
        os.kill(holder.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise Unavailable(f"{path} is held by process {holder.pid}, which hangs and is another user's.") from None
    if not _hold_within(path, agent_id, KILLED_S):
        raise Unavailable(f"{path} is held by process {holder.pid}, which has been killed and does not end.")


def _hold_within(path: Path, agent_id: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not _hold(path, agent_id):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _hold(path: Path, agent_id: str) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False
    me, parent = os.getpid(), os.getppid()
    holder = Holder(agent_id, me, start_time(me), parent, _start_or_0(parent))
    os.ftruncate(fd, 0)
    os.pwrite(fd, orjson.dumps(asdict(holder)), 0)
    return True  # the descriptor stays open: the lock ends with the process


def _holder(path: Path) -> Holder:
    text = path.read_bytes()
    try:
        return Holder(**orjson.loads(text))
    except (orjson.JSONDecodeError, TypeError):  # written by an earlier version, or just being written
        return Holder(text.decode(errors="replace"))


def _start_or_0(pid: int) -> int:
    try:
        return start_time(pid)
    except OSError:
        return 0


def _runs(pid: int, start: int) -> bool:
    return start > 0 and _start_or_0(pid) == start
