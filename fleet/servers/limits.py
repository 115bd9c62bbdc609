"""What a start, restart or update may carry. Each check raises a `FleetError` that names the limit."""

from collections import Counter
from typing import Any

from fleet.errors import FleetError
from fleet.json_size import check_json
from fleet.projects.model import PortConfig
from fleet.settings import ServerLimits

MIN_TTL_S, MAX_TTL_S = 60, 86_400
MAX_VARIABLE_BYTES = 8 * 1024
MAX_ENVIRONMENT_BYTES = 32 * 1024
_ENVIRONMENT = "environment_variables"
_PORTS = "port_configs"


class Unprocessable(FleetError):
    """Well-formed, but against a rule that spans several fields."""

    status = 422
    error = "Validation error"

    def __init__(
        self, detail: str, *, field: str | None = None, error: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(detail, error=error, status=status)
        self.field = field


def check_custom_data(data: dict[str, Any] | None, limits: ServerLimits) -> None:
    if data is None:
        return
    check_json(data, "custom_data", limits.max_custom_data_kb * 1024)


def check_environment(variables: dict[str, str], limits: ServerLimits) -> None:
    if len(variables) > limits.max_environment:
        raise Unprocessable(
            f"{len(variables)} environment variables; at most {limits.max_environment} are allowed.",
            field="environment_variables",
        )
    total = 0
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise Unprocessable(
                f"{name[:64]!r} cannot be an environment variable: no empty name, '=' or NUL.",
                field="environment_variables",
            )
        size = len(name.encode()) + len(value.encode())
        total += size
        if size > MAX_VARIABLE_BYTES:
            raise Unprocessable(
                f"Environment variable '{name[:64]}' is over {MAX_VARIABLE_BYTES} bytes.", field="environment_variables"
            )
    if total > MAX_ENVIRONMENT_BYTES:
        raise Unprocessable(
            f"The environment takes {total} bytes; at most {MAX_ENVIRONMENT_BYTES} are allowed.",
            field="environment_variables",
        )


def check_startup_args(args: str | None, limits: ServerLimits) -> None:
    if args and len(args) > limits.max_startup_args:
        raise Unprocessable(f"startup_args are over {limits.max_startup_args} characters.", field="startup_args")
    if args and "\0" in args:
        raise Unprocessable("startup_args hold a NUL character.", field="startup_args")


def check_ports(ports: list[PortConfig], limits: ServerLimits) -> None:
    if len(ports) > limits.max_ports:
        raise Unprocessable(f"{len(ports)} ports; at most {limits.max_ports} are allowed.", field=_PORTS)
    _unique("name", [port["name"] for port in ports])
    _unique("internal port", [f"{port['internal_port']}/{port['protocol']}" for port in ports])
    for port in ports:
        if port["tls_enabled"] and port["protocol"] != "tcp":
            raise Unprocessable(f"Port '{port['name']}': tls_enabled needs protocol tcp.", field=_PORTS)


def _unique(what: str, values: list[str]) -> None:
    for value, times in Counter(values).items():
        if times > 1:
            raise Unprocessable(
                f"The {what} '{value[:64]}' is declared {times} times; it must be unique.", field="port_configs"
            )


def check_ttl(ttl: int | None) -> None:
    if ttl is not None and not MIN_TTL_S <= ttl <= MAX_TTL_S:
        raise Unprocessable(f"ttl is {ttl}; it must be {MIN_TTL_S} to {MAX_TTL_S} seconds.", field="ttl")
