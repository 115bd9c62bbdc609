"""Every setting, its default and its meaning. Environment variables `FLEET_…` override them.

Nested fields are written with two underscores: `FLEET_UPLOAD__MAX_PACKED_MB=4096`.
Ray workers inherit the environment, so one process's settings are every process's settings.
"""

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

# What everybody is told who could take it for real.
SIMULATED = "SIMULATED: no game runs and no player can connect (FLEET_RUNTIME=simulated)"


class UploadLimits(BaseModel):
    """What a ZIP may be. Checked before a byte is unpacked."""

    max_packed_mb: int = 8192
    max_unpacked_mb: int = 32768
    max_ratio: float = Field(default=200.0, description="unpacked bytes / packed bytes, per file and in all")
    max_files: int = 100_000
    max_path_length: int = 512
    url_ttl_s: int = 300


class PipelineSettings(BaseModel):
    """How many builds are processed at the same time, each by a process on the head."""

    at_once: int = Field(default=4, ge=1, description="in all; a quarter for projects that have none under way")
    at_once_per_project: int = Field(default=2, ge=1)


class ServerLimits(BaseModel):
    """What a start request may ask for."""

    max_ports: int = 10
    max_custom_data_kb: int = 256
    max_environment: int = 64
    max_startup_args: int = 8192
    stop_grace_s: float = 10.0
    ready_deadline_s: float = 120.0
    queue_deadline_s: float = 600.0
    prepare_deadline_s: float = Field(
        default=1800.0, description="for a build's download that does not come on; nodes give up much sooner"
    )
    create_deadline_s: float = Field(default=180.0, description="for the engine to make and start a container")
    node_lost_s: float = Field(
        default=30.0, description="silence after which an agent is begun anew; after twice as long its node is lost"
    )
    node_unseen_s: float = Field(default=180.0, description="the same for a node not seen since the manager started")
    pids: int = 512
    tmpfs_mb: int = 64
    writable_extra_mb: int = 64


class RestartPolicy(BaseModel):
    """Crash policy of `auto_restart` servers: exponential back-off and a crash-loop limit."""

    backoff_first_s: float = 1.0
    backoff_max_s: float = 60.0
    max_crashes: int = 5
    window_s: float = 300.0


class RateLimits(BaseModel):
    """How often a key may ask, in any second. 0: as often as it likes. A project's plan may say otherwise."""

    reads_per_s: int = Field(default=100, ge=0)
    writes_per_s: int = Field(default=10, ge=0)
    lobby_reads_per_s: int = Field(default=5000, ge=0, description="of all players of a key together, on lobbies")
    lobby_writes_per_s: int = Field(default=1000, ge=0)
    lobby_writes_per_address_per_s: int = Field(default=100, ge=0, description="of one address, on lobbies of one key")
    unknown_keys_per_minute: int = Field(default=60, ge=0, description="that one address may try")
    connections: int = Field(default=4096, ge=16, description="that the proxy holds at once")
    connections_per_address: int = Field(default=512, ge=0, description="of these; 127.0.0.1 is not counted")


class ShareLimits(BaseModel):
    """How much a project may have at once, over all replicas. A project's plan may say otherwise (`shares`)."""

    log_streams: int = Field(default=100, ge=1, description="open `follow=true` streams")
    log_streams_per_key: int = Field(default=50, ge=1)
    log_reads: int = Field(default=16, ge=1, description="pages of logs, and usage, that are being read")
    event_streams: int = Field(default=50, ge=1, description="open `/events` streams")
    event_streams_per_key: int = Field(default=25, ge=1)
    player_streams: int = Field(default=1500, ge=1, description="of its players, on their lobbies")
    waits: int = Field(default=250, ge=1, description="requests that wait for a status (`wait_for`)")
    uploads: int = Field(default=8, ge=1, description="ZIPs on their way here")
    exports: int = Field(default=2, ge=1, description="downloads of its export")
    builds: int = Field(default=100, ge=1, description="builds that are uploaded, processed or wait for that")


