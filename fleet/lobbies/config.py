"""A lobby config as a project sets it (`lobby_configs` of its settings): checked when saved, used when read.

Names are the API's. What it does not tell is our choice, and names that mean nothing to us are kept, not refused.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from fleet.catalog import load_catalog
from fleet.errors import FleetError
from fleet.lobbies.codes import InviteCodeConfig
from fleet.lobbies.rules import MAX_PLAYERS
from fleet.matchmaking import ModeConfig, parse_modes
from fleet.projects.model import PortConfig
from fleet.servers.limits import Unprocessable, check_ports
from fleet.settings import ServerLimits

Seconds = Annotated[float, Field(ge=1, le=86_400, allow_inf_nan=False)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True)


class GamePort(_Data):
    """As in the project's `port_configs`, under either spelling."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
    internal_port: Annotated[int, Field(ge=1, le=65535)]
    protocol: Literal["udp", "tcp"]
    tls_enabled: bool = False

    def config(self) -> PortConfig:
        return cast(PortConfig, self.model_dump(include=set(PortConfig.__annotations__)))


class ServerSettings(_Data):
    """What a match's server is started as. `portConfigs`: instead of the project's ports."""

    server_size: Name = "small"
    game_build: Name = "default"
    game_build_version: Annotated[int, Field(ge=1)] | None = None
    ttl: Annotated[int, Field(ge=60, le=86_400)] | None = None
    port_configs: Annotated[tuple[GamePort, ...], Field(max_length=10)] | None = None

    @property
    def ports(self) -> list[PortConfig] | None:
        return None if self.port_configs is None else [port.config() for port in self.port_configs]


class LobbyConfig(_Data):
    """`timeout`: a lobby whose players all gave no sign of life for so long goes. With `heartbeat`, a player who is
    silent for `heartbeatTimeout` goes alone, in a game too."""

    id: Name | None = None
    name: Name = "default"
    enabled: bool = True
    max_players: Annotated[int, Field(ge=1, le=MAX_PLAYERS)] = 2
    timeout: Seconds = 300.0
    heartbeat: bool = False
    heartbeat_timeout: Seconds = 60.0
    custom_properties: dict[str, Any] | None = None
    invite_code_config: InviteCodeConfig | None = None
    server_settings: ServerSettings = ServerSettings()
    matchmaking: dict[str, Any] | None = None
    on_leave: Literal["cancel", "backfill"] = Field(
        default="cancel",
        description="A lobby leaves a match before its server runs: the match is off, or goes on and is filled up",
    )

    @cached_property
    def codes(self) -> InviteCodeConfig:
        return self.invite_code_config or InviteCodeConfig()

    @cached_property
    def modes(self) -> dict[str, ModeConfig]:
        return parse_modes({"matchmaking": self.matchmaking}, stored=True)

    @property
    def silence_ms(self) -> int:
        """After which a player who gave no sign of life goes."""
        return int(1000 * (self.heartbeat_timeout if self.heartbeat else self.timeout))


DEFAULTS = LobbyConfig()


def check_lobby_configs(given: object) -> None:
    """Unprocessable with the path of the first fault."""
    configs = _read(given)
    for number, config in enumerate(configs):
        path = f"lobby_configs.{number}"
        if config.server_settings.server_size not in load_catalog().sizes:
            where = f"{path}.serverSettings.serverSize"
            sizes = ", ".join(load_catalog().sizes)
            raise Unprocessable(f"{where}: unknown size; use one of {sizes}.", field=where)
        _check_ports(config.server_settings.ports, f"{path}.serverSettings.portConfigs")
        parse_modes({"matchmaking": config.matchmaking}, path)
    for name, times in Counter(config.name for config in configs).items():
        if times > 1:
            raise Unprocessable(f"lobby_configs: {times} configs are named '{name[:64]}'.", field="lobby_configs")


def _check_ports(ports: list[PortConfig] | None, path: str) -> None:
    try:
        check_ports(ports or [], ServerLimits())
    except Unprocessable as error:
        raise Unprocessable(f"{path}: {error.detail}", field=path) from None


def _read(given: object) -> list[LobbyConfig]:
    if not isinstance(given, list):
        raise Unprocessable("lobby_configs should be a list.", field="lobby_configs")
    configs: list[LobbyConfig] = []
    for number, one in enumerate(cast("list[object]", given)):
        try:
            configs.append(LobbyConfig.model_validate(one))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(["lobby_configs", str(number), *map(str, first["loc"])])
            text = first["msg"].removeprefix("Value error, ")
            raise Unprocessable(f"{where}: {text}.", field=where) from None
    return configs


def find_config(stored: Sequence[dict[str, Any]], name: str) -> LobbyConfig:
    """The config of that name or id; the defaults under this name if there is none."""
    for one in stored:
        if name in (one.get("name"), one.get("id")):
            return _usable(one)
    return DEFAULTS.model_copy(update={"name": name})


def _usable(stored: dict[str, Any]) -> LobbyConfig:
    """What was saved before a check existed may be unfit: then its defaults hold, since players must not suffer."""
    try:
        config = LobbyConfig.model_validate(stored)
        _ = config.modes
        return config
    except (ValidationError, FleetError):
        return LobbyConfig(name=str(stored.get("name") or "default"))
