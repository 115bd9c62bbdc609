"""Bin packing: which node takes which server. Pure.

Best fit: among the nodes with room, the fullest (least memory left), so that nodes empty out and can be given
back; draining nodes take nothing. Memory is the constraint for every server; dedicated servers also own cores.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Demand:
    """Room that one server needs. `cores` is 0 for shared sizes."""

    instance_id: str
    memory_mb: int
    cores: float = 0.0


@dataclass(frozen=True, slots=True)
class Room:
    """What is left on one node, now."""

    node_id: str
    memory_mb: int
    cores: float
    draining: bool = False

    def fits(self, demand: Demand) -> bool:
        return not self.draining and self.memory_mb >= demand.memory_mb and self.cores >= demand.cores

    def less(self, demand: Demand) -> "Room":
        return replace(
            self,
            memory_mb=self.memory_mb - demand.memory_mb,
            cores=self.cores - demand.cores,
        )


def place(demands: Sequence[Demand], rooms: Iterable[Room]) -> dict[str, str]:
    """instance_id → node_id for those that fit, in the order given. What is missing needs another node."""
    left = {room.node_id: room for room in rooms}
    placed: dict[str, str] = {}
    for demand in demands:
        fitting = [room for room in left.values() if room.fits(demand)]
        if not fitting:
            continue
        best = min(fitting, key=lambda room: (room.memory_mb, room.cores, room.node_id))
        left[best.node_id] = best.less(demand)
        placed[demand.instance_id] = best.node_id
    return placed
