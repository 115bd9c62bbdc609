"""Tables. A table has one writer (docs/store.md); ids are UUID strings, times milliseconds UTC."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, ColumnElement, Index, Integer, LargeBinary, literal_column, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement
from sqlmodel import Field, SQLModel, col

# SQLite counts by itself only in a column of exactly this type, which has 64 bits there.
_Counting: Any = BigInteger().with_variant(Integer, "sqlite")


class _Transaction(FunctionElement[int]):
    """The number of the transaction that inserts a row, where rows may appear in another order than their ids."""

    inherit_cache = True


@compiles(_Transaction)
def _no_transaction(_element: Any, _compiler: Any, **_: Any) -> str:
    return "NULL"


@compiles(_Transaction, "postgresql")
def _transaction(_element: Any, _compiler: Any, **_: Any) -> str:
    return "(pg_current_xact_id()::text::bigint)"


def _tx() -> Any:
    return Field(default=None, sa_column=Column(BigInteger, server_default=_Transaction(), nullable=True))


def time_column(**kwargs: Any) -> Any:
    return Field(sa_type=BigInteger, **kwargs)


def json_column(default: Any = None) -> Any:
    return Field(default=default, sa_column=Column(JSON(none_as_null=True), nullable=True))


def index_where(name: str, *columns: str, where: str) -> Index:
    """An index of some rows only. A query uses it if it has the same condition, written out, not as a parameter."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


# SQLite would give the newest entry's number again once that is deleted, and whoever reads on from it miss an entry.
_NEVER_AGAIN = {"sqlite_autoincrement": True}


class Project(SQLModel, table=True):
    id: str = Field(primary_key=True)
    name: str
    plan: str = "pro"
    settings: dict[str, Any] | None = json_column()
    created_at: int = time_column()
    updated_at: int = time_column()
    suspended_at: int | None = time_column(default=None)  # its keys are refused from then on
    deleted_at: int | None = time_column(default=None)  # asked to go: its servers drain, then its rows do


class Secret(SQLModel, table=True):
    """What a project's games are told and nobody is ever shown. Written by API replicas; managers note the use."""

    project_id: str = Field(primary_key=True, foreign_key="project.id")
    name: str = Field(primary_key=True)
    given_as: str  # variable | file
    sealed: str
    size: int  # bytes of its value in clear
    created_at: int = time_column()
    updated_at: int = time_column()
    last_used_at: int | None = time_column(default=None)  # a launch had it, to the minute


class ApiKey(SQLModel, table=True):
    """A key is 256 random bits, so its SHA-256 can be looked up by index and never guessed."""

    hash: str = Field(primary_key=True)
    project_id: str = Field(foreign_key="project.id", index=True)
    kind: str  # server | client
    hint: str | None = None  # its last characters, so that people can tell keys apart
    created_at: int = time_column()
    expires_at: int | None = time_column(default=None)


class Build(SQLModel, table=True):
    """One uploaded version of a game. `version` counts per (project, name) from 1."""

    __table_args__ = (
        Index("build_version", "project_id", "name", "version", unique=True),
        Index("build_status", "status"),
        Index("build_age", "project_id", "status", "updated_at"),
    )
    build_id: str = Field(primary_key=True)
    project_id: str = Field(foreign_key="project.id")
    name: str
    version: int
    status: str  # uploading | processing | ready | failed | deleted
    build_type: str  # zip | docker_image
    executable_path: str | None = None
    image_url: str | None = None
    registry_credentials: str | None = None
    writable: bool = False
    ready_by: str | None = None  # "game": running when the game itself says so, not only by its open ports
    error: str | None = None
    content_hash: str | None = Field(default=None, index=True)
    bundle_root: str | None = None  # folder inside the bundle that the game sees as its own
    packed_bytes: int | None = Field(default=None, sa_type=BigInteger)
    unpacked_bytes: int | None = Field(default=None, sa_type=BigInteger)
    upload_expires_at: int | None = time_column(default=None)
    lease_until: int | None = time_column(default=None)  # a pipeline run owns the build until then
    created_at: int = time_column()
    updated_at: int | None = time_column(default=None)


class BuildLog(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True, sa_type=_Counting)
    build_id: str = Field(foreign_key="build.build_id", index=True)
    at: int = time_column()
    level: str
    message: str


class RegionEpoch(SQLModel, table=True):
    """Fence: only the manager that holds the newest epoch of a region may write its servers."""

    region: str = Field(primary_key=True)
    epoch: int = Field(sa_type=BigInteger)


