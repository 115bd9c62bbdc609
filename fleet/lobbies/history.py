"""Matches as the database has them, for those who list them."""

from sqlmodel import col

from fleet.errors import NotFound
from fleet.lobbies.match import Match
from fleet.lobbies.rows import match_of
from fleet.projects.scope import owned
from fleet.store.engine import Store
from fleet.store.lobby_tables import Match as Row

MOST = 200
_UNDER_WAY = ("found", "starting", "active")


async def matches_under_way(store: Store, project_id: str, config: str) -> list[Match]:
    """The newest, of one config."""
    rows = owned(Row, project_id).where(col(Row.config) == config, col(Row.status).in_(_UNDER_WAY))
    async with store.read() as session:
        found = (await session.exec(rows.order_by(col(Row.created_at).desc()).limit(MOST))).all()
    return [match_of(row) for row in found]


async def find_match(store: Store, project_id: str, match_id: str) -> Match:
    """One match, whatever its status."""
    async with store.read() as session:
        row = (await session.exec(owned(Row, project_id).where(col(Row.match_id) == match_id))).first()
    if row is None:
        raise NotFound(f"There is no match '{match_id[:64]}'.", error="Match not found")
    return match_of(row)
