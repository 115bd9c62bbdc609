"""What server calls take and give, with the names and bounds of the API page."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from fleet.node.runtime import LogLine
from fleet.projects.model import PortConfig
from fleet.servers.limits import MAX_TTL_S, MIN_TTL_S
from fleet.servers.model import StartRequest
from fleet.store.tables import Server, ServerEvent
from fleet.times import iso
from serve_app.v3.common import NUMBER, Body, Flag

Protocol = Literal["udp", "tcp"]
Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Ttl = Annotated[int, Field(ge=MIN_TTL_S, le=MAX_TTL_S, description="Seconds until the server is stopped"), NUMBER]
Version = Annotated[int, Field(ge=1, le=2**31 - 1, description="Pins one version; else the newest ready one"), NUMBER]


class PortIn(Body):
    name: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
    internal_port: Annotated[int, Field(ge=1, le=65535), NUMBER]
    protocol: Protocol
    tls_enabled: Flag = False

    def config(self) -> PortConfig:
        return {
            "name": self.name,
            "internal_port": self.internal_port,
            "protocol": self.protocol,
            "tls_enabled": self.tls_enabled,
        }


class StartIn(Body):
    """`name` and `region` are needed, the rest has defaults."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "my-match", "region": "us-east", "version_tag": "default"}]}
    )
    name: Text
    region: Text = Field(description="A region id, e.g. `us-east`")
    startup_args: str | None = Field(default=None, description="Command line of the game")
    compute_size: Text = Field(default="small", description="`micro` … `xlarge`, `dedicated-…`, `persistent-…`")
    version_tag: Text = Field(default="default", description="Name of the build")
    version: Version | None = None
    ttl: Ttl | None = None
    auto_restart: Flag = Field(default=False, description="Start again after a failure")
    custom_data: dict[str, Any] | None = Field(default=None, description="Seen by the game and in this API")
    match_id: Annotated[str, StringConstraints(max_length=256)] | None = None
    environment_variables: dict[str, str] | None = Field(default=None, description="Never returned")
    port_configs: list[PortIn] | None = Field(default=None, description="Instead of the project's ports")

    def request(self) -> StartRequest:
        return StartRequest(
            name=self.name,
            region=self.region,
            compute_size=self.compute_size,
            version_tag=self.version_tag,
            version=self.version,
            startup_args=self.startup_args,
            ttl=self.ttl,
            auto_restart=self.auto_restart,
            custom_data=self.custom_data,
            match_id=self.match_id,
            environment=self.environment_variables or {},
            port_configs=None if self.port_configs is None else [port.config() for port in self.port_configs],
        )


class ClaimIn(Body):
    """A warm server of a pool; nothing is started."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"region": "us-east", "compute_size": "small"}]})
    region: Text = Field(description="A region id, e.g. `us-east`")
    compute_size: Text = "small"
    name: Text = "claimed"
    version_tag: Text = Field(default="default", description="Name of the build")
    version: Version | None = None
    ttl: Ttl | None = None
    auto_restart: Flag = Field(default=False, description="Start again after a failure")
    custom_data: dict[str, Any] | None = Field(default=None, description="Seen by the game and in this API")
    match_id: Annotated[str, StringConstraints(max_length=256)] | None = None

    def request(self) -> StartRequest:
        return StartRequest(**self.model_dump())


class RestartIn(Body):
    """What to change; left out means: as it is."""

    name: Text | None = None
    startup_args: str | None = None
    version_tag: Text | None = None
    version: Version | None = None
    ttl: Ttl | None = None
    auto_restart: Flag | None = None
    custom_data: dict[str, Any] | None = None
    match_id: Annotated[str, StringConstraints(max_length=256)] | None = None
    environment_variables: dict[str, str] | None = None
    port_configs: list[PortIn] | None = None

    # Null empties these; for the others null means the same as leaving them out.
    _NULLABLE = frozenset({"startup_args", "ttl", "custom_data", "match_id"})

    def given(self) -> dict[str, Any]:
        """The fields that were sent, under the names of the server's columns."""
        values = {
            name: getattr(self, name)
            for name in self.model_fields_set
            if name in self._NULLABLE or getattr(self, name) is not None
        }
        if "environment_variables" in values:
            values["environment"] = values.pop("environment_variables")
        if self.port_configs is not None:
            values["port_configs"] = [port.config() for port in self.port_configs]
        return values


class UpdateIn(Body):
    custom_data: dict[str, Any] | None = Field(default=None, description="Replaces what the server has")


