"""What a caller may ask of a server, and what its log looks like."""

from dataclasses import dataclass, field
from typing import Any, TypedDict

from fleet.node.runtime import LogLine
from fleet.projects.model import PortConfig


@dataclass(frozen=True, slots=True)
class StartRequest:
    """A start as asked. None: not given, so the default or the project's setting applies."""

    name: str
    region: str
    compute_size: str = "small"
    version_tag: str = "default"
    version: int | None = None
    startup_args: str | None = None
    ttl: int | None = None
    auto_restart: bool = False
    custom_data: dict[str, Any] | None = None
    match_id: str | None = None
    environment: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    port_configs: list[PortConfig] | None = None


class RestartValues(TypedDict, total=False):
    """New values for columns of `Server`; a missing key keeps what the server has."""

    name: str
    startup_args: str | None
    build_id: str
    version_tag: str
    version: int | None
    ttl: int | None
    auto_restart: bool
    custom_data: dict[str, Any] | None
    match_id: str | None
    environment: dict[str, str] | str | None  # a request's in clear; sealed before it goes to the region
    port_configs: list[PortConfig]


@dataclass(frozen=True, slots=True)
class RestartChanges:
    """What a restart changes. The values are checked: the build is ready, the limits are kept."""

    values: RestartValues = field(default_factory=RestartValues, repr=False)


@dataclass(frozen=True, slots=True)
class RestartRequest:
    """A restart as asked: `given` holds the fields of `StartRequest` that the caller sent."""

    given: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)


@dataclass(frozen=True, slots=True)
class LogPage:
    """Lines in order. `next_token` continues after the last of them; None when nothing more is there now."""

    lines: list[LogLine]
    machine_id: str | None = None
    next_token: str | None = None


@dataclass(frozen=True, slots=True)
class UsageSeries:
    """Points `[unix seconds, mean over the step]` by name. `step` is coarser than asked where no finer is kept."""

    step: int
    series: dict[str, list[tuple[int, float]]]
    players: dict[str, int | None] | None = None  # {count, capacity, at} as the game said last


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Which servers to list; running ones unless `statuses` says otherwise."""

    include_launching: bool = False
    include_pool: bool = False
    limit: int = 50
    offset: int = 0
    statuses: tuple[str, ...] = ()
