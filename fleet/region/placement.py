"""Bin packing: which node takes which server. Pure.

Best fit: among the nodes with room, the fullest (least memory left), so that nodes empty out and can be given back.
Draining nodes take nothing. Two wishes come before fullness: the idle entries of one pool stand on several nodes, so
that no node's death takes a whole pool, and a server goes where its build is already present.

Room has four measures: memory, cores, host ports, host ports with TLS. Dedicated sizes own cores; shared sizes take a
share of them, as many times over as the node's `overcommit` allows.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal

Takes = Literal["all", "shared", "dedicated"]
ANY_PORTS = 1 << 16
_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Demand:
    """Room that one server needs. `cores`: owned whole (dedicated sizes); `shares`: CPUs that a shared size may use.

    `pool` names the pool of an idle entry, which is to be spread; a server that somebody uses has none.
    """

    instance_id: str
    memory_mb: int
    cores: float = 0.0
    shares: float = 0.0
    ports: int = 0
    pool: str | None = None
    build_id: str | None = None
    tls_ports: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """What is left on one node, now.

    `pools`: idle entries per pool there. `builds`: those present. `preparing`: builds that it is fetching, whose
    servers wait for that.
    """

    node_id: str
    memory_mb: int
    cores: float
    draining: bool = False
    overcommit: float = inf
    ports: int = ANY_PORTS
    takes: Takes = "all"
    pools: Mapping[str, int] = field(default_factory=dict[str, int])
    builds: frozenset[str] = _NOTHING
    preparing: frozenset[str] = _NOTHING
    tls_ports: int = ANY_PORTS

    def fits(self, demand: Demand) -> bool:
        return (
            self.memory_mb >= demand.memory_mb
            and self.cores >= demand.cores + demand.shares / self.overcommit
            and self.ports >= demand.ports
            and self.tls_ports >= demand.tls_ports
            and not self.draining
            and (self.takes == "all" or (self.takes == "dedicated") == (demand.cores > 0))
            and demand.build_id not in self.preparing
        )

    def less(self, demand: Demand) -> "Room":
        pools = self.pools
        if demand.pool is not None:
            pools = {**pools, demand.pool: pools.get(demand.pool, 0) + 1}
        # Not dataclasses.replace: reviews of thousands of idle entries do little else.
        return Room(
            self.node_id,
            self.memory_mb - demand.memory_mb,
            self.cores - demand.cores - demand.shares / self.overcommit,
            self.draining,
            self.overcommit,
            self.ports - demand.ports,
            self.takes,
            pools,
            self.builds,
            self.preparing,
            self.tls_ports - demand.tls_ports,
        )


def place(demands: Sequence[Demand], rooms: Iterable[Room]) -> dict[str, str]:
    """instance_id → node_id for those that fit, in the order given. What is missing needs another node."""
    packing = Packing(rooms)
    placed: dict[str, str] = {}
    for demand in demands:
        node_id = packing.take(demand)
        if node_id is not None:
            placed[demand.instance_id] = node_id
    return placed


class Packing:
    """Nodes ordered by fullness. Finding a node does not look at those that are too full."""

    def __init__(self, rooms: Iterable[Room] = ()) -> None:
        self._rooms: dict[str, Room] = {}
        self._order: list[tuple[int, float, str]] = []
        self._entries: Counter[str] = Counter()  # idle entries per pool on the nodes that take any
        self._having: Counter[str] = Counter()  # nodes per build
        for room in rooms:
            self.put(room)

    def put(self, room: Room) -> None:
        """Add a node, or replace what is known of it."""
        self.drop(room.node_id)
        self._rooms[room.node_id] = room
        if room.draining:
            return
        insort(self._order, (room.memory_mb, room.cores, room.node_id))
        self._entries.update(room.pools)
        self._having.update(room.builds)

    def drop(self, node_id: str) -> None:
        room = self._rooms.pop(node_id, None)
        if room is None or room.draining:
            return
        del self._order[bisect_left(self._order, (room.memory_mb, room.cores, node_id))]
        self._entries.subtract(room.pools)
        self._having.subtract(room.builds)

    def rooms(self) -> list[Room]:
        return list(self._rooms.values())

    def take(self, demand: Demand) -> str | None:
        """Find a node and use its room."""
        node_id = self.find(demand)
        if node_id is not None:
            before = self._rooms[node_id]
            after = self._rooms[node_id] = before.less(demand)
            del self._order[bisect_left(self._order, (before.memory_mb, before.cores, node_id))]
            insort(self._order, (after.memory_mb, after.cores, node_id))
            if demand.pool is not None:
                self._entries[demand.pool] += 1
        return node_id

    def find(self, demand: Demand) -> str | None:
        """The node for this server; None if it fits nowhere.

        Of a pool's entries at most half, rounded up, go to one node while another has room.
        """
        most = (self._entries[demand.pool] + 2) // 2 if demand.pool is not None else 0
        wanted = demand.build_id if self._having[demand.build_id or ""] else None
        best: tuple[int, bool] | None = None
        found: str | None = None
        for _, _, node_id in self._order[bisect_left(self._order, (demand.memory_mb,)) :]:
            room = self._rooms[node_id]
            if not room.fits(demand):
                continue
            here = room.pools.get(demand.pool, 0) + 1 if demand.pool is not None else 0
            rank = (here if here > most else 0, wanted is not None and wanted not in room.builds)
            if rank == (0, False):
                return node_id
            if best is None or rank < best:
                best, found = rank, node_id
        return found