class NetworkPort(BaseModel):
    """Players connect to `host:external_port`."""

    name: str
    internal_port: int
    external_port: int
    protocol: Protocol
    host: str
    tls_enabled: bool


class ServerOut(BaseModel):
    instance_id: str
    name: str
    status: Literal["launching", "running", "stopped"]
    network_ports: list[NetworkPort]
    startup_args: str | None
    service_type: Literal["match_based", "persistent_world"]
    compute_size: str
    region: str
    version_tag: str
    version: int | None
    started_at: str | None
    stopped_at: str | None
    auto_restart: bool
    custom_data: dict[str, Any] | None
    ttl: int | None
    is_pool_server: bool
    pool_claimed_at: str | None
    start_kind: Literal["hot", "cold"] | None = Field(description="How it was started; null: an idle pool server")
    match_id: str | None
    created_at: str
    updated_at: str


class ServerListOut(BaseModel):
    total: int
    servers: list[ServerOut]
    limit: int
    offset: int
    has_more: bool


class StoppedOut(BaseModel):
    status: Literal["Server stopped successfully"]


class EventOut(BaseModel):
    at: str
    type: str
    generation: int = Field(description="The run: 1, and one more after each restart")
    data: dict[str, Any] | None


class EventListOut(BaseModel):
    instance_id: str
    events: list[EventOut]
    total: int
    limit: int
    offset: int
    has_more: bool


class LogOut(BaseModel):
    timestamp: str
    message: str
    level: Literal["info", "error"] = Field(description="`error`: written to stderr")
    instance: str
    region: str


class LogListOut(BaseModel):
    logs: list[LogOut]
    instance_id: str
    machine_id: str | None
    next_token: str | None = Field(description="Send it back as start_time to go on")


Points = Annotated[
    list[tuple[int, float]], Field(description="`[unix seconds, mean over the step]`, oldest first; gaps are left out")
]


class UsageSeriesOut(BaseModel):
    cpu_percent: Points = Field(description="100 is one CPU, used fully")
    memory_mb: Points
    network_rx_bytes_per_s: Points = Field(description="Empty where games share the machine's network")
    network_tx_bytes_per_s: Points
    connections: Points = Field(description="Established TCP connections and open UDP sockets")


class PlayersOut(BaseModel):
    count: int
    capacity: int | None
    at: str = Field(description="When the game said so")


class ServerMetricsOut(BaseModel):
    """What the server's present run used. Series are kept for a day, and for an hour after the run's end."""

    instance_id: str
    period: Literal["5m", "15m", "1h", "6h", "24h"]
    step: str = Field(description="As asked, or the finest that is kept for such a period: 15s for 1h, 60s for 6h")
    series: UsageSeriesOut
    players: PlayersOut | None = Field(default=None, description="As the game said last (docs/game-contract.md)")


def port_view(port: dict[str, Any]) -> dict[str, Any]:
    return {name: port[name] for name in NetworkPort.model_fields}


def players_view(said: dict[str, int | None] | None) -> dict[str, Any] | None:
    return None if said is None else {**said, "at": iso(said["at"])}


def server_view(row: Server) -> dict[str, Any]:
    """The Server object: every field always there. The environment stays inside."""
    stopped = row.status == "stopped"
    return {
        "instance_id": row.instance_id,
        "name": row.name,
        "status": row.status,
        "network_ports": [] if stopped else [port_view(port) for port in row.network_ports or []],
        "startup_args": row.startup_args,
        "service_type": "persistent_world" if row.auto_restart else "match_based",
        "compute_size": row.compute_size,
        "region": row.region,
        "version_tag": row.version_tag,
        "version": row.version,
        "started_at": iso(row.started_at),
        "stopped_at": iso(row.stopped_at),
        "auto_restart": row.auto_restart,
        "custom_data": row.custom_data,
        "ttl": row.ttl,
        "is_pool_server": row.is_pool_server,
        "pool_claimed_at": iso(row.pool_claimed_at),
        "start_kind": row.start_kind,
        "match_id": row.match_id,
        "created_at": iso(row.created_at),
        "updated_at": iso(row.updated_at),
    }


def event_view(row: ServerEvent) -> dict[str, Any]:
    return {"at": iso(row.at), "type": row.type, "generation": row.generation, "data": row.data}


def log_view(line: LogLine, server: Server) -> dict[str, Any]:
    return {
        "timestamp": line.at,
        "message": line.message,
        "level": "error" if line.stream == "stderr" else "info",
        "instance": server.instance_id,
        "region": server.region,
    }
