"""Room on the region's nodes, kept up as servers come and go, so that placing one does not walk over all.

A node's room is its capacity, less the runs that it reports and that have not ended, less what was placed on it and is
not reported yet, also if its server has gone on to another generation since (`keep`). Changes only mark their server;
what the server holds is looked up when somebody asks for room.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from fleet.node.model import RunView
from fleet.node.runtime import RunKey
from fleet.region.model import NodeView
from fleet.region.placement import Demand, Packing, Room
from fleet.region.plan import current
from fleet.region.runs import Runs
from fleet.store.tables import Server


class Load(NamedTuple):
    """What one server takes of a node. `pool`: it is an idle entry of that pool."""

    memory_mb: int
    cores: float
    shares: float
    ports: int
    pool: str | None
    tls_ports: int = 0

    def demand(self) -> Demand:
        """What it would need elsewhere."""
        return Demand("", self.memory_mb, self.cores, self.shares, self.ports, self.pool, tls_ports=self.tls_ports)


Hold = tuple[str, Load]  # node id, what is held there


@dataclass(slots=True)
class _Used:
    """The sum of what is held on one node."""

    memory_mb: int = 0
    cores: float = 0.0
    shares: float = 0.0
    ports: int = 0
    tls_ports: int = 0
    idle: Counter[Load] = field(default_factory=Counter[Load])
    servers: set[str] = field(default_factory=set[str])


class Rooms:
    """`views()` gives a new mapping object whenever a node has changed, else the same one."""

    def __init__(
        self,
        live: Callable[[], Mapping[str, Server]],
        runs: Runs,
        views: Callable[[], Mapping[str, NodeView]],
        demand: Callable[[Server], Demand],
    ) -> None:
        self._live = live
        self._runs = runs
        self._views = views
        self._demand = demand
        self._known: Mapping[str, NodeView] = {}
        self._used: dict[str, _Used] = {}
        self._holds: dict[str, tuple[Hold, ...]] = {}
        self._loads: dict[Load, Load] = {}
        self._kept: dict[str, dict[RunKey, Hold]] = {}
        self._moved: set[str] = set()
        self._packing = Packing()

    def moved(self, instance_id: str) -> None:
        """A server's row or runs have changed."""
        self._moved.add(instance_id)

    def keep(self, key: RunKey, node_id: str, demand: Demand) -> None:
        """Hold this on the node until it tells of the run, or `let_go`: its server goes on, its launch is under way."""
        self._kept.setdefault(key.instance_id, {})[key] = (node_id, self._load(_load_of(demand)))
        self.moved(key.instance_id)

    def keeps(self, key: RunKey) -> bool:
        return key in self._kept.get(key.instance_id, {})

    def let_go(self, key: RunKey) -> None:
        kept = self._kept.get(key.instance_id, {})
        kept.pop(key, None)
        if not kept:
            self._kept.pop(key.instance_id, None)
        self.moved(key.instance_id)

    def find(self, demand: Demand) -> str | None:
        """The node that this server goes to; None if none has room."""
        return self._fresh().find(demand)

    def rooms(self) -> list[Room]:
        """Every node that answers, and what is left on it."""
        return self._fresh().rooms()

    def room(self, node_id: str) -> Room:
        """What is left on a node, though it may not answer now. KeyError if there is none of that id."""
        self._fresh()
        return room_of(self._known[node_id], self._used.get(node_id))

    def movable(self, node_id: str) -> tuple[Demand, ...]:
        """The idle pool entries on a node, as what they would need elsewhere."""
        self._fresh()
        idle = self._used[node_id].idle if node_id in self._used else Counter[Load]()
        return tuple(load.demand() for load in idle.elements())

    def unseen(self) -> list[Demand]:
        """What one server needs, of each node that holds servers and has not been heard of."""
        self._fresh()
        some = [
            next(iter(used.servers)) for name, used in self._used.items() if used.servers and name not in self._known
        ]
        return [self._demand(server) for name in some if (server := self._live().get(name))]

    def servers(self, node_id: str) -> frozenset[str]:
        """Those that hold room on a node."""
        self._fresh()
        used = self._used.get(node_id)
        return frozenset(used.servers) if used else frozenset()

    def _fresh(self) -> Packing:
        touched: set[str] = set()
        for instance_id in self._moved:
            self._hold_anew(instance_id, touched)
        self._moved.clear()
        views = self._views()
        if views is not self._known:
            touched |= {n for n in (*views, *self._known) if views.get(n) != self._known.get(n)}
            self._known = views
        for node_id in touched:
            self._show(node_id)
        return self._packing

    def _hold_anew(self, instance_id: str, touched: set[str]) -> None:
        old = self._holds.get(instance_id, ())
        new = tuple(self._holds_of(instance_id))
        if new == old:
            return
        for node_id, load in old:
            self._count(node_id, load, instance_id, -1)
        for node_id, load in new:
            self._count(node_id, load, instance_id, 1)
        touched.update(node_id for node_id, _ in (*old, *new))
        if new:
            self._holds[instance_id] = new
        else:
            self._holds.pop(instance_id, None)

    def _holds_of(self, instance_id: str) -> Iterable[Hold]:
        server = self._live().get(instance_id)
        key = current(server) if server else None
        runs = self._runs.of(instance_id)
        for run in runs.values():
            if not run.state.ended:
                yield (
                    run.node_id,
                    self._load(_load_of(self._demand(server)) if server and run.key == key else _seen(run)),
                )
        for rival in self._runs.rivals_of(instance_id):
            if not rival.state.ended:
                yield rival.node_id, self._load(_seen(rival))
        for kept, hold in self._kept.get(instance_id, {}).items():
            if kept not in runs:
                yield hold
        if server and server.node_id and key not in runs:  # also if it is being stopped: its launch may be under way
            yield server.node_id, self._load(_load_of(self._demand(server)))

    def _load(self, load: Load) -> Load:
        """The one object of this value: thousands of servers hold the same."""
        return self._loads.setdefault(load, load)

    def _count(self, node_id: str, load: Load, instance_id: str, sign: int) -> None:
        used = self._used.setdefault(node_id, _Used())
        used.memory_mb += sign * load.memory_mb
        used.cores += sign * load.cores
        used.shares += sign * load.shares
        used.ports += sign * load.ports
        used.tls_ports += sign * load.tls_ports
        if load.pool is not None:
            used.idle[load] += sign
            if not used.idle[load]:
                del used.idle[load]
        if sign > 0:
            used.servers.add(instance_id)
        else:
            used.servers.discard(instance_id)
        if not used.servers and node_id not in self._known:
            del self._used[node_id]

    def _show(self, node_id: str) -> None:
        view = self._known.get(node_id)
        if view is None or not view.synced:
            self._packing.drop(node_id)
        else:
            self._packing.put(room_of(view, self._used.get(node_id)))


def room_of(view: NodeView, used: _Used | None = None) -> Room:
    """What is left on a node; all of it if nothing is used."""
    used = used or _Used()
    return Room(
        view.node_id,
        view.memory_mb - used.memory_mb,
        view.cores - used.cores - used.shares / view.overcommit,
        view.draining,
        view.overcommit,
        view.ports - used.ports,
        view.takes,
        {load.pool: number for load, number in used.idle.items() if load.pool is not None},
        view.builds,
        view.preparing,
        view.tls_ports - used.tls_ports,
    )


def _load_of(demand: Demand) -> Load:
    return Load(demand.memory_mb, demand.cores, demand.shares, demand.ports, demand.pool, demand.tls_ports)


def _seen(run: RunView) -> Load:
    """What a run that no live row speaks of holds, as its node tells."""
    tls = sum(port.tls for port in run.ports)
    return Load(run.memory_mb, run.cores, 0.0, len(run.ports) - tls, None, tls)
