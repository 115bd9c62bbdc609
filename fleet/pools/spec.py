"""What makes two servers interchangeable: the same project, build, size, environment and ports. Pure."""

import hashlib
from typing import Any

import orjson


def pool_spec(
    project_id: str,
    compute_size: str,
    build_id: str,
    environment: dict[str, str] | None,
    port_configs: list[Any] | None,
    secrets_at: int = 0,
) -> str:
    """A short digest. A claim may have exactly the warm servers whose digest is its own. `secrets_at`: when the
    project's secrets changed last, since a game has those that there were at its launch."""
    what: list[Any] = [project_id, compute_size, build_id, environment or {}, port_configs or []]
    what += [secrets_at] if secrets_at else []
    return hashlib.blake2b(orjson.dumps(what, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()
