"""What a region's manager knows of one agent, and so of the node that it leases."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

from fleet.node.model import Drain, Hello
from fleet.region.model import NodeView
from fleet.times import now_ms


@dataclass(slots=True)
class Link:
    """One agent. `handle` is None until Ray was asked, `hello` until its first answer.

    `asked_at`: when this manager asked for it; None if an earlier one did. `since`: of its silence.
    """

    name: str
    node_class: str
    handle: Any = None
    asked_at: int | None = None
    hello: Hello | None = None
    synced: bool = False
    since: int = field(default_factory=now_ms)
    drain: Drain | None = None
    warnings: tuple[str, ...] = ()
    builds: frozenset[str] = frozenset()
    preparing: frozenset[str] = frozenset()
    releasing: bool = False
    task: asyncio.Task[None] | None = None

    def view(self) -> NodeView | None:
        """The node as plans see it."""
        if self.hello is None:
            return None
        share = self.hello.share
        return NodeView(
            self.hello.node_id,
            self.hello.host,
            share.memory_mb,
            share.cores,
            self.synced,
            None if self.synced else self.since,
            self.drain is not None,
            node_class=self.node_class,
            overcommit=share.overcommit,
            ports=share.ports,
            tls_ports=share.tls_ports,
            takes=share.takes,
            builds=self.builds,
            preparing=self.preparing,
        )

    def lost_view(self) -> NodeView | None:
        """The same, of a node whose machine is dead."""
        view = self.view()
        return replace(view, synced=False, lost=True, draining=True) if view else None
