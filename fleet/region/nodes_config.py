"""What nodes offer: regions, memory, cores, addresses and port ranges, read from `configs/local.yaml` or its like."""

from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import psutil
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fleet.catalog import CONFIGS, load_catalog
from fleet.errors import BadRequest
from fleet.node.facts import AUTO_MEMORY_SHARE
from fleet.node.model import NodeShare

Auto = Literal["auto"]
# Dedicated cores on one shared machine are nominal: the runtime clamps them to the machine.
NOMINAL_CORES = 64.0
# From here on the kernel hands out ports by itself, so a game's port could be taken by any outgoing connection.
EPHEMERAL_FIRST = 32768


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PortRange(_Strict):
    """Region number i owns the host ports `[first + i * per_region, first + (i + 1) * per_region)`."""

    first: int = Field(default=20000, ge=1024)
    per_region: int = Field(default=900, ge=1)


class NodeOffer(_Strict):
    """One node as written in the file; `auto` is resolved by `NodesConfig.node`."""

    memory_mb: Auto | int = "auto"
    cores: Auto | float = "auto"
    max_nodes: int = Field(default=1, ge=1)
    bind_host: str = "127.0.0.1"
    public_host: str = "127.0.0.1"
    ports: PortRange = PortRange()


class SimulatedNodes(_Strict):
    """Only for `FLEET_RUNTIME=simulated`."""

    nodes_per_process: int = Field(default=25, ge=1, le=1000)


class NodesConfig(_Strict):
    regions: Literal["all"] | tuple[str, ...] = "all"
    offer: NodeOffer = Field(default=NodeOffer(), alias="node")
    simulated: SimulatedNodes = SimulatedNodes()
    on_head: bool = True  # the head's machine is a node of every region; false in a cluster

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = tuple(load_catalog().regions)
        unknown = [name for name in self.enabled if name not in known]
        if unknown:
            raise ValueError(f"unknown regions {unknown}; known are {', '.join(known)}")
        last = self.offer.ports.first + len(known) * self.offer.ports.per_region
        if last > EPHEMERAL_FIRST:
            raise ValueError(
                f"ports reach {last}: keep first + {len(known)} * per_region below {EPHEMERAL_FIRST}, "
                "where the kernel's own ports begin"
            )
        return self

    @property
    def enabled(self) -> tuple[str, ...]:
        """Ids of the regions that this fleet plays, in the catalog's order."""
        known = tuple(load_catalog().regions)
        return known if self.regions == "all" else self.regions

    def node(self, region: str) -> NodeShare:
        """The share of one node of that region. `BadRequest` if the region is not enabled here."""
        if region not in self.enabled:
            raise BadRequest(
                f"Region '{region[:64]}' is not enabled on this fleet.",
                error="Region not enabled",
            )
        offer = self.offer
        # A region keeps its ports whatever other regions are enabled, so that running games can be adopted.
        first = offer.ports.first + tuple(load_catalog().regions).index(region) * offer.ports.per_region
        return NodeShare(
            memory_mb=_auto_memory_mb() if offer.memory_mb == "auto" else offer.memory_mb,
            cores=NOMINAL_CORES if offer.cores == "auto" else offer.cores,
            port_first=first,
            port_last=first + offer.ports.per_region,
            bind_host=offer.bind_host,
            public_host=offer.public_host,
            auto=tuple(name for name in ("memory_mb", "cores") if getattr(offer, name) == "auto"),
        )


def _auto_memory_mb() -> int:
    return int(psutil.virtual_memory().total * AUTO_MEMORY_SHARE) >> 20


@lru_cache(maxsize=8)
def load_nodes_config(path: Path | None = None) -> NodesConfig:
    """The file at `path` (default `configs/local.yaml`). `BadRequest` names what is wrong in it."""
    path = path or CONFIGS / "local.yaml"
    try:
        return NodesConfig.model_validate(yaml.safe_load(path.read_text()) or {})
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise BadRequest(f"{path}: {error}", error="Bad node configuration") from error