class PoolSettings(BaseModel):
    refill_at_once: int = Field(default=8, description="pool servers of a region that boot at the same time")


class SimulatedSettings(BaseModel):
    """How games of the `simulated` runtime behave; nothing runs there. A server's environment may say otherwise."""

    create_s: float = Field(default=0.3, ge=0, description="what creating and starting takes, four at once per node")
    boot_s: float = Field(default=2.0, ge=0, description="median time from the start until the ports are open")
    boot_spread: float = Field(default=0.2, ge=0, description="sigma of the boot time's logarithm")
    stop_s: float = Field(default=0.1, ge=0, description="what a polite end takes")
    crash_share: float = Field(default=0.0, ge=0, le=1, description="share of the runs that crash")
    crash_after_s: float = Field(default=300.0, gt=0, description="how long those live in the mean")
    seed: int = 0


class NodeSettings(BaseModel):
    """What a node does for the games that run there."""

    warm_networks: int = Field(default=3, ge=0, description="container networks made ahead of launches; 0: none")
    walls: bool = Field(default=True, description="containers reach neither this machine nor private networks")
    reach: list[str] = Field(default_factory=list, description="but these: address, network/bits or address:port")
    door_port: int = Field(default=7350, ge=0, le=65000, description="where games in containers reach their node")
    health_every_s: float = Field(default=3.0, ge=0, description="how often a running game is looked at; 0: never")
    usage_every_s: float = Field(default=5.0, ge=0, description="how often what games use is measured; 0: never")
    reconcile_every_s: float = Field(default=15.0, ge=0, description="how often runs are compared with the engine")
    no_progress_s: float = Field(default=120.0, gt=0, description="a pull that stands still so long has failed")


class TlsSettings(BaseModel):
    """The certificate for players and API clients. Without one, a development CA in home signs it."""

    certificate: Path | None = Field(default=None, description="PEM: certificate and chain; a new file is taken up")
    key: Path | None = Field(default=None, description="PEM: its private key")
    api_port: int = Field(default=0, ge=0, le=65535, description="the API speaks TLS there, and plain on loopback only")


class Scaling(BaseModel):
    """How slowly a region gives nodes back. It grows at once."""

    ahead: bool = Field(default=True, description="ask for nodes before they are needed; false: only show the forecast")
    surplus_s: float = Field(default=600.0, description="a node is drained after being one too many for so long")
    unneeded_s: float = Field(default=30.0, description="an unanswered ask for a node is taken back after so long")


class EventSettings(BaseModel):
    """What `/api/v3/events` gives."""

    max_stream_s: float = Field(default=3600.0, gt=0, description="then a stream ends, and its reader comes again")
    queue: int = Field(default=2000, ge=1000, description="events that a reader may be behind before it is let go")


class WebhookSettings(BaseModel):
    """How events are sent to the projects' receivers."""

    allow_http: bool = Field(default=False, description="also http:// URLs")
    allowed_networks: list[str] = Field(default=[], description="that may be sent to though they are not public")
    timeout_s: float = Field(default=10.0, gt=0, description="for one attempt")
    retry_first_s: float = Field(default=5.0, gt=0, description="before the second attempt; then three times as long")
    at_once: int = Field(default=4, ge=1, description="sends under way for one webhook")
    at_once_per_project: int = Field(default=16, ge=1, description="sends under way for all webhooks of a project")
    at_once_in_all: int = Field(default=64, ge=2, description="in all; a quarter for projects that have none under way")
    max_per_project: int = Field(default=20, ge=0)

    @property
    def networks(self) -> list[IPv4Network | IPv6Network]:
        return [ip_network(text) for text in self.allowed_networks]


