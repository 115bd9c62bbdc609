"""Tables of lobbies and matches. Written only by the LobbyKeeper of the project's shard (docs/store.md)."""

from typing import Any

from sqlalchemy import BigInteger, Index
from sqlmodel import Field, SQLModel

from fleet.store.tables import json_column, time_column


class Lobby(SQLModel, table=True):
    """Players who wait and play together. Gone when it is deleted."""

    __table_args__ = (
        Index("lobby_browse", "project_id", "config", "status", "created_at"),
        Index("lobby_code_of", "project_id", "config", "code", unique=True),
        Index("lobby_shard_of", "shard"),
    )
    id: str = Field(primary_key=True)
    project_id: str = Field(foreign_key="project.id")
    shard: int
    config: str
    code: str
    name: str
    status: str  # waiting | in_queue | matched | match_found | starting | in_game
    region: str
    host: str
    is_private: bool = False
    allow_late_join: bool = True
    max_players: int
    current_players: int
    version: int = Field(default=1, sa_type=BigInteger)  # rises with every change that players see
    state: dict[str, Any] | None = json_column()  # players with their states, settings, matchmaking, timers
    server_id: str | None = None
    match_id: str | None = Field(default=None, index=True)
    created_at: int = time_column()
    updated_at: int = time_column()


class Match(SQLModel, table=True):
    """Lobbies that play against each other, from found to ended."""

    __table_args__ = (
        Index("match_status", "status", "project_id"),
        Index("match_listing", "project_id", "status", "created_at"),
    )
    match_id: str = Field(primary_key=True)
    project_id: str = Field(foreign_key="project.id")
    shard: int
    config: str
    mode: str
    status: str  # found | starting | active | ended | failed
    region: str | None = None
    server_id: str | None = None
    state: dict[str, Any] | None = json_column()  # teams, lobbies, who has confirmed, deadline
    detail: str | None = None  # why it ended or failed
    created_at: int = time_column()
    updated_at: int = time_column()


MATCH_NOT_OVER = ("found", "starting", "active", "ending")


class PlayerRating(SQLModel, table=True):
    """A player's skill in one mode (openskill's mu and sigma), from reported results."""

    __table_args__ = (Index("player_rating_age", "project_id", "updated_at"),)
    project_id: str = Field(primary_key=True)
    config: str = Field(primary_key=True)
    mode: str = Field(primary_key=True)
    player_id: str = Field(primary_key=True)
    mu: float
    sigma: float
    games: int = 0
    updated_at: int = time_column()
