"""The region's nodes follow its demand: reads what is wanted, asks `capacity.py` what to change, and has it done.

Whoever does not fit pokes: the plan is made within a tenth of a second, once for all who came meanwhile, so Ray is
asked at once. The repair timer plans too, for what must be left alone for a while (drain, release, take back).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import structlog

from fleet.actors.tasks import SupervisedTasks
from fleet.errors import NotFound
from fleet.node.model import Drain
from fleet.region.capacity import CapacityMemory, CapacityPlan, CapacityPolicy, NodeClass, NodeState, plan_capacity
from fleet.region.leases import Leases
from fleet.region.link import Link
from fleet.region.node_leads import NodeLeads
from fleet.region.placement import Demand
from fleet.region.preparing import Preparation
from fleet.region.queue import Queue
from fleet.region.region_memory import RegionMemory
from fleet.region.rooms import Rooms
from fleet.region.runs import Runs
from fleet.times import now_ms

log = structlog.get_logger(__name__)

_SOON_S = 0.05
_BETWEEN_S = 0.25
_PLAN_S = 5.0  # a start waits for the next plan, which comes at once


class Scaler:
    """`headroom()`: room that the forecast wants to see free; `orders()`: pool entries that are yet to be ordered.

    `settle()` launches what waits.
    """

    def __init__(
        self,
        region: str,
        classes: Sequence[NodeClass],
        policy: CapacityPolicy,
        leases: Leases,
        rooms: Rooms,
        runs: Runs,
        queue: Queue,
        demand: Callable[[Any], Demand],
        preparation: Preparation,
        memory: RegionMemory,
        *,
        settle: Callable[[], None],
        event: Callable[[str], None] = lambda _event: None,
    ) -> None:
        self._region = region
        self._classes = classes
        self._policy = policy
        self._leases = leases
        self._rooms = rooms
        self._runs = runs
        self._queue = queue
        self._demand = demand
        self._preparation = preparation
        self._memory = memory
        self._settle = settle
        self._event = event
        self.headroom: Callable[[], Sequence[Demand]] = tuple
        self.orders: Callable[[], Sequence[Demand]] = tuple
        self.costs = {c.name: c.cost_per_hour for c in classes}
        self.leads = NodeLeads({c.name: c.lead_time_s for c in classes})
        self._history = CapacityMemory()
        self._waiting: dict[str, Demand] = {}
        self._short: frozenset[str] = frozenset()
        self._next: asyncio.Task[None] | None = None
        self._last = 0.0
        # What fails here is planned again by the next review: of a node that changes, or of the repair timer.
        self._tasks = SupervisedTasks("scaler", region=region)
        leases.on_ready = self._came
        leases.on_change = self._nodes_changed

    def begin(self) -> None:
        """A new manager: what was measured, and agents for the nodes that hold servers but have none."""
        self.leads.load(self._memory.get("node_leads"))
        asked = self._leases.asked()
        for node_class, number in self._unseen().items():
            for _ in range(number - asked[node_class]):
                self._leases.ask(node_class)
        self.review()

    async def close(self) -> None:
        await self._tasks.close()

    def lead_seconds(self) -> float:
        """How long a node of the first class takes from asked for to ready, as measured."""
        return self.leads.seconds(self._classes[0].name)

    # Demand -----------------------------------------------------------------------------------------------------

    @contextmanager
    def waiting(self, demand: Demand) -> Generator[None]:
        """While inside, this server waits for room and counts as demand."""
        self._waiting[demand.instance_id] = demand
        try:
            yield
        finally:
            self._waiting.pop(demand.instance_id, None)

    def poke(self) -> None:
        """Something has no room, or nodes have changed: plan soon."""
        if self._next is None or self._next.done():
            self._next = self._tasks.once("review", self._soon())

    async def reviewed(self) -> frozenset[str]:
        """Wait for the next plan; the servers for which there is no room and will be none. If it fails, that is said of
        nobody."""
        self.poke()
        if self._next is not None:
            await asyncio.wait([self._next], timeout=_PLAN_S)
        return self._short

    async def _soon(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(_SOON_S if loop.time() - self._last > _BETWEEN_S else _BETWEEN_S)
        self._last = loop.time()
        self.review()

    def review(self) -> None:
        """Plan, and begin to carry the plan out."""
        self._short = frozenset()  # what an earlier plan said is not true any more, though this one may fail
        now = now_ms()
        queued = [self._demand(server) for server in self._queue.servers()]
        wanted = [*self._waiting.values(), *queued, *self.orders()]
        plan, self._history = plan_capacity(
            wanted,
            self.headroom(),
            [self._state(node_id, link, now) for node_id, link in self._leases.links().items()],
            self._leases.asked(),
            self._classes,
            self._history,
            now,
            self._policy,
            bound=self._unseen() + self._leases.expected(),
        )
        self._short = plan.short
        self._carry_out(plan)
        self._preparation.keep_up()

    def _state(self, node_id: str, link: Link, now: int) -> NodeState:
        held = self._rooms.servers(node_id)
        nothing = not held and not any(True for _ in self._runs.on(node_id))
        room = self._rooms.room(node_id)
        cause = link.drain.cause if link.drain else None
        away = not link.synced and now - link.silence.since >= self._policy.away_ms
        return NodeState(room, link.node_class, link.synced, nothing, cause, self._rooms.movable(node_id), away)

    def _unseen(self) -> Counter[str]:
        """Nodes that hold servers and have not said hello to this manager, per class: agents are to come for them."""
        found: Counter[str] = Counter()
        for demand in self._rooms.unseen():
            able = [c.name for c in self._classes if c.room("").fits(demand)]
            found[able[0] if able else self._classes[0].name] += 1
        return found

    def _carry_out(self, plan: CapacityPlan) -> None:
        for node_class, number in plan.ask.items():
            for _ in range(number):
                self._leases.ask(node_class)
                self._event("asked")
        for node_class, number in plan.cancel.items():
            self._leases.cancel(node_class, number)
        for node_id in plan.drain:
            log.info("node drains: it is one too many", region=self._region, node=node_id)
            self._tasks.once("drain", self._leases.drain(node_id, Drain("surplus")), node=node_id)
        for node_id in plan.undrain:
            log.info("node is needed again", region=self._region, node=node_id)
            self._tasks.once("undrain", self._undrain(node_id), node=node_id)
        for node_id in plan.release:
            self._tasks.once("release", self._release(node_id), node=node_id)

    async def _undrain(self, node_id: str) -> None:
        await self._leases.drain(node_id, None)
        self._settle()

    async def _release(self, node_id: str) -> None:
        if await self._leases.release(node_id):
            self._event("released")

    # Nodes ------------------------------------------------------------------------------------------------------

    def _came(self, link: Link) -> None:
        """A node said hello for the first time. It is ready when its builds are."""
        asked_at, link.asked_at = link.asked_at, None
        self._event("joined")

        def ready() -> None:
            if asked_at is not None:
                self.leads.record(link.node_class, (now_ms() - asked_at) / 1000)
                self._memory.put("node_leads", self.leads.to_json())
            self._settle()

        self._preparation.welcome(link, ready)

    def _nodes_changed(self) -> None:
        self.poke()

    async def drain(self, node_id: str, drain: Drain | None) -> None:
        """An operator's wish, or a notice that the machine will go."""
        if not await self._leases.drain(node_id, drain):
            raise NotFound(f"There is no node '{node_id}' in {self._region}.", error="Node not found")
        self._settle()

    def rows(self) -> list[dict[str, Any]]:
        """For operators: every node, those that nobody hears of, and those that were asked for."""
        rooms = {room.node_id: room for room in self._rooms.rooms()}
        now = now_ms()
        found = [self._row(node_id, link, rooms.get(node_id)) for node_id, link in self._leases.links().items()]
        for node_id, view in self._leases.views().items():
            if node_id not in self._leases.links():
                found.append(_blank_row(node_id, view.node_class, "lost" if view.lost else "silent"))
        waits = self._leases.oldest_ask_ms(now) / 1000
        for node_class, number in sorted(self._leases.asked().items()):
            for n in range(number):
                name = f"{self._region}?{node_class}-{n + 1}"
                found.append(_blank_row(name, node_class, f"asked {waits:.0f} s ago"))
        return [row | {"lead_s": self.leads.seconds(row["node_class"])} for row in found]

    def _row(self, node_id: str, link: Link, room: Any) -> dict[str, Any]:
        hello = link.hello
        assert hello is not None
        state = "ready" if link.synced else "silent"
        if link.drain is not None:
            state = f"draining ({link.drain.cause})"
        elif link.synced and link.preparing:
            state = "preparing"
        return {
            "node_id": node_id,
            "node_class": link.node_class,
            "state": state,
            "host": hello.host,
            "runtime": hello.runtime,
            "memory_mb": hello.share.memory_mb,
            "memory_free_mb": room.memory_mb if room else None,
            "draining": link.drain is not None,
            "drain_until": link.drain.until if link.drain else None,
            "synced": link.synced,
            "ray_node": hello.ray_node,
            "builds": len(link.builds),
            "warnings": list(link.warnings),
            "runs": sum(not self._runs[key].state.ended for key in self._runs.on(node_id)),
        }


def _blank_row(name: str, node_class: str, state: str) -> dict[str, Any]:
    blank: Mapping[str, Any] = {
        "host": "",
        "runtime": "",
        "memory_mb": 0,
        "memory_free_mb": None,
        "draining": False,
        "drain_until": None,
        "synced": False,
        "ray_node": "",
        "builds": 0,
        "runs": 0,
    }
    return {"node_id": name, "node_class": node_class, "state": state, **blank}
