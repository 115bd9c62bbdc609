"""Find and end the processes that belong to a fleet.

Everything that the supervisor starts, and all that Ray starts from there, inherits two marks: an environment variable
which names the fleet's home, and a working folder that nobody else has. So `/proc` tells exactly which processes are
ours, even after the supervisor and all its files are gone. Two, because a process that sets its title (Ray's do)
overwrites the environment that the kernel shows. Processes are held by pidfd: a number that is given to somebody else
in the meantime can never be hit.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fleet.ops.home import Home

MARKER = "FLEET_SUPERVISED"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for good: its number and the tick at which it started."""

    pid: int
    start: int


def identify(pid: int) -> ProcessId | None:
    """Who has this number now; None if nobody, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[1].split()
    return None if fields[0] in ("Z", "X") else ProcessId(pid, int(fields[19]))


def is_alive(process: ProcessId) -> bool:
    return identify(process.pid) == process


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty if it is gone or not ours to read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0") if entry)
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, _, value in pairs}


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def supervised(home: Home) -> list[int]:
    """Processes of the fleet, without the caller. Games bear no mark: environment and folder are their own."""
    return [pid for pid in _pids() if pid != os.getpid() and _is_supervised(pid, home)]


def _is_supervised(pid: int, home: Home) -> bool:
    return environment_of(pid).get(MARKER) == str(home.path) or _folder_of(pid) == str(home.work_dir)


def _folder_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
    except OSError:
        return ""


@contextmanager
def held(pid: int) -> Generator[int | None]:
    """A pidfd of the process, or None if it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def wait_ended(pidfds: list[int], timeout_s: float) -> list[int]:
    """Wait until all have ended; returns those that have not."""
    deadline = time.monotonic() + timeout_s
    left = set(pidfds)
    poller = select.poll()
    for fd in left:
        poller.register(fd, select.POLLIN)
    while left and (rest := deadline - time.monotonic()) > 0:
        for fd, _ in poller.poll(rest * 1000):
            poller.unregister(fd)
            left.discard(fd)
    return list(left)


def end(pids: list[int], home: Home, *, grace_s: float) -> int:
    """SIGTERM, wait up to `grace_s` seconds, SIGKILL; returns how many there were."""
    with contextlib.ExitStack() as stack:
        fds = [fd for pid in pids if (fd := _hold_ours(stack, pid, home)) is not None]
        _signal(fds, signal.SIGTERM)
        left = wait_ended(fds, grace_s)
        _signal(left, signal.SIGKILL)
        wait_ended(left, 10.0)
        return len(fds)


def _hold_ours(stack: contextlib.ExitStack, pid: int, home: Home) -> int | None:
    fd = stack.enter_context(held(pid))
    # Looked at again now that the number cannot change hands unnoticed.
    ours = _is_supervised(pid, home)
    return fd if ours else None


def _signal(pidfds: list[int], number: signal.Signals) -> None:
    for fd in pidfds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)


def end_supervised(home: Home, *, grace_s: float) -> int:
    """End every process of the fleet but the caller. Those that a dying one starts are met too."""
    count = 0
    for _ in range(10):
        pids = supervised(home)
        if not pids:
            break
        count += end(pids, home, grace_s=grace_s)
    return count