class LobbySettings(BaseModel):
    """The keepers of lobbies. All lobbies of a project are in one shard."""

    shards: int = Field(default=2, ge=1, le=64, description="keepers; each is made when it is first needed")
    host_grace_s: float = Field(default=15.0, ge=0, description="a host whose stream broke keeps its role so long")
    start_s: float = Field(default=60.0, gt=0, description="a region that does not answer is asked so long")
    requeue_s: float = Field(default=20.0, ge=0, description="what a lobby handed back to its queue has left at least")
    hold_s: float = Field(default=3.0, ge=0, description="no matches so long when there was no server; doubles")
    stats_s: float = Field(default=10.0, gt=0, description="how often who waits in a queue hears of it")


class StripeSettings(BaseModel):
    """Usage for Stripe's billing meters. Off unless both files are named."""

    key_file: Path | None = Field(default=None, description="a restricted key that may write meter events")
    customers: Path | None = Field(default=None, description="YAML: project id to Stripe customer id")
    event_name: str = Field(default="fleet_usage", description="of a meter that sums millionths of the currency")
    url: str = "https://api.stripe.com"


class LogLimits(BaseModel):
    max_mb: int = Field(default=10, description="kept per server run, in the engine and in the archive")
    retention_days: float = 14.0


class RetentionSettings(BaseModel):
    """For how many days the database keeps what is over; 0: for ever. Usage, audit log and builds are always kept."""

    servers_days: float = Field(default=30, ge=0, description="ended servers and their events, since they ended")
    events_days: float = Field(default=30, ge=0, description="events of builds, pools, lobbies, budgets, projects")
    matches_days: float = Field(default=30, ge=0, description="matches that are over")
    match_starts_days: float = Field(default=30, ge=0, description="which server a match had (unique_match)")
    build_logs_days: float = Field(default=30, ge=0, description="of builds that failed or were deleted, since then")
    deliveries_days: float = Field(default=3, ge=0, description="webhook messages that were delivered")
    dead_deliveries_days: float = Field(default=30, ge=0, description="webhook messages that were given up")
    ratings_days: float = Field(default=730, ge=0, description="of players who have not played since")
    usage_hours_days: float = Field(default=100, ge=0, description="usage by the hour; what is older, by the day")
    every_s: float = Field(default=3600, gt=0, description="how often what is too old is looked for")
    rows_at_once: int = Field(default=500, ge=1, le=10_000, description="deleted in one transaction")
    pause_s: float = Field(default=0.1, ge=0, description="between two such transactions, at least")


class BundleLimits(BaseModel):
    """How much of a node's disk unpacked builds may take. Those that run are never removed."""

    max_gb: float = 100.0
    min_free_percent: float = Field(default=10.0, description="of the disk, to be kept free")
    max_unused_days: float = 14.0


class ImageLimits(BaseModel):
    """How much of a node's disk pulled images may take. Those that run are never removed."""

    max_gb: float = Field(default=100.0, gt=0, description="of all pulled images together")
    min_free_percent: float = Field(default=5.0, ge=0, description="of the engine's disk; a pull ends that takes more")
    max_unused_days: float = Field(default=14.0, gt=0)
    max_image_gb: float = Field(default=32.0, gt=0, description="one image, unpacked")


class FleetSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="FLEET_", env_nested_delimiter="__", extra="ignore")

    home: Path = Field(default=Path(".fleet"), description="state of this fleet: database, artefacts, logs")
    host: str = Field(default="127.0.0.1", description="address that the API binds")
    port: int = Field(default=8000, description="port that the API binds")
    public_url: str | None = Field(default=None, description="base URL in upload links, if not host:port")
    replicas: int = 2
    database_url: str | None = Field(default=None, description="default: SQLite in home")
    artefacts_url: str | None = Field(default=None, description="s3://bucket/folder?endpoint=…; default: in home")
    runtime: Literal["auto", "docker", "process", "simulated"] = "auto"
    base_image: str = Field(default="auto", description="'auto' makes one, else an image reference")
    docker_runtime: str = Field(
        default="", description="the engine's runtime for games, by its name there, such as runsc; default: its own"
    )
    public_host: str | None = Field(default=None, description="address for players, of a node of several machines")
    bind_host: str | None = Field(default=None, description="address on which such a node publishes ports")
    registries: list[str] = Field(
        default=[], description="that may have private addresses: host, host:port, or http://host:port without TLS"
    )
    local_images: list[str] = Field(
        default=[], description="patterns (game:*) of images in the nodes' engines that every project may run"
    )
    head_address: str = Field(
        default="127.0.0.1",
        description="127.0.0.1: Ray listens on this machine alone; else where nodes reach its head; 'auto': found out",
    )
    head_port: int = Field(default=0, description="its port; 0: a free one")
    ray_token: Path | None = Field(default=None, description="file with the cluster's token; default: made in home")
    autoscaling_config: Path | None = Field(default=None, description="of `ray up`: the head starts and ends nodes")
    node_config: Path | None = Field(default=None, description="default: configs/local.yaml")
    prices_config: Path | None = Field(default=None, description="default: configs/prices.yaml; read again on change")
    plans_config: Path | None = Field(default=None, description="default: configs/plans.yaml; read again on change")
    serve_config: Path | None = Field(default=None, description="default: configs/serve.yaml")
    hung_s: float = Field(
        default=25.0, ge=0, description="an actor whose loop stands still for so long is ended, begun anew; 0: never"
    )
    metrics_token: str | None = Field(default=None, description="/metrics wants it as bearer token, from everyone")
    metrics_public: bool = Field(default=False, description="/metrics without token from anywhere, not only loopback")
    storage_hook_secret: str | None = Field(default=None, description="an object store's hook sends it; none: no hook")
    upload: UploadLimits = UploadLimits()
    servers: ServerLimits = ServerLimits()
    restarts: RestartPolicy = RestartPolicy()
    node: NodeSettings = NodeSettings()
    tls: TlsSettings = TlsSettings()
    logs: LogLimits = LogLimits()
    retention: RetentionSettings = RetentionSettings()
    scaling: Scaling = Scaling()
    bundle_limits: BundleLimits = BundleLimits()
    image_limits: ImageLimits = ImageLimits()
    pools: PoolSettings = PoolSettings()
    limits: RateLimits = RateLimits()
    shares: ShareLimits = ShareLimits()
    pipeline: PipelineSettings = PipelineSettings()
    events: EventSettings = EventSettings()
    webhooks: WebhookSettings = WebhookSettings()
    lobbies: LobbySettings = LobbySettings()
    stripe: StripeSettings = StripeSettings()
    simulated: SimulatedSettings = SimulatedSettings()

    @property
    def fleet_id(self) -> str:
        """Short id of this fleet: labels containers, so that two fleets never touch each other's."""
        joined = self.home / "cluster-id"  # a node's home has the fleet's id beside its own
        return (joined if joined.exists() else self.home / "fleet-id").read_text().strip()

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite+aiosqlite:///{self.home.resolve()}/fleet.db"

    @property
    def base_url(self) -> str:
        own = f"https://{self.host}:{self.tls.api_port}" if self.tls.api_port else f"http://{self.host}:{self.port}"
        return self.public_url or own

    @property
    def artefacts(self) -> Path:
        """Uploads on their way; also the archives, unless `artefacts_url` has them elsewhere."""
        return self.home / "artefacts"

    @property
    def exports(self) -> Path:
        """What deleted projects had, for the operator."""
        return self.home / "exports"

    @property
    def bundles(self) -> Path:
        """Unpacked builds of this node, by content hash."""
        return self.home / "bundles"

    @property
    def servers_dir(self) -> Path:
        """One folder per running server: its playflow.json and, for `process`, its files."""
        return self.home / "servers"


@lru_cache(maxsize=1)
def get_settings() -> FleetSettings:
    settings = FleetSettings()
    return settings.model_copy(update={"home": settings.home.resolve()})
