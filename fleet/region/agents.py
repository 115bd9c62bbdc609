"""How a region comes to its agents: real ones, each an actor that is a lease on a node; or simulated ones.

Handles of both take the same calls, so whoever has one need not know which it is.
"""

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import Any, Protocol, cast

import ray
import ray.util
import structlog
from ray._private import state as ray_state
from ray.exceptions import RayError

from fleet.actors.lanes import CALLS
from fleet.actors.single_flight import SingleFlight
from fleet.node.agent import NodeAgent
from fleet.node.facts import FleetFacts, facts_of
from fleet.node.model import Hello, NodeShare
from fleet.node.simulated_host import SimulatedAgent, SimulatedHost, simulated_nodes
from fleet.region.head_actor import on_head
from fleet.region.names import NAMESPACE, agent_name, agent_prefix, host_name
from fleet.region.nodes_config import NodesConfig
from fleet.settings import FleetSettings
from fleet.times import now_ms

log = structlog.get_logger(__name__)

_PER_CLASS = 100_000
_SIGN_S = 5.0  # an agent that lives answers within that, whatever it is doing
_HOST_AGAIN_S = 20.0
# Why Ray's autoscaler ended a node: then the machine is gone. Any other end of a raylet says nothing of its machine.
_MACHINE_ENDED = (3, 4)  # NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED, AUTOSCALER_DRAIN_IDLE


class Presence(StrEnum):
    """What there is of an agent that is not heard."""

    WAITING = "waiting"  # Ray starts it, or has no machine for it
    RETURNS = "returns"  # Ray starts again one that had a machine
    ANSWERS = "answers"  # its process answers
    HANGS = "hangs"  # Ray says that it is there, and it does not answer
    GONE = "gone"  # for good
    UNKNOWN = "unknown"  # Ray does not say


class Agents(Protocol):
    """Names are `agent:<region>:<class>:<mark>`."""

    def known(self) -> dict[str, Any]:
        """Handles of the agents that exist already, by name."""
        ...

    def ask(self, node_class: str, known: Collection[str]) -> tuple[str, Any]:
        """Name and handle of another agent, which comes to life when its node is there. `known`: names in use. Does not
        block; what Ray cannot do now is tried again by the first calls."""
        ...

    def give_back(self, handle: Any) -> None:
        """End a lease: the agent goes, and its node with it. May block."""
        ...

    def restart(self, handle: Any) -> None:
        """Kill the agent's process, however it hangs, and have it begun anew. May block."""
        ...

    async def presence(self, handle: Any) -> Presence:
        """What there is of an agent that is not heard."""
        ...

    def dead(self, hello: Hello) -> bool:
        """Whether the machine of the agent that said so is known for sure to be gone. May block."""
        ...


class RayAgents:
    """A `NodeAgent` actor per node. Ray's autoscaler starts a node for one that waits."""

    def __init__(
        self, region: str, shares: Mapping[str, NodeShare], resources: Mapping[str, str], facts: FleetFacts
    ) -> None:
        self._region = region
        self._shares = shares
        self._resources = resources
        self._facts = facts

    def known(self) -> dict[str, Any]:
        prefix = agent_prefix(self._region)
        named: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)  # pyright: ignore[reportAssignmentType]
        names = [entry["name"] for entry in named if entry["namespace"] == NAMESPACE]
        found: dict[str, Any] = {}
        for name in names:
            if name.startswith(prefix):
                try:
                    found[name] = ray.get_actor(name, namespace=NAMESPACE)
                except ValueError:  # it ended meanwhile
                    log.info("agent_ended", agent=name)
        return found

    def ask(self, node_class: str, known: Collection[str]) -> tuple[str, Any]:
        # A name is never used twice: Ray may still be burying the agent that had it.
        name = agent_name(self._region, node_class, f"{now_ms():x}{secrets.token_hex(2)}")
        options = NodeAgent.options(  # pyright: ignore[reportAttributeAccessIssue]
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            num_cpus=0,
            max_concurrency=CALLS,
            resources={self._resources[node_class]: 1},
        )
        return name, AskedAgent(lambda: options.remote(self._region, self._shares[node_class], self._facts))

    def give_back(self, handle: Any) -> None:
        ray.kill(_made(handle), no_restart=True)

    def restart(self, handle: Any) -> None:
        # Where the process does not end when asked, its raylet sends SIGKILL after 5 s: also one that is stopped ends.
        ray.kill(_made(handle), no_restart=False)

    async def presence(self, handle: Any) -> Presence:
        state = await asyncio.to_thread(_state, handle)
        if state == "ALIVE":
            return await _answers(_made(handle).alive.remote())
        told = {"": Presence.UNKNOWN, "DEAD": Presence.GONE, "RESTARTING": Presence.RETURNS}
        return told.get(state, Presence.WAITING)

    def dead(self, hello: Hello) -> bool:
        nodes = cast(list[dict[str, Any]], ray.nodes())
        ended = [node for node in nodes if node["NodeID"] == hello.ray_node and not node["Alive"]]
        return any(node.get("DeathReason") in _MACHINE_ENDED for node in ended)


