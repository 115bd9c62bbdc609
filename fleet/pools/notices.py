"""What a pool's owner is told: that it cannot boot, that it can again, that nothing is ready, that all is.

Looked at every few seconds, never per claim: a pool of one is empty after each claim, and nobody wants to hear of that.
"""

from dataclasses import dataclass, replace
from typing import Literal

Notice = Literal["blocked", "unblocked", "empty", "ready"]

BLOCKED_FAILURES = 3  # boots in a row
EMPTY_MS = 15_000  # so long nothing must have been ready
GAP_MS = 60_000  # between two words on how full it is


@dataclass(frozen=True, slots=True)
class Told:
    """What was told last, and since when the pool has had nothing ready."""

    blocked: bool = False
    level: Literal["", "empty", "ready"] = ""
    level_at: int = 0
    empty_since: int | None = None


def notices(told: Told, now: int, failures: int, warm: int, target: int) -> tuple[Told, list[Notice]]:
    """What is to be told now. A new pool that fills tells of nothing before it is ready."""
    found: list[Notice] = []
    if not told.blocked and failures >= BLOCKED_FAILURES:
        told, found = replace(told, blocked=True), ["blocked"]
    elif told.blocked and failures == 0:
        told, found = replace(told, blocked=False), ["unblocked"]
    empty = warm == 0 < target
    since = None if not empty else now if told.empty_since is None else min(told.empty_since, now)
    told = replace(told, empty_since=since)
    if 0 <= now - told.level_at < GAP_MS:
        return told, found
    if 0 < target <= warm and told.level != "ready":
        return replace(told, level="ready", level_at=now), [*found, "ready"]
    if since is not None and now - since >= EMPTY_MS and told.level == "ready":
        return replace(told, level="empty", level_at=now), [*found, "empty"]
    return told, found
