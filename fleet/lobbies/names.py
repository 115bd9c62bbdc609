"""Which keeper has a project's lobbies, and what it is called."""

import zlib


def shard_of(project_id: str, shards: int) -> int:
    return zlib.crc32(project_id.encode()) % shards


def keeper_name(shard: int) -> str:
    """Of the actor."""
    return f"lobbies:{shard}"


def epoch_name(shard: int) -> str:
    """Of the row that fences its writers."""
    return f"lobbies/{shard}"
