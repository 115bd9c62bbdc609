"""What v2 server calls take and give. Old clients send numbers as strings, and empty strings for nothing."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from fleet.servers.limits import MAX_TTL_S
from fleet.servers.model import RestartRequest, StartRequest
from fleet.store.tables import Server
from serve_app.v3.common import Body, Flag
from serve_app.v3.server_schemas import NetworkPort, Text, Ttl, Version, server_view


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


def _from_text(value: object) -> object:
    if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) < 20:
        return int(value)
    return _empty_is_none(value)


def _number_or_text(most: int) -> WithJsonSchema:
    number = {"type": "integer", "minimum": 1, "maximum": most}
    return WithJsonSchema({"anyOf": [number, {"type": "string", "pattern": "^[0-9]*$"}, {"type": "null"}]})


OrEmpty = BeforeValidator(_empty_is_none)
LegacyVersion = Annotated[Version | None, BeforeValidator(_from_text), _number_or_text(2**31 - 1)]
LegacyTtl = Annotated[Ttl | None, BeforeValidator(_from_text), _number_or_text(MAX_TTL_S)]
LegacyText = Annotated[Annotated[str, StringConstraints(max_length=256)] | None, OrEmpty]
State = Literal["launching", "running", "stopped"]
# Readers of these take a string or a number without looking: better no field than null.
_LEFT_OUT = ("startup_args", "ttl", "started_at")


class LegacyStartIn(Body):
    """`name` and `region` are needed."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "my-match", "region": "us-east", "version_tag": "default"}]}
    )
    name: Text
    region: Text
    startup_args: str | None = None
    compute_size: LegacyText = "small"
    version_tag: LegacyText = Field(default=None, description="Name of the build; `default` if left out")
    version: LegacyVersion = None
    ttl: LegacyTtl = None
    auto_restart: Flag | None = False
    custom_data: dict[str, Any] | None = None

    def request(self) -> StartRequest:
        return StartRequest(
            name=self.name,
            region=self.region,
            compute_size=self.compute_size or "small",
            version_tag=self.version_tag or "default",
            version=self.version,
            startup_args=self.startup_args,
            ttl=self.ttl,
            auto_restart=bool(self.auto_restart),
            custom_data=self.custom_data,
        )


class LegacyRestartIn(Body):
    """What to change; null, empty or left out means: as it is."""

    name: LegacyText = None
    startup_args: str | None = None
    version_tag: LegacyText = None
    version: LegacyVersion = None
    ttl: LegacyTtl = None
    auto_restart: Flag | None = None
    custom_data: dict[str, Any] | None = None

    def request(self) -> RestartRequest:
        return RestartRequest(self.model_dump(exclude_none=True))


class LegacyInstanceOut(BaseModel):
    """A server. `startup_args`, `ttl` and `started_at` are left out while there are none."""

    instance_id: str
    name: str
    network_ports: list[NetworkPort]
    status: State
    startup_args: str = ""
    service_type: Literal["match_based", "persistent_world"]
    compute_size: str
    region: str
    version_tag: str
    version: int | None
    started_at: str = ""
    stopped_at: str | None
    auto_restart: bool
    custom_data: dict[str, Any] | None
    ttl: int = 0
    updated_at: str
    is_pool_server: bool
    pool_claimed_at: str | None


class LegacyListOut(BaseModel):
    total_servers: int
    servers: list[LegacyInstanceOut]


class LegacyStartedOut(BaseModel):
    instance_id: str
    name: str
    status: State = Field(description="`launching`, or `running` where a warm server stood ready")
    region: str
    network_ports: list[NetworkPort]
    compute_size: str
    version_tag: str
    version: int | None
    started_at: str = ""


class LegacyStoppedOut(BaseModel):
    status: str


def instance_view(row: Server) -> dict[str, Any]:
    """The Instance object, for servers and inside legacy lobbies."""
    whole = server_view(row)
    view = {name: whole[name] for name in LegacyInstanceOut.model_fields}
    return {name: value for name, value in view.items() if value is not None or name not in _LEFT_OUT}


def started_view(row: Server) -> dict[str, Any]:
    view = instance_view(row)
    return {name: view[name] for name in LegacyStartedOut.model_fields if name in view}
