"""What a node must know of its fleet, which its manager tells it: a node has no disk in common with the head.

What stands in the node's own environment (`FLEET_…`) goes before; a home, an address and the hardware are its own.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from fleet.node.model import NodeShare
from fleet.settings import FleetSettings

AUTO_MEMORY_SHARE = 0.8
_TOLD = ("upload", "logs", "bundle_limits", "image_limits", "registries", "runtime", "base_image")


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """Values that cross processes. `home` is the head's, so that an agent can tell whether it is there."""

    fleet_id: str
    home: str
    artefacts_url: str
    settings: dict[str, Any]


def facts_of(settings: FleetSettings) -> FleetFacts:
    """Told by the head."""
    url = settings.artefacts_url or f"file://{settings.artefacts.resolve()}"
    return FleetFacts(settings.fleet_id, str(settings.home.resolve()), url, {k: getattr(settings, k) for k in _TOLD})


def is_joined(facts: FleetFacts, local: FleetSettings) -> bool:
    """Whether this agent has a home of its own: another machine, or made to behave like one."""
    return str(local.home.resolve()) != facts.home


def node_settings(facts: FleetFacts, local: FleetSettings) -> FleetSettings:
    """The settings of an agent: the node's own environment, then what the fleet says. Marks the home as the fleet's."""
    told = {name: value for name, value in facts.settings.items() if name not in local.model_fields_set}
    if not is_joined(facts, local):
        return local
    home = local.home if "home" in local.model_fields_set else default_node_home()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / "cluster-id").write_text(facts.fleet_id)
    if "artefacts_url" not in local.model_fields_set:
        told["artefacts_url"] = facts.artefacts_url
    return local.model_copy(update=told | {"home": home.resolve()})


def default_node_home() -> Path:
    return Path("/var/lib/fleet") if os.geteuid() == 0 else Path.home() / ".fleet-node"


def own_share(share: NodeShare, local: FleetSettings, address: str) -> NodeShare:
    """What a joined node gives: its own memory, cores and address where the configuration leaves them open."""
    changes: dict[str, Any] = {
        "bind_host": local.bind_host or "0.0.0.0",
        "public_host": local.public_host or address,
    }
    if "memory_mb" in share.auto:
        changes["memory_mb"] = int(psutil.virtual_memory().total * AUTO_MEMORY_SHARE) >> 20
    if "cores" in share.auto:
        changes["cores"] = float(os.cpu_count() or 1)
    return replace(share, **changes)
