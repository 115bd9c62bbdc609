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
    number, text = secrets.randbelow(36**7), ""
    for _ in range(7):
        number, digit = divmod(number, 36)
        text += _BASE36[digit]
    return f"match_{now}_{text}"
