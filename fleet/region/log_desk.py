"""Where a run's log is, and asking for it: the node that has the container, or had it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fleet.node.model import RunView
from fleet.node.runtime import LogLine, RunKey
from fleet.region.leases import Leases
from fleet.store.tables import Server

_CALL_S = 20.0
_NODE_WAIT_S = 12.0


class LogDesk:
    """`find`: the server's row, live or ended."""

    def __init__(
        self, runs: Mapping[RunKey, RunView], leases: Leases, find: Callable[[str], Awaitable[Server | None]]
    ) -> None:
        self._runs = runs
        self._leases = leases
        self._find = find

    async def logs(self, key: RunKey, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        node = await self._keeper_of(key)
        return await self._leases.call(node, "logs", key, after, since_ms, limit, timeout_s=_CALL_S) if node else []

    async def wait_logs(self, key: RunKey, after: str | None, timeout_s: float) -> tuple[list[LogLine], bool]:
        node = await self._keeper_of(key)
        if node is None:
            return [], True
        return await self._leases.call(node, "wait_logs", key, after, timeout_s, timeout_s=timeout_s + 10)

    async def ask(self, key: RunKey, method: str, *arguments: Any) -> Any:
        """Another question about a run; None where no node knows of it."""
        node = await self._keeper_of(key)
        return await self._leases.call(node, method, key, *arguments, timeout_s=_CALL_S) if node else None

    async def ask_now(self, key: RunKey, method: str, *arguments: Any) -> Any:
        """The same of a node that is there now; None if it is not."""
        run = self._runs.get(key)
        server = None if run else await self._find(key.instance_id)
        node = run.node_id if run else (server.node_id if server else None)
        if node is None or node not in self._leases.views():
            return None
        return await self._leases.call(node, method, key, *arguments, timeout_s=_CALL_S)

    async def _keeper_of(self, key: RunKey) -> str | None:
        run = self._runs.get(key)
        server = None if run else await self._find(key.instance_id)
        node = run.node_id if run else (server.node_id if server else None)
        if node is not None and node not in self._leases.views():
            await self._leases.wait_change(_NODE_WAIT_S)
        return node
