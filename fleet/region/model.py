"""What the region's decisions are made of: the observed runs and nodes, and the actions a plan may hold.

The desired side is the `Server` row itself (fleet.store.tables).
"""

from dataclasses import dataclass, field
from math import inf

from fleet.node.runtime import RunKey
from fleet.region.placement import ANY_PORTS, Takes


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node. `synced`: its whole list of runs is known now, since `synced_since`; else `unsynced_since` tells since
    when not.

    `lost`: its machine is dead, or counts as dead. `overcommit`, `takes`, `builds`, `preparing`: see `placement.Room`.
    """

    node_id: str
    host: str
    memory_mb: int
    cores: float
    synced: bool
    unsynced_since: int | None = None
    draining: bool = False
    lost: bool = False
    node_class: str = "shared"
    overcommit: float = inf
    ports: int = ANY_PORTS
    tls_ports: int = ANY_PORTS
    takes: Takes = "all"
    builds: frozenset[str] = frozenset()
    preparing: frozenset[str] = frozenset()
    synced_since: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers that a plan needs, in milliseconds where they are times.

    `watching_since`: when this manager began to look, or could look and act again (`attention.py`); a node that it has
    not seen yet may only be late.
    """

    ready_deadline_ms: int
    queue_deadline_ms: int
    node_lost_ms: int
    node_unseen_ms: int
    backoff_first_ms: int
    backoff_max_ms: int
    max_crashes: int
    crash_window_ms: int
    watching_since: int
    prepare_deadline_ms: int = 1_800_000
    create_deadline_ms: int = 180_000


@dataclass(frozen=True, slots=True)
class Place:
    """Find a node and launch there."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class Launch:
    """Tell the node (again) to launch the present generation. The node does it once."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class StopRun:
    """End a container: SIGTERM, grace, SIGKILL."""

    key: RunKey
    node_id: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The end of this run is recorded (or of no interest): the node may remove what is left of it."""

    key: RunKey
    node_id: str


@dataclass(frozen=True, slots=True)
class Advance:
    """A launching server reached a further step, `running` among them."""

    instance_id: str
    step: str
    at: int


@dataclass(frozen=True, slots=True)
class End:
    """The server is stopped, with the reason. `gone`: nothing of it runs any more."""

    instance_id: str
    at: int
    stop_reason: str
    shutdown_reason: str
    detail: str = ""
    exit_code: int | None = None
    gone: bool = True


@dataclass(frozen=True, slots=True)
class Requeue:
    """Another attempt as a new generation, not before `retry_at`. `at`: when the last one ended, which may be long ago;
    it waits for a node from `queued_at` on."""

    instance_id: str
    at: int
    reason: str
    retry_at: int
    detail: str = ""
    exit_code: int | None = None
    crashes: list[int] = field(default_factory=list[int])
    queued_at: int = 0


@dataclass(frozen=True, slots=True)
class Finish:
    """A stopped server's container is gone."""

    instance_id: str
    at: int
    exit_code: int | None


Action = Place | Launch | StopRun | Forget | Advance | End | Requeue | Finish