class Server(SQLModel, table=True):
    """A game server. Written only by the RegionManager of its region."""

    __table_args__ = (
        # A page in order; with the last two, the count needs no row (fleet/servers/listing.py).
        Index("server_listing", "project_id", "status", "created_at", "is_pool_server", "pool_claimed_at"),
        # The live ones, however long the history is (`live`), and the history by its age (`ended`).
        index_where("server_live", "region", where="step != 'stopped'"),
        index_where("server_live_project", "project_id", where="step != 'stopped'"),
        index_where("server_ended", "project_id", "stopped_at", where="step = 'stopped'"),
        index_where("server_last_op", "project_id", "last_op", where="last_op IS NOT NULL"),
        index_where("server_claimed", "region", "pool_claimed_at", where="pool_claimed_at IS NOT NULL"),
    )
    instance_id: str = Field(primary_key=True)
    project_id: str = Field(foreign_key="project.id")
    region: str
    name: str
    status: str  # launching | running | stopped, as the API says
    step: str  # queued placed preparing creating booting running | stopping | stopped
    compute_size: str
    build_id: str
    version_tag: str
    version: int | None = None
    startup_args: str | None = None
    auto_restart: bool = False
    ttl: int | None = None
    custom_data: dict[str, Any] | None = json_column()
    match_id: str | None = None
    environment: str | None = json_column()  # sealed (`fleet.sealing.Variables`); of old rows a plain map
    port_configs: list[dict[str, Any]] | None = json_column()
    network_ports: list[dict[str, Any]] | None = json_column()
    start_kind: str | None = None  # hot | cold, for those that a caller asked for
    is_pool_server: bool = False
    pool_claimed_at: int | None = time_column(default=None)
    pool_spec: str | None = None  # what a pool entry was started as: only a claim of the same may have it
    # Where and which run: a restart raises the generation, and every container carries its own.
    node_id: str | None = None
    generation: int = 1
    last_op: str | None = None  # id of the newest command applied, so that a retried command is one effect
    # Why and when
    stop_reason: str | None = None
    shutdown_reason: str | None = None
    stop_detail: str | None = None
    exit_code: int | None = None
    crashes: list[int] | None = json_column()  # times of crashes within the crash-loop window
    created_at: int = time_column()
    updated_at: int = time_column()
    launched_at: int = time_column()  # of this generation
    step_at: int = time_column()  # when the present step began
    started_at: int | None = time_column(default=None)
    stopped_at: int | None = time_column(default=None)
    retry_at: int | None = time_column(default=None)  # next attempt of a crashed auto_restart server


def live() -> ColumnElement[bool]:
    """Condition: the server has not stopped. By an index over these alone."""
    return col(Server.step) != literal_column("'stopped'")


def ended() -> ColumnElement[bool]:
    """Condition: the server has stopped, and nothing will change it any more."""
    return col(Server.step) == literal_column("'stopped'")


class PoolMemory(SQLModel, table=True):
    """What a pool has learned (its policy's state), so that a new manager need not learn it again."""

    region: str = Field(primary_key=True)
    project_id: str = Field(primary_key=True, foreign_key="project.id")
    compute_size: str = Field(primary_key=True)
    build_name: str = Field(primary_key=True)
    state: dict[str, Any] | None = json_column()
    updated_at: int = time_column()


class PoolMinute(SQLModel, table=True):
    """The demand of one pool in one minute, and what it met. Replayed by `fleet simulate pools`."""

    __table_args__ = (Index("pool_minute_at", "at"),)
    region: str = Field(primary_key=True)
    project_id: str = Field(primary_key=True, foreign_key="project.id")
    compute_size: str = Field(primary_key=True)
    build_name: str = Field(primary_key=True)
    at: int = time_column(primary_key=True)  # the minute's beginning
    arrivals: int = 0
    hits: int = 0
    misses: int = 0
    boots: int = 0
    boot_failures: int = 0
    lead_ms: int | None = None  # estimate of the order-to-warm time then
    warm: int = 0
    booting: int = 0
    claimed: int = 0
    target: int = 0


class RegionDemand(SQLModel, table=True):
    """What a region's node forecast has learned."""

    region: str = Field(primary_key=True)
    state: dict[str, Any] | None = json_column()
    updated_at: int = time_column()


class ServerEvent(SQLModel, table=True):
    """The append-only journal: history, usage and the events endpoint are computed from it."""

    __table_args__ = (
        Index("server_event_server", "instance_id", "id"),
        Index("server_event_project", "project_id", "id"),
        _NEVER_AGAIN,
    )
    id: int | None = Field(default=None, primary_key=True, sa_type=_Counting)
    instance_id: str = Field(foreign_key="server.instance_id")
    project_id: str
    region: str
    generation: int
    at: int = time_column()
    type: str
    data: dict[str, Any] | None = json_column()
    tx: int | None = _tx()  # PostgreSQL: the order in which entries may be read without missing one