class AskedAgent:
    """Speaks like the handle of a NodeAgent that Ray is asked for when it is first spoken to, in a thread: while Ray's
    head is away, that takes as long as it is away. The same agent however often that is tried, since its name is."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._asking = SingleFlight[str, Any]()  # an order that does not come back takes one thread, not more and more
        self._handle: Any = None

    def made(self) -> Any:
        """The handle. May block."""
        with self._lock:
            if self._handle is None:
                self._handle = self._make()
            return self._handle

    async def asked(self) -> Any:
        return await self._asking.do("make", lambda: asyncio.to_thread(self.made))

    def __getattr__(self, method: str) -> Any:
        return _AskedMethod(self, method) if self._handle is None else getattr(self._handle, method)


class _AskedMethod:
    def __init__(self, asked: AskedAgent, method: str) -> None:
        self._asked, self._method = asked, method

    async def remote(self, *arguments: Any) -> Any:
        handle = await self._asked.asked()
        return await getattr(handle, self._method).remote(*arguments)


def _made(handle: Any) -> Any:
    return handle.made() if isinstance(handle, AskedAgent) else handle


def _state(handle: Any) -> str:
    """Ray's word for an actor's state; empty if it has none."""
    known = cast(dict[str, Any], ray_state.actors(_made(handle)._actor_id.hex()))
    return str(known.get("State", ""))


async def _answers(call: Any) -> Presence:
    # Not Ray's own `__ray_ready__`, which is answered also while the event loop is stuck.
    try:
        async with asyncio.timeout(_SIGN_S):
            await call
            return Presence.ANSWERS
    except (RayError, TimeoutError):
        return Presence.HANGS


class SimulatedAgents:
    """Simulated nodes, `per_process` to a host actor. They are there at once, on the head's machine.

    Node numbers tell their class: from 0 the first class, from `_PER_CLASS` on the second, and so on.
    """

    def __init__(self, region: str, shares: Mapping[str, NodeShare], per_process: int, home: Path) -> None:
        self._region = region
        self._shares = shares
        self._per_process = per_process
        self._home = home
        self._begun_anew: dict[str, float] = {}

    def known(self) -> dict[str, Any]:
        return dict(self._agent(number) for number in simulated_nodes(self._home, self._region))

    def ask(self, node_class: str, known: Collection[str]) -> tuple[str, Any]:
        first = list(self._shares).index(node_class) * _PER_CLASS
        return self._agent(next(n for n in count(first) if agent_name(self._region, node_class, n) not in known))

    def _agent(self, number: int) -> tuple[str, Any]:
        index, place = divmod(number, _PER_CLASS)
        node_class = list(self._shares)[index]
        name = host_name(self._region, index * _PER_CLASS + place // self._per_process)
        host = on_head(
            SimulatedHost, name, self._region, self._shares[node_class], repeats=False, max_concurrency=CALLS
        )
        return agent_name(self._region, node_class, number), SimulatedAgent(host, number)

    def give_back(self, handle: Any) -> None:
        handle.give_back()

    def restart(self, handle: Any) -> None:
        """All nodes of the same process begin anew with it, so not for each of them."""
        name, now = handle.host._actor_id.hex(), time.monotonic()
        if now - self._begun_anew.get(name, -_HOST_AGAIN_S) >= _HOST_AGAIN_S:
            self._begun_anew[name] = now
            ray.kill(handle.host, no_restart=False)

    async def presence(self, handle: Any) -> Presence:
        return await _answers(handle.host.alive.remote())

    def dead(self, hello: Hello) -> bool:
        return False


def agents_of(settings: FleetSettings, nodes: NodesConfig, region: str) -> Agents:
    classes = nodes.node_classes(region)
    shares = {one.name: nodes.node(region, one.name) for one in classes}
    if settings.runtime == "simulated":
        return SimulatedAgents(region, shares, nodes.simulated.nodes_per_process, settings.home)
    return RayAgents(region, shares, {one.name: one.resource for one in classes}, facts_of(settings))
