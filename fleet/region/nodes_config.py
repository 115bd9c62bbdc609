"""What nodes offer: regions, memory, cores, addresses and port ranges, read from `configs/local.yaml` or its like."""

import re
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import Any, Literal, Self, cast

import psutil
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fleet.catalog import CONFIGS, load_catalog
from fleet.config_files import BadConfig, ConfigFile, kept_file
from fleet.errors import BadRequest
from fleet.node.facts import AUTO_MEMORY_SHARE
from fleet.node.model import NodeShare
from fleet.region.capacity import NodeClass
from fleet.region.placement import Takes

Auto = Literal["auto"]
NODES_FILE = CONFIGS / "local.yaml"
# Dedicated cores on one shared machine are nominal: the runtime clamps them to the machine.
NOMINAL_CORES = 64.0
DEFAULT_CLASS = "shared"
# From here on the kernel hands out ports by itself, so a game's port could be taken by any outgoing connection.
EPHEMERAL_FIRST = 32768


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PortRange(_Strict):
    """Region number i owns the host ports `[first + i * per_region, first + (i + 1) * per_region)`."""

    first: int = Field(default=20000, ge=1024)
    per_region: int = Field(default=900, ge=1)
    tls: int | None = Field(default=None, ge=0, description="of these, how many games may have by TLS; each takes two")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if 2 * self.tls_ports > self.per_region:
            raise ValueError(f"tls is {self.tls}: each takes two of the {self.per_region} ports per region")
        return self

    @property
    def tls_ports(self) -> int:
        return min(100, self.per_region // 4) if self.tls is None else self.tls


class NodeOffer(_Strict):
    """One node as written in the file; `auto` is resolved by `NodesConfig.node`."""

    memory_mb: Auto | int = "auto"
    cores: Auto | float = "auto"
    overcommit: Auto | float = Field(default="auto", description="how often its cores are promised to shared sizes")
    takes: Takes = Field(default="all", description="which sizes: all, shared or dedicated")
    max_nodes: int = Field(default=1, ge=0, description="per region")
    min_nodes: int | None = Field(default=None, ge=0, description="per region that is played; default: 1 if max is 1")
    cost_per_hour: float = Field(default=0.0, ge=0)
    lead_time_s: float = Field(default=60.0, gt=0, description="from asked to ready, until it has been measured")
    resource: str | None = Field(default=None, description="Ray's name of one such node; {region} is filled in")
    bind_host: str = "127.0.0.1"
    public_host: str = "127.0.0.1"
    ports: PortRange = PortRange()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least > self.max_nodes:
            raise ValueError(f"min_nodes is {self.min_nodes}, above max_nodes {self.max_nodes}")
        return self

    @property
    def least(self) -> int:
        """A machine that is there anyway keeps its agent; machines that cost money go when nobody needs them."""
        return (1 if self.max_nodes == 1 else 0) if self.min_nodes is None else self.min_nodes


class SimulatedNodes(_Strict):
    """Only for `FLEET_RUNTIME=simulated`."""

    nodes_per_process: int = Field(default=25, ge=1, le=1000)


class NodesConfig(_Strict):
    """`node`: what every node offers. `classes`: what differs for kinds of nodes; without it there is one kind."""

    regions: Literal["all"] | tuple[str, ...] = "all"
    offer: NodeOffer = Field(default=NodeOffer(), alias="node")
    classes: dict[str, NodeOffer] = Field(default_factory=dict[str, NodeOffer])
    simulated: SimulatedNodes = SimulatedNodes()
    on_head: bool = True  # the head's machine is a node of every region; false in a cluster

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, values: Any) -> Any:
        """A class has everything of `node` that it does not say itself."""
        if not isinstance(values, dict):
            return values  # pyright: ignore[reportUnknownVariableType]
        written = cast(dict[str, Any], values)
        node: dict[str, Any] = written.get("node") or {}
        classes: dict[str, dict[str, Any] | None] = written.get("classes") or {}
        parts: list[Any] = [node, classes, *(classes.values() if isinstance(classes, dict) else ())]  # pyright: ignore[reportUnnecessaryIsInstance]
        if not all(part is None or isinstance(part, dict) for part in parts):
            return written
        merged = {name: {**node, **(one or {})} for name, one in classes.items()}
        return {**written, "classes": merged or {DEFAULT_CLASS: node}}

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = tuple(load_catalog().regions)
        unknown = [name for name in self.enabled if name not in known]
        if unknown:
            raise ValueError(f"unknown regions {unknown}; known are {', '.join(known)}")
        if bad := [name for name in self.classes if not re.fullmatch("[a-z0-9-]{1,40}", name)]:
            raise ValueError(f"names of classes are lower-case letters, digits and '-', not {bad}")
        for offer in self.classes.values():
            last = offer.ports.first + len(known) * offer.ports.per_region
            if last > EPHEMERAL_FIRST:
                raise ValueError(
                    f"ports reach {last}: keep first + {len(known)} * per_region below {EPHEMERAL_FIRST}, "
                    "where the kernel's own ports begin"
                )
        resources = [self._resource(name, "r") for name in self.classes]
        if len(set(resources)) < len(resources):
            raise ValueError(f"two classes have one resource: {resources}")
        return self

    @property
    def enabled(self) -> tuple[str, ...]:
        """Ids of the regions that this fleet plays, in the catalog's order."""
        known = tuple(load_catalog().regions)
        return known if self.regions == "all" else self.regions

    def node(self, region: str, node_class: str | None = None) -> NodeShare:
        """The share of one node of that region (of the first class). `BadRequest` if it is not enabled here."""
        if region not in self.enabled:
            raise BadRequest(
                f"Region '{region[:64]}' is not enabled on this fleet.",
                error="Region not enabled",
            )
        name = node_class or next(iter(self.classes))
        offer = self.classes[name]
        # A region keeps its ports whatever other regions are enabled, so that running games can be adopted.
        known = tuple(load_catalog().regions)
        number = known.index(region) if region in known else len(known)
        first = offer.ports.first + number * offer.ports.per_region
        return NodeShare(
            memory_mb=_auto_memory_mb() if offer.memory_mb == "auto" else offer.memory_mb,
            cores=NOMINAL_CORES if offer.cores == "auto" else offer.cores,
            port_first=first,
            port_last=first + offer.ports.per_region,
            bind_host=offer.bind_host,
            public_host=offer.public_host,
            node_class=name,
            takes=offer.takes,
            overcommit=_overcommit(offer),
            auto=tuple(name for name in ("memory_mb", "cores") if getattr(offer, name) == "auto"),
            tls_ports=offer.ports.tls_ports,
        )

    def node_classes(self, region: str) -> tuple[NodeClass, ...]:
        """The classes of nodes that the region may lease."""
        return tuple(self._node_class(region, name, offer) for name, offer in self.classes.items())

    def resources(self) -> dict[str, int]:
        """What the head offers to Ray: on one machine, every node of every region."""
        if not self.on_head:
            return {}
        return {
            self._resource(name, region): offer.max_nodes
            for region in self.enabled
            for name, offer in self.classes.items()
            if offer.max_nodes
        }

    def _node_class(self, region: str, name: str, offer: NodeOffer) -> NodeClass:
        share = self.node(region, name)
        return NodeClass(
            name,
            self._resource(name, region),
            share.memory_mb,
            share.cores,
            offer.max_nodes,
            offer.least,
            share.overcommit,
            share.ports,
            share.takes,
            offer.cost_per_hour,
            offer.lead_time_s,
            share.tls_ports,
        )

    def _resource(self, name: str, region: str) -> str:
        written = self.classes[name].resource
        plain = "node:{region}" if name == DEFAULT_CLASS or len(self.classes) == 1 else f"node:{{region}}:{name}"
        return (written or plain).replace("{region}", region)


def _overcommit(offer: NodeOffer) -> float:
    """On nominal cores shared sizes are bound by memory alone; real ones are promised four times over."""
    if offer.overcommit == "auto":
        return inf if offer.cores == "auto" else 4.0
    return offer.overcommit


def _auto_memory_mb() -> int:
    return int(psutil.virtual_memory().total * AUTO_MEMORY_SHARE) >> 20


@lru_cache(maxsize=8)
def load_nodes_config(path: Path | None = None) -> NodesConfig:
    """The file at `path` (default `configs/local.yaml`), read once in a process; while it is broken, as it last was in
    this fleet. `BadRequest` names file, line and reason if it never was good."""
    try:
        return ConfigFile(path or NODES_FILE, nodes_of, kept_file("nodes.yaml")).now()
    except BadConfig as error:
        raise BadRequest(error.detail, error="Bad node configuration") from error


def nodes_of(content: Any) -> NodesConfig:
    """What a file's content says."""
    return NodesConfig.model_validate(content or {})
