"""The node as a lease: which machine it is, whether it drains, whether it has been given back."""

from dataclasses import dataclass

from fleet.errors import Conflict
from fleet.node.model import Drain


@dataclass(slots=True)
class Tenure:
    """`ray_node`: Ray's id of the machine. `scope`: what the node's games are labelled with, where several nodes of a
    region share a machine; None: the region."""

    ray_node: str = ""
    scope: str | None = None
    drain: Drain | None = None
    retired: bool = False

    def set_drain(self, drain: Drain | None) -> None:
        """Remembered for managers to come. Conflict if the node has been given back already."""
        if drain is None and self.retired:
            raise Conflict("This node has been given back.", error="Node released")
        self.drain = drain

    def retire(self, alive: int) -> None:
        """The region gives this node back. Conflict if something runs here after all."""
        if alive:
            raise Conflict(f"This node holds {alive} servers.", error="Node in use")
        self.retired = True