class ProjectEvent(SQLModel, table=True):
    """The append-only journal of what is not a server: builds, pools, lobbies, budgets, the project itself."""

    __table_args__ = (Index("project_event_project", "project_id", "id"), _NEVER_AGAIN)
    id: int | None = Field(default=None, primary_key=True, sa_type=_Counting)
    project_id: str
    kind: str  # build | pool | lobby | budget | project
    subject: str  # the thing's id within its kind
    type: str  # e.g. build.ready
    at: int = time_column()
    data: dict[str, Any] | None = json_column()
    tx: int | None = _tx()


class AdminEvent(SQLModel, table=True):
    """Who administered what: the audit log. Outlives the project it speaks of."""

    id: int | None = Field(default=None, primary_key=True, sa_type=_Counting)
    at: int = time_column()
    actor: str  # which admin key, by its hint, or "cli"
    action: str  # e.g. project.suspend
    project_id: str | None = Field(default=None, index=True)
    request_id: str | None = None
    data: dict[str, Any] | None = json_column()


class Idempotency(SQLModel, table=True):
    """A write that came with an Idempotency-Key, and what it was answered. No status: it is under way."""

    scope: str = Field(primary_key=True)  # the project, or "admin"
    key_hash: str = Field(primary_key=True)
    fingerprint: str  # of method, path, query and body: the same key with another is refused
    op_id: str  # whoever repeats the write uses the same, so that it has one effect
    status: int | None = None
    headers: dict[str, str] | None = json_column()
    body: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    owner: str | None = None
    lease_until: int | None = time_column(default=None)  # then another may carry on
    created_at: int = time_column()
    expires_at: int = time_column(index=True)


class MatchStart(SQLModel, table=True):
    """Which server a match has, where the project's setting `unique_match` allows it one."""

    __table_args__ = (Index("match_start_age", "project_id", "created_at"),)
    project_id: str = Field(primary_key=True)
    match_id: str = Field(primary_key=True)
    instance_id: str
    region: str  # the id is given to that region's manager only, who makes one server of it however often it is asked
    holders: int = 1  # starts that have not failed for certain; with the last of them the match is free again
    created_at: int = time_column()


class StartReservation(SQLModel, table=True):
    """A start of a project whose plan counts servers, from its check until its row is there."""

    instance_id: str = Field(primary_key=True)
    project_id: str = Field(index=True)
    at: int = time_column()


class Webhook(SQLModel, table=True):
    """Where a project wants its events sent."""

    id: str = Field(primary_key=True)
    project_id: str = Field(foreign_key="project.id", index=True)
    url: str
    secret: str  # sealed; signs what is sent
    events: list[str] | None = json_column()  # kinds or types; none: all
    enabled: bool = True
    disabled_reason: str | None = None
    created_at: int = time_column()
    updated_at: int = time_column()


class WebhookDelivery(SQLModel, table=True):
    """One event on its way to one webhook. Delivered ones are kept a while, dead ones until sent again."""

    __table_args__ = (
        Index("webhook_delivery_due", "webhook_id", "state", "next_at"),
        Index("webhook_delivery_age", "project_id", "state", "updated_at"),
        Index("webhook_delivery_event", "webhook_id", "event_id", unique=True),
    )
    id: int | None = Field(default=None, primary_key=True, sa_type=_Counting)
    webhook_id: str = Field(foreign_key="webhook.id")
    project_id: str
    event_id: str
    type: str
    payload: dict[str, Any] | None = json_column()
    state: str  # pending | delivered | dead
    attempts: int = 0
    next_at: int = time_column()
    last_status: int | None = None
    last_error: str | None = None
    created_at: int = time_column()
    updated_at: int = time_column()


class Job(SQLModel, table=True):
    """Work that one replica at a time does for all: how far it is, and who has it now."""

    name: str = Field(primary_key=True)
    position: int = Field(default=0, sa_type=BigInteger)
    state: dict[str, Any] | None = json_column()
    owner: str | None = None
    lease_until: int | None = time_column(default=None)
    updated_at: int = time_column()


class UsageHour(SQLModel, table=True):
    """Milliseconds that servers ran within one hour. Computed from the journal, and computable again."""

    project_id: str = Field(primary_key=True)
    hour: int = time_column(primary_key=True)  # its beginning
    region: str = Field(primary_key=True)
    compute_size: str = Field(primary_key=True)
    kind: str = Field(primary_key=True)  # used | idle (a pool entry that nobody has claimed)
    ms: int = Field(sa_type=BigInteger)


class Budget(SQLModel, table=True):
    """What a project may cost in a month, in millionths of the currency of configs/prices.yaml."""

    project_id: str = Field(primary_key=True, foreign_key="project.id")
    month_limit: int = Field(sa_type=BigInteger)
    alerts: list[int] | None = json_column()  # percentages
    hard_stop: bool = False  # no new starts once it is used up
    stopped: bool = False  # it is used up now
    told: dict[str, Any] | None = json_column()  # which alerts of which month have been sent
    updated_at: int = time_column()
