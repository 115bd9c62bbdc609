"""Lobbies, matches and ratings as rows, and back. One statement per kind and commit, each with all its rows."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from sqlalchemy import BindParameter, Delete, Insert, Update, bindparam, delete, insert, update
from sqlmodel import col

from fleet.lobbies.match import Match, Side
from fleet.lobbies.model import Lobby, Player, Queued
from fleet.store.lobby_tables import Lobby as LobbyRow
from fleet.store.lobby_tables import Match as MatchRow
from fleet.store.lobby_tables import PlayerRating
from fleet.store.transact import Statement

One = TypeVar("One", Lobby, Match)
_ID = "of"  # names of parameters must differ from those of columns


@dataclass(frozen=True, slots=True)
class Rating:
    """A player's skill in a mode, and after how many games."""

    project_id: str
    config: str
    mode: str
    player_id: str
    mu: float
    sigma: float
    games: int
    updated_at: int


class _Rows(Generic[One]):
    """What must become of the rows of one table. Changes of a row between two commits are one."""

    def __init__(self, values: Callable[[One], dict[str, Any]], new: Insert, old: Update, gone: Delete) -> None:
        self._values = values
        self._new, self._old, self._delete = new, old, gone
        self._stored: set[str] = set()
        self._changed: dict[str, One] = {}
        self._gone: set[str] = set()

    def known(self, key: str) -> None:
        """There is a row."""
        self._stored.add(key)

    def set(self, one: One) -> None:
        self._changed[one.id] = one

    def remove(self, key: str) -> None:
        self._changed.pop(key, None)
        if key in self._stored:
            self._stored.discard(key)
            self._gone.add(key)

    def forget(self, key: str) -> None:
        """The row stays as it will be written, and never changes again."""
        self._stored.discard(key)

    def take(self) -> list[Statement]:
        """Rows that are gone come first: new ones may have their code."""
        new: list[dict[str, Any]] = []
        old: list[dict[str, Any]] = []
        for key, one in self._changed.items():
            values = self._values(one)
            if key in self._stored:
                old.append({_ID: key, **{f"new_{name}": value for name, value in values.items()}})
            else:
                new.append(values)
        statements: list[Statement] = []
        if self._gone:
            statements.append((self._delete, [{_ID: key} for key in self._gone]))
        if new:
            statements.append((self._new, new))
        if old:
            statements.append((self._old, old))
        self._stored |= self._changed.keys()
        self._changed, self._gone = {}, set()
        return statements


def lobby_rows(shard: int) -> _Rows[Lobby]:
    return _Rows(partial(lobby_values, shard=shard), *_statements(LobbyRow, "id"))


def match_rows(shard: int) -> _Rows[Match]:
    return _Rows(partial(match_values, shard=shard), *_statements(MatchRow, "match_id"))


def lobby_values(lobby: Lobby, shard: int) -> dict[str, Any]:
    return {
        "id": lobby.id,
        "project_id": lobby.project_id,
        "shard": shard,
        "config": lobby.config,
        "code": lobby.code,
        "name": lobby.name,
        "status": lobby.status,
        "region": lobby.region,
        "host": lobby.host,
        "is_private": lobby.is_private,
        "allow_late_join": lobby.allow_late_join,
        "max_players": lobby.max_players,
        "current_players": len(lobby.players),
        "version": lobby.version,
        "state": {
            "players": [[player.id, player.state, player.joined_at] for player in lobby.players],
            "settings": lobby.settings,
            "queued": [lobby.queued.mode, lobby.queued.since, lobby.queued.until] if lobby.queued else None,
            "confirmed": lobby.confirmed,
            "confirm_until": lobby.confirm_until,
            "server": lobby.server,
        },
        "server_id": lobby.server["instance_id"] if lobby.server else None,
        "match_id": lobby.match_id,
        "created_at": lobby.created_at,
        "updated_at": lobby.updated_at,
    }


def lobby_of(row: LobbyRow) -> Lobby:
    state = row.state or {}
    return Lobby(
        id=row.id,
        project_id=row.project_id,
        config=row.config,
        code=row.code,
        name=row.name,
        status=row.status,  # pyright: ignore[reportArgumentType]
        region=row.region,
        host=row.host,
        is_private=row.is_private,
        allow_late_join=row.allow_late_join,
        max_players=row.max_players,
        players=tuple(Player(*player) for player in state["players"]),
        settings=state["settings"],
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.version,
        queued=Queued(*state["queued"]) if state["queued"] else None,
        match_id=row.match_id,
        confirmed=state["confirmed"],
        confirm_until=state["confirm_until"],
        server=state["server"],
    )


def match_values(match: Match, shard: int) -> dict[str, Any]:
    return {
        "match_id": match.id,
        "project_id": match.project_id,
        "shard": shard,
        "config": match.config,
        "mode": match.mode,
        "status": match.status,
        "region": match.region,
        "server_id": match.server_id,
        "state": {
            "sides": [[side.name, side.lobbies, side.roles] for side in match.sides],
            "regions": match.regions,
            "region_at": match.region_at,
            "confirmed": sorted(match.confirmed),
            "confirm_until": match.confirm_until,
            "start_until": match.start_until,
            "server_status": match.server_status,
            "server_region": match.server_region,
        },
        "detail": match.detail,
        "created_at": match.created_at,
        "updated_at": match.updated_at,
    }


def match_of(row: MatchRow) -> Match:
    state = row.state or {}
    sides = tuple(Side(name, tuple(lobbies), roles) for name, lobbies, roles in state["sides"])
    return Match(
        id=row.match_id,
        project_id=row.project_id,
        config=row.config,
        mode=row.mode,
        status=row.status,  # pyright: ignore[reportArgumentType]
        sides=sides,
        regions=tuple(state["regions"]),
        created_at=row.created_at,
        updated_at=row.updated_at,
        region_at=state["region_at"],
        confirmed=frozenset(state["confirmed"]),
        confirm_until=state["confirm_until"],
        start_until=state["start_until"],
        server_id=row.server_id,
        server_status=state["server_status"],
        server_region=state["server_region"],
        detail=row.detail,
    )


def rating_statements(ratings: list[Rating]) -> list[Statement]:
    """New ratings take the place of the old ones."""
    newest = {(one.project_id, one.config, one.mode, one.player_id): one for one in ratings}
    return [
        (
            _DELETE_RATING,
            [dict(zip(("of_project", "of_config", "of_mode", "of_player"), key, strict=True)) for key in newest],
        ),
        (insert(PlayerRating), [asdict(one) for one in newest.values()]),
    ]


def _statements(table: Any, key: str) -> tuple[Insert, Update, Delete]:
    mine = getattr(table, key) == bindparam(_ID)
    new: dict[str, BindParameter[Any]] = {
        column.name: bindparam(f"new_{column.name}") for column in table.__table__.columns
    }
    return insert(table), update(table).where(mine).values(new), delete(table).where(mine)


_DELETE_RATING = delete(PlayerRating).where(
    col(PlayerRating.project_id) == bindparam("of_project"),
    col(PlayerRating.config) == bindparam("of_config"),
    col(PlayerRating.mode) == bindparam("of_mode"),
    col(PlayerRating.player_id) == bindparam("of_player"),
)
