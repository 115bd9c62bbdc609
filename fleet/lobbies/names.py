"""Names of keepers and matches, and which keeper has a project's lobbies."""

import secrets
import zlib

_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"


def shard_of(project_id: str, shards: int) -> int:
    return zlib.crc32(project_id.encode()) % shards


def keeper_name(shard: int) -> str:
    """Of the actor."""
    return f"lobbies:{shard}"


def epoch_name(shard: int) -> str:
    """Of the row that fences its writers."""
    return f"lobbies/{shard}"


def new_match_id(now: int) -> str:
    """As games know them: `match_<unix ms>_<7 of base 36>`."""
    return f"match_{now}_{''.join(secrets.choice(_BASE36) for _ in range(7))}"
