"""How a region comes to its agents: real ones, each an actor that is a lease on a node; or simulated ones.

Handles of both take the same calls, so whoever has one need not know which it is.
"""

from pathlib import Path
from typing import Any, Protocol

import ray
import ray.util

from fleet.node.agent import NodeAgent
from fleet.node.facts import FleetFacts, facts_of
from fleet.node.model import NodeShare
from fleet.node.simulated_host import SimulatedAgent, SimulatedHost, simulated_nodes
from fleet.region.names import NAMESPACE, agent_name, agent_prefix, host_name
from fleet.region.nodes_config import NodesConfig
from fleet.settings import FleetSettings


class Agents(Protocol):
    def known(self) -> dict[str, Any]:
        """Handles of the agents that exist already, by name."""
        ...

    def ask(self, number: int) -> Any:
        """The handle of another agent, which comes to life when its node is there."""
        ...

    def give_back(self, handle: Any) -> None:
        """End a lease: the agent goes, and its node with it."""
        ...


class RayAgents:
    """A `NodeAgent` actor per node. Ray's autoscaler starts a node for one that waits."""

    def __init__(self, region: str, share: NodeShare, facts: FleetFacts) -> None:
        self._region = region
        self._share = share
        self._facts = facts

    def known(self) -> dict[str, Any]:
        prefix = agent_prefix(self._region)
        named: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)  # pyright: ignore[reportAssignmentType]
        return {
            entry["name"]: ray.get_actor(entry["name"], namespace=NAMESPACE)
            for entry in named
            if entry["namespace"] == NAMESPACE and entry["name"].startswith(prefix)
        }

    def ask(self, number: int) -> Any:
        options = NodeAgent.options(  # pyright: ignore[reportAttributeAccessIssue]
            name=agent_name(self._region, number),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            num_cpus=0,
            resources={f"node:{self._region}": 1},
        )
        return options.remote(self._region, self._share, self._facts)

    def give_back(self, handle: Any) -> None:
        ray.kill(handle, no_restart=True)


class SimulatedAgents:
    """Simulated nodes, `per_process` to a host actor. They are there at once, on the head's machine."""

    def __init__(self, region: str, share: NodeShare, per_process: int, home: Path) -> None:
        self._region = region
        self._share = share
        self._per_process = per_process
        self._home = home

    def known(self) -> dict[str, Any]:
        return {agent_name(self._region, n): self.ask(n) for n in simulated_nodes(self._home, self._region)}

    def ask(self, number: int) -> Any:
        options = SimulatedHost.options(  # pyright: ignore[reportAttributeAccessIssue]
            name=host_name(self._region, number // self._per_process),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            num_cpus=0,
            resources={"node:__internal_head__": 0.001},
        )
        return SimulatedAgent(options.remote(self._region, self._share), number)

    def give_back(self, handle: Any) -> None:
        handle.give_back()


def agents_of(settings: FleetSettings, nodes: NodesConfig, region: str) -> Agents:
    share = nodes.node(region)
    if settings.runtime == "simulated":
        return SimulatedAgents(region, share, nodes.simulated.nodes_per_process, settings.home)
    return RayAgents(region, share, facts_of(settings))
