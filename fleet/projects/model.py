"""Who calls."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

KeyKind = Literal["server", "client"]


class PortConfig(TypedDict):
    """A port that the game listens on inside its container."""

    name: str
    internal_port: int
    protocol: Literal["udp", "tcp"]
    tls_enabled: bool


DEFAULT_PORTS: tuple[PortConfig, ...] = (
    {"name": "game_udp", "internal_port": 7777, "protocol": "udp", "tls_enabled": False},
)


def project_ports(settings: dict[str, Any]) -> list[PortConfig]:
    """The ports of a server whose start names none: the project's, else one UDP port 7777."""
    return [
        {
            "name": port["name"],
            "internal_port": port["internal_port"],
            "protocol": port["protocol"],
            "tls_enabled": bool(port.get("tls_enabled", False)),
        }
        for port in settings.get("port_configs") or DEFAULT_PORTS
    ]


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller. `valid_until` (monotonic seconds): when this must be looked up again."""

    project_id: str
    kind: KeyKind
    plan: str
    valid_until: float
    settings: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    changed_at: int = 0
    suspended: bool = False
    out_of_budget: bool = False  # and set to stop new starts then

    @property
    def is_server(self) -> bool:
        """True for the project's own back end; a client key ships with the game and may do little."""
        return self.kind == "server"


@dataclass(frozen=True, slots=True)
class NewProject:
    """A project as made, with its keys in clear for the only time."""

    project_id: str
    server_key: str = field(repr=False)
    client_key: str = field(repr=False)
