"""Which rows are too old, table by table. Conditions only; `sweep.py` deletes.

A table whose setting is 0 is kept for ever and has no rule. Each condition is an index's prefix, so that looking for
what is old never walks over what is not.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import tuple_
from sqlmodel import SQLModel, col, exists, select

from fleet.settings import RetentionSettings
from fleet.store.lobby_tables import Match, PlayerRating
from fleet.store.tables import Build, BuildLog, MatchStart, Server, WebhookDelivery, live

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Rule:
    """Rows of `table`, known by `keys`, that go once `conditions` hold."""

    name: str
    table: type[SQLModel]
    keys: tuple[Any, ...]
    conditions: tuple[Any, ...]

    @property
    def key(self) -> Any:
        return self.keys[0] if len(self.keys) == 1 else tuple_(*self.keys)


def cutoff(days: float, now: int) -> int | None:
    """What happened before this time is too old; None: nothing is."""
    return int(now - days * DAY_MS) if days > 0 else None


def rules_of(settings: RetentionSettings, project_id: str, now: int) -> Iterable[Rule]:
    """Of one project, but for what has a way of its own: servers, project events, usage."""
    if (old := cutoff(settings.match_starts_days, now)) is not None:
        # As long as its server is there it says that the match has one.
        busy = exists(select(Server.instance_id).where(col(Server.instance_id) == col(MatchStart.instance_id), live()))
        aged = (col(MatchStart.project_id) == project_id, col(MatchStart.created_at) < old, ~busy)
        yield Rule("match_start", MatchStart, (col(MatchStart.project_id), col(MatchStart.match_id)), aged)
    if (old := cutoff(settings.matches_days, now)) is not None:
        over = (col(Match.project_id) == project_id, col(Match.status).in_(("ended", "failed")))
        yield Rule(
            "match", Match, (col(Match.match_id),), (*over, col(Match.created_at) < old, col(Match.updated_at) < old)
        )
    if (old := cutoff(settings.build_logs_days, now)) is not None:
        builds = select(Build.build_id).where(
            col(Build.project_id) == project_id,
            col(Build.status).in_(("deleted", "failed")),
            col(Build.updated_at) < old,
        )
        yield Rule("build_log", BuildLog, (col(BuildLog.id),), (col(BuildLog.build_id).in_(builds),))
    for state, days in (("delivered", settings.deliveries_days), ("dead", settings.dead_deliveries_days)):
        if (old := cutoff(days, now)) is not None:
            mine = (col(WebhookDelivery.project_id) == project_id, col(WebhookDelivery.state) == state)
            aged = (*mine, col(WebhookDelivery.updated_at) < old)
            yield Rule(f"delivery_{state}", WebhookDelivery, (col(WebhookDelivery.id),), aged)
    if (old := cutoff(settings.ratings_days, now)) is not None:
        key = (PlayerRating.project_id, PlayerRating.config, PlayerRating.mode, PlayerRating.player_id)
        aged = (col(PlayerRating.project_id) == project_id, col(PlayerRating.updated_at) < old)
        yield Rule("rating", PlayerRating, tuple(map(col, key)), aged)
