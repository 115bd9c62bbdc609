"""What tenants share and may have a number of at once (docs/limits.md). The names of `ShareLimits`' fields."""

from typing import Literal

ShareName = Literal[
    "log_streams",
    "log_streams_per_key",
    "log_reads",
    "event_streams",
    "event_streams_per_key",
    "player_streams",
    "waits",
    "uploads",
    "exports",
    "builds",
]
