"""How a region comes to its agents: real ones, each an actor that is a lease on a node; or simulated ones.

Handles of both take the same calls, so whoever has one need not know which it is.
"""

import secrets
from collections.abc import Collection, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Protocol, cast

import ray
import ray.util

from fleet.node.agent import NodeAgent
from fleet.node.facts import FleetFacts, facts_of
from fleet.node.model import Hello, NodeShare
from fleet.node.simulated_host import SimulatedAgent, SimulatedHost, simulated_nodes
from fleet.region.head_actor import on_head
from fleet.region.names import NAMESPACE, agent_name, agent_prefix, host_name
from fleet.region.nodes_config import NodesConfig
from fleet.settings import FleetSettings
from fleet.times import now_ms

_PER_CLASS = 100_000


class Agents(Protocol):
    """Names are `agent:<region>:<class>:<mark>`."""

    def known(self) -> dict[str, Any]:
        """Handles of the agents that exist already, by name."""
        ...

    def ask(self, node_class: str, known: Collection[str]) -> tuple[str, Any]:
        """Name and handle of another agent, which comes to life when its node is there. `known`: names in use."""
        ...

    def give_back(self, handle: Any) -> None:
        """End a lease: the agent goes, and its node with it."""
        ...

    def dead(self, hello: Hello) -> bool:
        """Whether the machine of the agent that said so is known to be dead. May block."""
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
        return {
            entry["name"]: ray.get_actor(entry["name"], namespace=NAMESPACE)
            for entry in named
            if entry["namespace"] == NAMESPACE and entry["name"].startswith(prefix)
        }

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
            resources={self._resources[node_class]: 1},
        )
        return name, options.remote(self._region, self._shares[node_class], self._facts)

    def give_back(self, handle: Any) -> None:
        ray.kill(handle, no_restart=True)

    def dead(self, hello: Hello) -> bool:
        nodes = cast(list[dict[str, Any]], ray.nodes())
        return any(node["NodeID"] == hello.ray_node and not node["Alive"] for node in nodes)


class SimulatedAgents:
    """Simulated nodes, `per_process` to a host actor. They are there at once, on the head's machine.

    Node numbers tell their class: from 0 the first class, from `_PER_CLASS` on the second, and so on.
    """

    def __init__(self, region: str, shares: Mapping[str, NodeShare], per_process: int, home: Path) -> None:
        self._region = region
        self._shares = shares
        self._per_process = per_process
        self._home = home

    def known(self) -> dict[str, Any]:
        return dict(self._agent(number) for number in simulated_nodes(self._home, self._region))

    def ask(self, node_class: str, known: Collection[str]) -> tuple[str, Any]:
        first = list(self._shares).index(node_class) * _PER_CLASS
        return self._agent(next(n for n in count(first) if agent_name(self._region, node_class, n) not in known))

    def _agent(self, number: int) -> tuple[str, Any]:
        index, place = divmod(number, _PER_CLASS)
        node_class = list(self._shares)[index]
        name = host_name(self._region, index * _PER_CLASS + place // self._per_process)
        host = on_head(SimulatedHost, name, self._region, self._shares[node_class], repeats=False)
        return agent_name(self._region, node_class, number), SimulatedAgent(host, number)

    def give_back(self, handle: Any) -> None:
        handle.give_back()

    def dead(self, hello: Hello) -> bool:
        return False


def agents_of(settings: FleetSettings, nodes: NodesConfig, region: str) -> Agents:
    classes = nodes.node_classes(region)
    shares = {one.name: nodes.node(region, one.name) for one in classes}
    if settings.runtime == "simulated":
        return SimulatedAgents(region, shares, nodes.simulated.nodes_per_process, settings.home)
    return RayAgents(region, shares, {one.name: one.resource for one in classes}, facts_of(settings))
