"""What plain processes use, by their families. Network traffic is the machine's, so it cannot be told per game."""

import contextlib
import os
from pathlib import Path

from fleet.node.process_folder import family, socket_inodes
from fleet.node.runtime import RunKey
from fleet.node.series import Usage

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_ESTABLISHED = b"01"


def usage_of_all(roots: dict[RunKey, int]) -> dict[RunKey, Usage]:
    """Of runs by their games' pids. The tables of the machine are read once for all."""
    counted = _counted_sockets() if roots else set[int]()
    return {key: _usage(pid, counted) for key, pid in roots.items()}


def _usage(root: int, counted: set[int]) -> Usage:
    ticks = pages = 0
    for pid in family(root):
        with contextlib.suppress(OSError):  # a process may end while it is looked at
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])  # its own, and of children that have ended
            pages += int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    return Usage(ticks * _TICK_NS, pages * _PAGE, None, None, len(socket_inodes(root) & counted))


def _counted_sockets() -> set[int]:
    """Inodes of established TCP connections and of bound UDP sockets."""
    inodes: set[int] = set()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        path = Path("/proc/net") / name
        for line in path.read_bytes().splitlines()[1:] if path.exists() else ():
            fields = line.split(None, 10)
            if name.startswith("udp") or fields[3] == _ESTABLISHED:
                inodes.add(int(fields[9]))
    return inodes
