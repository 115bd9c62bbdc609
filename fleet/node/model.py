"""What a node tells its region: runs and their states, in plain values that cross processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Literal

from fleet.node.runtime import Port, RunKey


class RunState(StrEnum):
    """A run's states in the order of life."""

    PREPARING = "preparing"
    CREATING = "creating"
    BOOTING = "booting"
    RUNNING = "running"
    EXITED = "exited"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in (RunState.EXITED, RunState.FAILED)


@dataclass(frozen=True, slots=True)
class RunView:
    """One run on one node. `at`: when it reached `state` (ms). `exit_code` to `message` are set once it has ended;
    `message` may also say what a booting run waits for. Not `healthy`: it runs, but its declared ports have closed.
    `silent`: why its health beat counts as missed. `disk_full`: it has written all that it may.
    `stop_asked`: the game wants to be stopped, with its reason."""

    key: RunKey
    node_id: str
    state: RunState
    at: int
    ports: tuple[Port, ...] = ()
    memory_mb: int = 0
    cores: float = 0.0
    exit_code: int | None = None
    oom: bool = False
    reason: str | None = None
    message: str = ""
    healthy: bool = True
    frozen: bool = False
    silent: str = ""
    stop_asked: str | None = None
    disk_full: bool = False

    @property
    def well(self) -> bool:
        return self.healthy and not self.silent


@dataclass(frozen=True, slots=True)
class NodeShare:
    """What a node gives to its region. Host ports are [port_first, port_last). A node on a machine of its own
    puts what it has in the place of the fields named in `auto`. `takes`: all, shared or dedicated sizes;
    `overcommit`: how many times over its cores are promised to shared sizes. The last two times `tls_ports` ports are
    for games whose TLS the node ends: first those that players come to, then as many on the loopback, one for each."""

    memory_mb: int
    cores: float
    port_first: int
    port_last: int
    bind_host: str
    public_host: str
    node_class: str = "shared"
    takes: Literal["all", "shared", "dedicated"] = "all"
    overcommit: float = inf
    auto: tuple[str, ...] = ()
    tls_ports: int = 0

    @property
    def ports(self) -> int:
        """How many ordinary ports there are."""
        return self.port_last - self.port_first - 2 * self.tls_ports


@dataclass(frozen=True, slots=True)
class Drain:
    """Nothing more is placed on the node. `surplus`: it is one too many; `operator`: somebody wishes so; `notice`: its
    machine will be taken away, at `until` (ms) if that is known."""

    cause: Literal["surplus", "operator", "notice"]
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Hello:
    """A node's whole truth at one moment; events after `seq` continue it while `boot_id` stands.

    `ray_node`: Ray's id of the machine. `builds`: those made ready here in this life of the agent. `failures`: of the
    agent's background tasks, by task, since its process began; `failing`: those that fail without end.
    """

    boot_id: str
    seq: int
    node_id: str
    host: str
    share: NodeShare
    runtime: str
    runs: tuple[RunView, ...]
    ray_node: str = ""
    builds: frozenset[str] = frozenset()
    drain: Drain | None = None
    warnings: tuple[str, ...] = ()
    failures: Mapping[str, int] = field(default_factory=dict[str, int])
    failing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """Events in order; `seq` is the last one's number. The rest as in `Hello`."""

    seq: int
    events: tuple[RunView, ...]
    drain: Drain | None = None
    warnings: tuple[str, ...] = ()
    failures: Mapping[str, int] = field(default_factory=dict[str, int])
    failing: tuple[str, ...] = ()
