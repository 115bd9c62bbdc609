"""What a region's manager knows of one agent, and so of the node that it leases."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fleet.node.model import Drain, Hello
from fleet.region.model import NodeView
from fleet.region.silence import Silence
from fleet.times import now_ms


def _begun() -> Silence:
    now = now_ms()
    return Silence.begun(now, now)


@dataclass(slots=True)
class Link:
    """One agent; `hello` is None until its first answer.

    `asked_at`: when this manager asked for it; None if an earlier one did. `heard`: when it answered last. `silence`:
    what there is to say of it while it is not `synced`. `waits`: calls under way, which end when it falls silent.
    `failures`, `failing`: of its own background tasks. `dropped`: not followed any more.
    """

    name: str
    node_class: str
    handle: Any
    asked_at: int | None = None
    hello: Hello | None = None
    synced: bool = False
    heard: int = field(default_factory=now_ms)
    synced_since: int | None = None
    silence: Silence = field(default_factory=_begun)
    drain: Drain | None = None
    warnings: tuple[str, ...] = ()
    builds: frozenset[str] = frozenset()
    preparing: frozenset[str] = frozenset()
    failures: Mapping[str, int] = field(default_factory=dict[str, int])
    failing: tuple[str, ...] = ()
    releasing: bool = False
    dropped: bool = False
    waits: set[asyncio.Timeout] = field(default_factory=set[asyncio.Timeout])

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
            None if self.synced else self.silence.alive,
            self.drain is not None,
            node_class=self.node_class,
            overcommit=share.overcommit,
            ports=share.ports,
            tls_ports=share.tls_ports,
            takes=share.takes,
            builds=self.builds,
            preparing=self.preparing,
            synced_since=self.synced_since if self.synced else None,
        )

    def heard_now(self, told: Any) -> None:
        """A hello or page came; what both of them tell is kept."""
        self.heard = now_ms()
        self.warnings = told.warnings
        self.failures = getattr(told, "failures", {})
        self.failing = tuple(getattr(told, "failing", ()))

    def end_waits(self) -> None:
        """Whoever waits for an answer of this agent has waited enough."""
        for wait in self.waits:
            if not wait.expired():
                wait.reschedule(asyncio.get_running_loop().time())
