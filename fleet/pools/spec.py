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
) -> str:
    """A short digest. A claim may have exactly the warm servers whose digest is its own."""
    what = [project_id, compute_size, build_id, environment or {}, port_configs or []]
    return hashlib.blake2b(orjson.dumps(what, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()
