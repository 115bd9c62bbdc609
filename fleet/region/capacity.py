"""How many nodes of which class: plan_capacity(wanted, nodes, asked, classes, memory, now) -> what to change. Pure.

What is wanted (servers that wait for room, and the room that the forecast wants to see free) is placed on the nodes
that stay; then on those that are on their way; then draining nodes are taken back; only then are new ones asked for.
So the region grows at once. It shrinks slowly: nodes are drained, emptiest first, when during all of `surplus_ms` the
rest could have carried everything. A drained node is released when nothing is left on it; what somebody uses is never
moved.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from fleet.region.placement import ANY_PORTS, Demand, Packing, Room, Takes

Cause = Literal["surplus", "operator", "notice"]
History = tuple[tuple[int, int], ...]  # (since when, how many), oldest first

# Looks for surplus nodes per window in which they must be too many: each places every idle entry anew.
_LOOKS = 20


@dataclass(frozen=True, slots=True)
class NodeClass:
    """A kind of node that Ray can give: what an empty one offers, and how many of them a region may have."""

    name: str
    resource: str
    memory_mb: int
    cores: float
    max_nodes: int
    min_nodes: int = 0
    overcommit: float = inf
    ports: int = ANY_PORTS
    takes: Takes = "all"
    cost_per_hour: float = 0.0
    lead_time_s: float = 60.0
    tls_ports: int = ANY_PORTS

    def room(self, node_id: str) -> Room:
        """An empty node of this class."""
        return Room(
            node_id,
            self.memory_mb,
            self.cores,
            overcommit=self.overcommit,
            ports=self.ports,
            tls_ports=self.tls_ports,
            takes=self.takes,
        )


@dataclass(frozen=True, slots=True)
class NodeState:
    """One leased node. `ready`: it answers. `empty`: nothing of ours is left there. `cause`: why it drains, if it does.

    `movable`: the idle pool entries there, which can be started elsewhere. `away`: silent for so long that nobody
    should wait for it.
    """

    room: Room
    node_class: str
    ready: bool = True
    empty: bool = False
    cause: Cause | None = None
    movable: tuple[Demand, ...] = ()
    away: bool = False


@dataclass(frozen=True, slots=True)
class CapacityPolicy:
    """How long a surplus must last before nodes are drained, or asks that nobody needs any more are taken back.

    `away_ms`: a node that has been silent for so long is not waited for.
    """

    surplus_ms: int = 600_000
    unneeded_ms: int = 30_000
    away_ms: int = 30_000


@dataclass(frozen=True, slots=True)
class CapacityMemory:
    """Per class, how many nodes (or asks) have been too many, and since when. `look`: the last for surplus nodes."""

    surplus: Mapping[str, History] = field(default_factory=dict[str, History])
    unneeded: Mapping[str, History] = field(default_factory=dict[str, History])
    look: int | None = None


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """Numbers per class, node ids, and the servers for which there is no room and will be none."""

    ask: Mapping[str, int] = field(default_factory=dict[str, int])
    cancel: Mapping[str, int] = field(default_factory=dict[str, int])
    drain: tuple[str, ...] = ()
    undrain: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    short: frozenset[str] = frozenset()


def plan_capacity(
    wanted: Sequence[Demand],
    headroom: Sequence[Demand],
    nodes: Sequence[NodeState],
    asked: Mapping[str, int],
    classes: Sequence[NodeClass],
    memory: CapacityMemory,
    now: int,
    policy: CapacityPolicy,
    bound: Mapping[str, int] | None = None,
) -> tuple[CapacityPlan, CapacityMemory]:
    """`wanted`, in order: servers that wait. `headroom`: room to keep free. `asked`: agents that have not come yet, of
    which `bound` are for nodes that hold servers, and never taken back.
    """
    asked = {c.name: asked[c.name] for c in classes if asked.get(c.name)}
    nodes = [replace(node, room=replace(node.room, preparing=frozenset())) for node in nodes]  # that ends by itself
    staying = [node for node in nodes if node.cause is None]
    ready = [node for node in staying if node.ready]
    left = _pack(Packing(node.room for node in ready), [*wanted, *headroom])
    coming = Packing([n.room for n in staying if not n.ready and not n.away] + _asked_rooms(asked, classes))
    empty_before = {room.node_id: room for room in coming.rooms()}
    left = _pack(coming, left)
    idle_asks = Counter(
        _class_of(room.node_id) for room in coming.rooms() if room is empty_before[room.node_id] and _is_asked(room)
    )
    undrain, left = _take_back(nodes, left)
    kept = Counter(node.node_class for node in staying) + Counter(
        n.node_class for n in nodes if n.room.node_id in undrain
    )
    leased = Counter(node.node_class for node in nodes) + Counter(asked)
    ask, short = _ask(left, classes, leased, kept + Counter(asked))
    grows = bool(ask or undrain or left or idle_asks.total() < sum(asked.values()))
    look = now // max(1, policy.surplus_ms // _LOOKS)
    looks = grows or look != memory.look
    spare = _spare([*wanted, *headroom], ready, classes, kept) if looks and not grows else {}
    surplus, drains = memory.surplus, {}
    if looks:
        numbers = {name: len(found) for name, found in spare.items()}
        surplus, drains = _lasting(memory.surplus, numbers, now, policy.surplus_ms)
    floors = {c.name: max(0, c.min_nodes - kept[c.name]) + (bound or {}).get(c.name, 0) for c in classes}
    idle = {name: min(number, asked[name] - floors.get(name, 0)) for name, number in idle_asks.items()}
    unneeded, cancel = _lasting(memory.unneeded, idle, now, policy.unneeded_ms)
    missing = {demand.instance_id for demand in wanted}
    plan = CapacityPlan(
        ask,
        cancel,
        tuple(name for node_class, count in drains.items() for name in spare[node_class][:count]),
        undrain,
        tuple(n.room.node_id for n in nodes if _may_go(n, undrain)),
        frozenset(short & missing),
    )
    return plan, CapacityMemory(surplus, unneeded, look)


def _pack(packing: Packing, demands: Iterable[Demand]) -> list[Demand]:
    """Those that do not fit. The packing keeps the others."""
    return [demand for demand in demands if packing.take(demand) is None]


def _asked_rooms(asked: Mapping[str, int], classes: Sequence[NodeClass]) -> list[Room]:
    return [c.room(f"{c.name}?{number}") for c in classes for number in range(asked.get(c.name, 0))]


def _is_asked(room: Room) -> bool:
    return "?" in room.node_id


def _class_of(asked_id: str) -> str:
    return asked_id.rpartition("?")[0]


def _take_back(nodes: Sequence[NodeState], left: list[Demand]) -> tuple[tuple[str, ...], list[Demand]]:
    """Nodes that drain only because they were too many, the fullest first, as far as they help."""
    taken: list[str] = []
    draining = [node for node in nodes if node.cause == "surplus" and node.ready]
    for node in sorted(draining, key=lambda n: (n.room.memory_mb, n.room.node_id)):
        if not left:
            break
        rest = _pack(Packing([replace(node.room, draining=False)]), left)
        if len(rest) < len(left):
            taken.append(node.room.node_id)
            left = rest
    return tuple(taken), left


def _ask(
    left: Sequence[Demand], classes: Sequence[NodeClass], leased: Counter[str], kept: Counter[str]
) -> tuple[dict[str, int], set[str]]:
    """New nodes for what is left, of the cheapest class that can take it, and up to the least number; who has none."""
    new, asked = Packing(), Counter[str]()
    short: set[str] = set()
    for demand in left:
        if new.take(demand) is not None:
            continue
        able = [c for c in classes if leased[c.name] + asked[c.name] < c.max_nodes and c.room("").fits(demand)]
        if not able:
            short.add(demand.instance_id)
            continue
        best = min(able, key=lambda c: (c.cost_per_hour, c.memory_mb, c.name))
        asked[best.name] += 1
        new.put(best.room(f"{best.name}?{asked[best.name]}"))
        new.take(demand)
    for c in classes:
        lacking = min(c.min_nodes - kept[c.name], c.max_nodes - leased[c.name])
        asked[c.name] = max(asked[c.name], lacking)
    return {name: number for name, number in asked.items() if number > 0}, short


def _spare(
    wanted: Sequence[Demand], ready: Sequence[NodeState], classes: Sequence[NodeClass], kept: Counter[str]
) -> dict[str, list[str]]:
    """Per class the nodes, emptiest first, without which the others still carry what is wanted and what moves away."""
    least = {c.name: c.min_nodes for c in classes}
    found: dict[str, list[str]] = {}
    rest = Packing(node.room for node in ready)
    here: dict[str, list[Demand]] = {}
    for demand in wanted:
        _settle(rest, here, demand)
    stuck: set[str] = set()
    for node in sorted(ready, key=lambda n: (-n.room.memory_mb, n.room.node_id)):
        name, node_id = node.node_class, node.room.node_id
        may = kept[name] - len(found.get(name, ())) > least.get(name, 0)
        if name in stuck or not may:
            continue
        before = rest.rooms()
        rest.drop(node_id)
        if all(_settle(rest, here, demand) for demand in [*here.pop(node_id, ()), *node.movable]):
            found.setdefault(name, []).append(node_id)
        else:
            stuck.add(name)  # a fuller one would help less
            rest = Packing(before)
    return found


def _settle(rest: Packing, here: dict[str, list[Demand]], demand: Demand) -> bool:
    """Place one demand and note where; False if it fits nowhere."""
    node_id = rest.take(demand)
    if node_id is not None:
        here.setdefault(node_id, []).append(demand)
    return node_id is not None


def _lasting(
    before: Mapping[str, History], numbers: Mapping[str, int], now: int, window: int
) -> tuple[dict[str, History], dict[str, int]]:
    """The histories with now's numbers, and per class the least number of the whole window, which is taken off."""
    after: dict[str, History] = {}
    lasting: dict[str, int] = {}
    for name in {*before, *numbers}:
        history = (*(entry for entry in before.get(name, ()) if entry[0] < now), (now, numbers.get(name, 0)))
        # The last entry from before the window tells what was when it began.
        first = max((i for i, (since, _) in enumerate(history) if since <= now - window), default=None)
        if first is not None:
            history = history[first:]
            least = min(number for _, number in history)
            if least:
                lasting[name] = least
                history = tuple((since, number - least) for since, number in history)
        if any(number for _, number in history):
            after[name] = _short(history)
    return after, lasting


def _short(history: History) -> History:
    """Without entries that repeat the one before."""
    return tuple(entry for i, entry in enumerate(history) if i == 0 or entry[1] != history[i - 1][1])


def _may_go(node: NodeState, undrain: tuple[str, ...]) -> bool:
    """A node that an operator drains stays until the operator says otherwise."""
    leaving = node.cause in ("surplus", "notice")
    return leaving and node.ready and node.empty and node.room.node_id not in undrain
