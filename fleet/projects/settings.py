"""A project's settings: what may be in them, and how they are shown. Stored whole as one JSON object."""

from collections.abc import Mapping
from typing import Any, TypedDict

from fleet.json_size import check_json
from fleet.lobbies.config import check_lobby_configs
from fleet.pools.config import PoolConfig
from fleet.projects.model import PortConfig
from fleet.sealing import Sealer, Variables
from fleet.servers.limits import Unprocessable

MAX_PORTS = 10
MAX_LOBBY_CONFIGS = 20
MAX_ORIGINS = 50
MAX_BYTES = 256 * 1024
HIDDEN = "********"
# Fields of auth_config that nobody needs to read back. Stored sealed.
SECRETS = ("secret", "web_api_key", "secret_key")
# What each provider cannot do without; of a tuple one is enough.
NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "none": (),
    "custom_jwt": (("secret", "jwks_url"),),
    "playfab": (("title_id",),),
    "steam": (("app_id",), ("web_api_key",)),
}


class SettingsChange(TypedDict, total=False):
    """What a caller sets; each part replaces what was there, whole. Missing parts stay. None empties a part."""

    port_configs: list[PortConfig] | None
    auth_config: dict[str, Any] | None
    environment_variables: dict[str, str] | None
    pool_config: PoolConfig | None
    lobby_configs: list[dict[str, Any]] | None
    unique_match: bool | None
    allowed_origins: list[str] | None


def sealed(change: SettingsChange, sealer: Sealer, variables: Variables) -> dict[str, Any]:
    """The change with its new secrets and its environment variables as they may be stored."""
    stored: dict[str, Any] = dict(change)
    if "environment_variables" in change:
        stored["environment_variables"] = variables.seal(change["environment_variables"])
    auth = change.get("auth_config")
    if not auth:
        return stored
    secrets = {name: sealer.seal(str(auth[name])) for name in SECRETS if auth.get(name) not in (None, "", HIDDEN)}
    return stored | {"auth_config": auth | secrets}


def opened_auth(stored: dict[str, Any], sealer: Sealer) -> dict[str, Any]:
    """`auth_config` with its secrets in clear, for whoever checks players."""
    auth = dict[str, Any](stored.get("auth_config") or {"provider": "none"})
    return auth | {name: sealer.open(auth[name]) for name in SECRETS if auth.get(name)}


def changed(stored: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The settings after the sealed change. A secret that comes back hidden is kept as it is."""
    new = dict(stored)
    for part, value in change.items():
        if isinstance(value, PoolConfig):
            new[part] = value.model_dump(mode="json", exclude_unset=True)
        elif part == "auth_config" and isinstance(value, dict):
            new[part] = _kept_secrets(value, stored.get("auth_config") or {})  # pyright: ignore[reportUnknownArgumentType]
            _check_auth(new[part])
        elif part == "lobby_configs" and value:
            check_lobby_configs(value)
            new[part] = value
        else:
            new[part] = value
    check_json(new, "The project's whole settings", MAX_BYTES)
    return new


def _kept_secrets(given: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    kept = {name: stored.get(name) for name in SECRETS if given.get(name) == HIDDEN}
    return given | kept


def _check_auth(auth: dict[str, Any]) -> None:
    provider = str(auth.get("provider") or "none")
    for names in NEEDS.get(provider, ()):
        if not any(auth.get(name) for name in names):
            raise Unprocessable(f"Provider '{provider}' needs {' or '.join(names)}.", field="auth_config")


def shown(stored: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Every part, with defaults, secrets hidden. `environment`: its variables, as whoever looks may see them."""
    auth = dict(stored.get("auth_config") or {"provider": "none"})
    hidden = {name: HIDDEN for name in SECRETS if auth.get(name)}
    return {
        "port_configs": stored.get("port_configs") or [],
        "auth_config": auth | hidden,
        "environment_variables": environment,
        "pool_config": stored.get("pool_config"),
        "lobby_configs": stored.get("lobby_configs") or [],
        "unique_match": bool(stored.get("unique_match")),
        "allowed_origins": stored.get("allowed_origins") or [],
    }
