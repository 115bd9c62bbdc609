"""The Runtime protocol: everything a node can do to a game server's container.

Two implementations pass one contract suite (`tests/contract/test_runtime.py`): `docker`, the real thing, and
`process`, an embedded fallback without isolation. A runtime keeps no state of its own that matters: labels on
the containers are the truth, and `list()` after any crash tells all of it.
"""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fleet.node.series import Usage
from fleet.settings import ImageLimits

if TYPE_CHECKING:
    from fleet.node.words import Heard, Word

Proto = Literal["udp", "tcp"]


@dataclass(frozen=True, slots=True)
class Port:
    """A published port: `internal` inside the container, `external` on the host, where players come.

    `tls`: players come by TLS, which the node ends (`tls_proxy.py`); the game itself is published at `plain`, on the
    host's loopback only.
    """

    name: str
    internal: int
    external: int
    protocol: Proto
    tls: bool = False
    plain: int = 0

    @property
    def published(self) -> int:
        """The host port that leads straight to the game."""
        return self.plain if self.tls else self.external

    def numbers(self) -> list[Any]:
        """For labels and files: `Port(name, *numbers)` is the port again."""
        found: list[Any] = [self.internal, self.external, self.protocol]
        return [*found, self.tls, self.plain] if self.tls else found


@dataclass(frozen=True, slots=True)
class RunKey:
    """Identity of one run of one server. A restart is a new generation, so a new container."""

    instance_id: str
    generation: int

    def __str__(self) -> str:
        return f"{self.instance_id}.{self.generation}"


@dataclass(frozen=True, slots=True)
class BuildRef:
    """What to run.

    `kind="zip"`: the archive `content_hash` unpacked; the game's folder is `root` inside it ("" = top) and the
    executable `executable`, relative to `root`. `kind="image"`: `image` with optional `executable` override.
    """

    build_id: str
    kind: Literal["zip", "image"]
    content_hash: str | None = None
    root: str = ""
    executable: str | None = None
    image: str | None = None
    credentials: dict[str, str] | None = field(default=None, repr=False)
    writable: bool = False
    unpacked_bytes: int = 0
    packed_bytes: int = 0
    ready_by: str | None = None
    project_id: str = ""


@dataclass(frozen=True, slots=True)
class GameSecrets:
    """What a project's games are told and nobody is shown, by name: as variables, or as files."""

    variables: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    files: dict[str, str] = field(default_factory=dict[str, str], repr=False)


NO_SECRETS = GameSecrets()


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One run. `config` becomes playflow.json, present before the process starts."""

    key: RunKey
    region: str
    project_id: str
    build: BuildRef
    memory_mb: int
    cpus: float
    dedicated: bool
    ports: tuple[Port, ...]
    bind_host: str
    startup_args: str | None
    environment: dict[str, str] = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    labels: dict[str, str]
    disk_mb: int = 1024
    pids: int = 512
    tmpfs_mb: int = 64
    log_mb: int = 10
    writable_extra_mb: int = 64
    network: str | None = None  # the warm one (see `Networks`) that this run joins; its ports are the spec's
    secrets: GameSecrets = NO_SECRETS


@dataclass(frozen=True, slots=True)
class Observed:
    """One container of ours as the engine sees it. `exit_code` is set once it has ended."""

    key: RunKey
    running: bool
    ports: tuple[Port, ...]
    labels: dict[str, str]
    started_at: int | None = None
    ended_at: int | None = None
    exit_code: int | None = None
    oom: bool = False
    memory_mb: int = 0
    cpus: float = 0.0
    frozen: bool = False
    network: str | None = None


@dataclass(frozen=True, slots=True)
class Exited:
    """A container ended. `tail` holds its last log lines, unless it ended well (exit code 0)."""

    key: RunKey
    at: int
    exit_code: int
    oom: bool = False
    tail: str = ""


@dataclass(frozen=True, slots=True)
class LogLine:
    """`token` orders lines and resumes after this one; `at` is ISO 8601 with nanoseconds where known."""

    at: str
    message: str
    stream: Literal["stdout", "stderr"]
    token: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """`missing`: declared ports not open yet; `loopback`: open, but bound to the container's loopback only."""

    missing: tuple[Port, ...] = ()
    loopback: tuple[Port, ...] = ()

    @property
    def ready(self) -> bool:
        return not self.missing and not self.loopback


class PortTaken(Exception):
    """A host port of the spec is in use by someone else; nothing runs. Launch again with another."""

    def __init__(self, ports: tuple[Port, ...], message: str) -> None:
        super().__init__(message)
        self.ports = ports


class NetworkLost(Exception):
    """The warm network of the spec is gone; nothing runs. Launch again without it, on other ports."""


class LaunchFailed(Exception):
    """The run cannot start and trying the same again is useless. `reason` is a shutdown_reason of the API."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EngineUnavailable(Exception):
    """The engine does not answer now (restarting, overloaded); trying again later is right."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network made ahead, with its ports published. `taken`: it was meant for a run that may exist."""

    name: str
    bind_host: str
    ports: tuple[Port, ...]
    taken: bool


