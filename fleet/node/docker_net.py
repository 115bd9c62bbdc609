"""What is open in the network namespaces of running games. What is kept here is a cache: `forget` frees it."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from fleet.node.cgroup import Cgroup, cgroup_of, usage_of
from fleet.node.health import readiness, readiness_of
from fleet.node.netns import can_enter
from fleet.node.runtime import Port, Readiness, RunKey
from fleet.node.series import Usage
from fleet.node.sock_diag import SocketTables

log = structlog.get_logger(__name__)


class GameNetworks:
    """`find_pid`: a process of the run as the host numbers it, 0 if there is none."""

    def __init__(self, find_pid: Callable[[RunKey], Awaitable[int]]) -> None:
        self._find_pid = find_pid
        self._pids: dict[RunKey, int] = {}
        self._tables: dict[RunKey, SocketTables] = {}
        self._cgroups: dict[RunKey, Cgroup] = {}
        self.enters = can_enter()

    async def pid(self, key: RunKey) -> int:
        known = self._pids.get(key)
        if known:
            return known
        found = await self._find_pid(key)
        if found:
            self._pids[key] = found
        return found

    async def readiness(self, ports: tuple[Port, ...], key: RunKey) -> Readiness:
        if not ports:
            return Readiness()
        pid = await self.pid(key)
        if not pid:
            return Readiness(missing=ports)
        try:
            return self._by_netlink(key, pid, ports) if self.enters else readiness_of(Path(f"/proc/{pid}/net"), ports)
        except OSError:  # ended meanwhile
            self.forget(key)
            return Readiness(missing=ports)

    def _by_netlink(self, key: RunKey, pid: int, ports: tuple[Port, ...]) -> Readiness:
        tables = self._tables.get(key)
        try:
            if tables is None:
                tables = self._tables[key] = SocketTables(pid)
            return readiness(ports, lambda proto, _wanted: tables.open_ports(proto))
        except OSError as error:
            if not Path(f"/proc/{pid}").exists():
                raise
            log.warning("sockets are read from files", reason=str(error))  # a kernel without sock_diag
            self.enters = False
            return readiness_of(Path(f"/proc/{pid}/net"), ports)

    def usage(self, key: RunKey, pid: int, own_connections: int) -> Usage | None:
        """None if it ended meanwhile. Reads files only, so it may run in a thread."""
        try:
            cgroup = self._cgroups.get(key) or self._cgroups.setdefault(key, cgroup_of(pid))
            return usage_of(cgroup, Path(f"/proc/{pid}/net"), own_connections)
        except OSError:
            return None

    def forget(self, key: RunKey) -> None:
        self._pids.pop(key, None)
        self._cgroups.pop(key, None)
        if (tables := self._tables.pop(key, None)) is not None:
            tables.close()

    def close(self) -> None:
        for key in list(self._pids):
            self.forget(key)
