"""What project settings take and give."""

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, Strict, StringConstraints

from fleet.pools.config import PoolConfig
from fleet.projects.settings import MAX_LOBBY_CONFIGS, MAX_ORIGINS, MAX_PORTS, SettingsChange, shown
from fleet.store.tables import Project
from fleet.times import iso
from serve_app.v3.common import Body, Flag
from serve_app.v3.server_schemas import LogOut, PortIn

Short = Annotated[str, StringConstraints(min_length=1, max_length=8192)]
Origin = Annotated[
    str,
    StringConstraints(max_length=255, pattern=r"^(\*|https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?)$"),
]


class ProjectPort(PortIn):
    id: Annotated[str, Field(max_length=128)] | None = None


class AuthConfig(Body):
    """How player tokens are checked. `custom_jwt` needs `secret` or `jwks_url`, `playfab` `title_id`, `steam` `app_id`
    and `web_api_key`."""

    model_config = ConfigDict(extra="allow")
    provider: Literal["none", "custom_jwt", "playfab", "steam"] = "none"
    secret: Short | None = Field(default=None, description="custom_jwt: the shared key. Hidden in answers")
    jwks_url: Annotated[str, StringConstraints(max_length=2048, pattern=r"^https://[^\s/]+")] | None = Field(
        default=None, description="custom_jwt: where the public keys are"
    )
    issuer: Short | None = Field(default=None, description="custom_jwt: `iss` must be this")
    audience: Short | list[Short] | None = Field(default=None, description="custom_jwt: `aud` must be, or hold, this")
    title_id: Short | None = Field(default=None, description="playfab")
    secret_key: Short | None = Field(default=None, description="playfab. Hidden in answers")
    app_id: Short | Annotated[int, Strict()] | None = Field(default=None, description="steam")
    web_api_key: Short | None = Field(default=None, description="steam. Hidden in answers")


class SettingsIn(Body):
    """Any subset; each part that is given replaces what was there, whole. Null empties it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"pool_config": {"enabled": True, "regions": {"us-east": {"small": 2}}}}]}
    )
    port_configs: Annotated[list[ProjectPort], Field(max_length=MAX_PORTS)] | None = None
    auth_config: AuthConfig | None = None
    environment_variables: dict[str, str] | None = None
    pool_config: PoolConfig | None = None
    lobby_configs: Annotated[list[dict[str, Any]], Field(max_length=MAX_LOBBY_CONFIGS)] | None = None
    unique_match: Flag | None = Field(default=None, description="One server for one match_id (an extension)")
    allowed_origins: Annotated[list[Origin], Field(max_length=MAX_ORIGINS)] | None = Field(
        default=None,
        description="Web pages that may call, e.g. `https://game.example`; `*` for all (an extension)",
    )

    def change(self) -> SettingsChange:
        given: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        if self.port_configs is not None:
            given["port_configs"] = [port.config() for port in self.port_configs]
        if self.auth_config is not None:
            given["auth_config"] = {"provider": "none"} | self.auth_config.model_dump(mode="json", exclude_unset=True)
        return cast(SettingsChange, given)


class SettingsOut(BaseModel):
    port_configs: list[ProjectPort]
    auth_config: dict[str, Any] = Field(description="Secrets are hidden; sent back hidden, they stay as they are")
    environment_variables: dict[str, str]
    pool_config: dict[str, Any] | None
    lobby_configs: list[dict[str, Any]]
    unique_match: bool
    allowed_origins: list[str]
    updated_at: str


def settings_view(project: Project, environment: dict[str, str]) -> dict[str, Any]:
    return shown(project.settings or {}, environment) | {"updated_at": iso(project.updated_at)}


class ProjectLogLine(LogOut):
    server_name: str


class ProjectLogOut(BaseModel):
    logs: list[ProjectLogLine]
    next_token: str | None = Field(description="Send it back as start_time to go on; null: nothing more is there now")


class PoolOut(BaseModel):
    """One pool: what it should be, what it is, and why."""

    model_config = ConfigDict(extra="allow")
    region: str
    compute_size: str
    build: str
    build_version: int | None = Field(description="Null: no ready build of that name, so nothing is kept")
    mode: Literal["auto", "fixed", "shadow"]
    slo: float
    floor: int
    ceiling: int
    target: int = Field(description="Servers wanted ready or booting")
    keep: int = Field(description="Warm servers beyond this are stopped")
    auto_target: int | None = Field(description="What `auto` would want")
    stock: dict[str, int] = Field(description="booting, warm (of them frozen, leaving), ailing, unsure, stale, claimed")
    demand: dict[str, int] = Field(description="Since the region's manager began")
    lead_seconds: float = Field(description="Measured time from an order to a warm server")
    hit_rate: dict[str, float | None]
    cost_per_hour: float
    blocked: dict[str, Any] | None = Field(description="Set while its servers fail to boot")
    explanation: dict[str, Any] = Field(description="The policy's inputs and intermediate results")


class PoolListOut(BaseModel):
    pools: list[PoolOut]
    total: int