class Networks(Protocol):
    """Networks made ahead of need, each for one run: most of a container's start is its network's."""

    async def make(self, name: str, bind_host: str, ports: tuple[Port, ...]) -> None:
        """PortTaken, EngineUnavailable: then nothing of it is left."""
        ...

    def take(self, name: str) -> None:
        """It is a run's from now on and outlives us. Only `drop` ends it."""
        ...

    async def drop(self, name: str) -> None:
        """End it; its ports are free then. No error if it is gone."""
        ...

    async def alive(self) -> None:
        """Say at least every minute that somebody looks after networks; those that are not taken end otherwise."""
        ...

    async def list(self) -> list[Network]: ...


class Runtime(Protocol):
    """All methods are coroutines safe to call concurrently for different runs, and idempotent for the same."""

    name: str

    @property
    def networks(self) -> Networks | None:
        """None where a network costs nothing."""
        ...

    def warnings(self) -> tuple[str, ...]:
        """What operators should know of it now: isolation that is not in force."""
        ...

    async def start(self) -> None:
        """Connect, and make what every launch needs (base image). Raises EngineUnavailable."""
        ...

    async def close(self) -> None: ...

    async def prepare(self, build: BuildRef) -> None:
        """Have the build on this node (unpacked or pulled). LaunchFailed says why not."""
        ...

    async def launch(self, spec: LaunchSpec) -> None:
        """Create and start; returns once the process runs. PortTaken, NetworkLost, LaunchFailed, EngineUnavailable.

        A container of the same key that already runs is success (a retried command has one effect).
        """
        ...

    async def readiness(self, spec_ports: tuple[Port, ...], key: RunKey) -> Readiness:
        """Which declared ports are open, seen from the kernel's tables, never by sending traffic."""
        ...

    def exits(self) -> AsyncIterator[Exited]:
        """Ends of runs as the engine reports them. Reconnects by itself; after a gap, `list()` tells what died."""
        ...

    async def stop(self, key: RunKey, grace_s: float) -> None:
        """SIGTERM, wait, SIGKILL. No error if it is gone. The end arrives through `exits()` too."""
        ...

    async def remove(self, key: RunKey) -> None:
        """Forget an ended run and its files. No error if it is gone."""
        ...

    async def freeze(self, key: RunKey) -> None:
        """Let every process of the run stand still (it uses no CPU, its ports stay). NotFound unless it runs."""
        ...

    async def thaw(self, key: RunKey) -> None:
        """Let a frozen run go on, as if no time had passed. NotFound unless it runs. `stop` thaws by itself."""
        ...

    async def remove_orphans(self) -> int:
        """Remove what is left of runs of this fleet that the engine does not have any more: folders, files, containers
        that were never started; how many. Only what an earlier call has found too, so nothing that is being made."""
        ...

    async def usage(self, keys: Collection[RunKey]) -> dict[RunKey, Usage]:
        """What these runs use now; those that have ended are left out."""
        ...

    async def full_disks(self, keys: Collection[RunKey]) -> frozenset[RunKey]:
        """Those of these runs whose own disk is full (as far as they have one)."""
        ...

    def hear(self, heard: "Heard") -> None:
        """`heard(key, word)` is called for whatever a game says of itself (`words.py`)."""
        ...

    def say(self, key: RunKey, word: "Word") -> None:
        """Take the word as the game's own, and keep it for the next agent."""
        ...

    async def serve(self, key: RunKey) -> None:
        """Answer what the running game asks (`game_api.py`), as `launch` began to. For the next agent."""
        ...

    async def rewrite_config(self, key: RunKey, config: dict[str, Any]) -> None:
        """Replace the running game's playflow.json atomically, and tell the game if it waits for that."""
        ...

    async def logs(self, key: RunKey, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        """Up to `limit` lines in order: those after token `after`, else from `since_ms`, else from the start."""
        ...

    def follow(self, key: RunKey, after: str | None) -> AsyncIterator[LogLine]:
        """Lines after token `after` as they come, ending when the run ends."""
        ...

    # Last, since inside the class its name hides the built-in one.
    async def list(self) -> list[Observed]:
        """Every container of this fleet and region, running or ended and not yet removed."""
        ...


@dataclass(frozen=True, slots=True)
class RuntimePlace:
    """Where a runtime keeps things and whose containers it may touch. `walled`: they are walled off (`isolation.py`),
    except from the API's port and what is within `reach`. `no_progress_s`: after which a pull has failed.
    `min_free_percent`: of the disk, which servers may not be promised. `registries`: that may be private.
    `oci_runtime`: of games' containers, by its name in the engine; empty: its default.
    `notes`: what operators should know. `closed`: why no game may start here (those that run go on); else empty."""

    fleet_id: str
    region: str
    servers_dir: Path
    bundles: Path
    base_image: str = "auto"
    door_port: int = 7350
    api_ports: tuple[int, ...] = ()
    reach: tuple[str, ...] = ()
    walled: bool = False
    no_progress_s: float = 120.0
    min_free_percent: float = 10.0
    registries: tuple[str, ...] = ()
    image_limits: ImageLimits = field(default_factory=ImageLimits)
    oci_runtime: str = ""
    notes: tuple[str, ...] = ()
    closed: str = ""
