"""Servers that wait for a node, in lines of equals, so that looking for room does not walk over all who wait."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from fleet.errors import Conflict
from fleet.region.placement import Demand
from fleet.store.tables import Server


class Queue:
    """Whoever a player waits for comes before pool entries, then the oldest.

    Servers of one line need the same, so if the first finds no room the others are not asked.
    """

    def __init__(self, demand: Callable[[Server], Demand], waits: Callable[[Server], bool]) -> None:
        self._demand = demand
        self._waits = waits  # whether a server has not been stopped or placed meanwhile
        self._lines: dict[Demand, dict[str, Server]] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def append(self, server: Server) -> None:
        """Add to the end of its line; nothing happens if it is there."""
        shape = replace(self._demand(server), instance_id="")
        self._lines.setdefault(shape, {}).setdefault(server.instance_id, server)

    def take(self, find: Callable[[Demand], str | None]) -> Server | None:
        """The first for whom `find` knows a node, out of the queue."""
        heads = [(head, shape) for shape in list(self._lines) if (head := self._head(shape)) is not None]
        for head, shape in sorted(heads, key=lambda item: (item[0].is_pool_server, item[0].created_at)):
            if find(shape) is not None:
                self._drop(shape, head.instance_id)
                return head
        return None

    def servers(self) -> Iterable[Server]:
        """Who waits, line by line."""
        for shape in list(self._lines):
            for server in list(self._lines.get(shape, {}).values()):
                if self._waits(server):
                    yield server
                else:
                    self._drop(shape, server.instance_id)

    def _head(self, shape: Demand) -> Server | None:
        """The first of a line who still waits."""
        while line := self._lines.get(shape):
            server = next(iter(line.values()))
            if self._waits(server):
                return server
            self._drop(shape, server.instance_id)
        return None

    def _drop(self, shape: Demand, instance_id: str) -> None:
        line = self._lines[shape]
        line.pop(instance_id, None)
        if not line:
            del self._lines[shape]


def no_room(region: str, compute_size: str, demand: Demand) -> Conflict:
    """What a caller is told for whose server there is no room and will be none."""
    tls = ""
    if demand.tls_ports:
        tls = f" It needs {demand.tls_ports} TLS ports (`ports.tls` of the node configuration says how many there are)."
    return Conflict(
        f"Region {region} has no room for another '{compute_size}' server (capacity limit). Stop a server, choose a "
        f"smaller compute_size, or try again later.{tls}",
        error="Capacity limit reached",
    )
