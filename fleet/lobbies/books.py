"""The shard's books: its lobbies and running matches in memory, what holds between them, and every change as rows.

A change is made in memory at once and is on disk after the commit that follows (`take`). Nothing is told before that.
What holds at any time: a player is in one lobby of a config at most, and no two lobbies of a config share a code.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import insert

from fleet.errors import Conflict
from fleet.lobbies.match import OVER, Match, MatchStatus
from fleet.lobbies.model import Lobby
from fleet.lobbies.rows import Rating, lobby_rows, match_rows, rating_statements
from fleet.store.tables import ProjectEvent
from fleet.store.transact import Statement

_INSERT_EVENTS = insert(ProjectEvent)
Where = tuple[str, str]  # project, config


@dataclass(frozen=True, slots=True)
class Told:
    """A change that streams may hear of. `lobby` None: it is gone."""

    lobby_id: str
    version: int
    lobby: Lobby | None


@dataclass(frozen=True, slots=True)
class Batch:
    """`matches`: those that have changed, and their status. `over`: how those that are over ended."""

    statements: list[Statement]
    told: list[Told]
    matches: dict[str, MatchStatus]
    over: list[str]


class Books:
    def __init__(self, shard: int) -> None:
        self.lobbies: dict[str, Lobby] = {}
        self.matches: dict[str, Match] = {}
        self._by_player: dict[tuple[str, str, str], str] = {}
        self._codes: dict[Where, dict[str, str]] = {}
        self._lobby_rows = lobby_rows(shard)
        self._match_rows = match_rows(shard)
        self._over: dict[str, str] = {}  # match -> how it ended
        self._touched: dict[str, MatchStatus] = {}
        self._ratings: list[Rating] = []
        self._told: list[Told] = []
        self._events: list[dict[str, Any]] = []  # rows, since making their objects costs ten times as much

    def load(self, lobbies: Iterable[Lobby], matches: Iterable[Match]) -> None:
        """What the database has; nothing of it is to be written or told."""
        for lobby in lobbies:
            self._index(lobby, None)
            self._lobby_rows.known(lobby.id)
        for match in matches:
            self.matches[match.id] = match
            self._match_rows.known(match.id)

    # Looking --------------------------------------------------------------------------------------------------------

    def of_player(self, project_id: str, config: str, player_id: str) -> Lobby | None:
        found = self._by_player.get((project_id, config, player_id))
        return self.lobbies[found] if found is not None else None

    def of_code(self, project_id: str, config: str, code: str) -> Lobby | None:
        found = self.codes(project_id, config).get(code)
        return self.lobbies[found] if found is not None else None

    def codes(self, project_id: str, config: str) -> dict[str, str]:
        """Codes of live lobbies."""
        return self._codes.get((project_id, config), {})

    def of_project(self, project_id: str) -> list[Lobby]:
        return [lobby for lobby in self.lobbies.values() if lobby.project_id == project_id]

    # Changing -------------------------------------------------------------------------------------------------------

    def add(self, lobby: Lobby) -> Lobby:
        """A new lobby. Conflict if a player of it is in another."""
        self._index(lobby, None)
        self._lobby_rows.set(lobby)
        self._told.append(Told(lobby.id, lobby.version, lobby))
        return lobby

    def put(self, lobby: Lobby) -> Lobby:
        """A changed lobby, as it now is: its version is one higher. Conflict if a new player of it is in another."""
        lobby = replace(lobby, version=self.lobbies[lobby.id].version + 1)
        self._index(lobby, self.lobbies[lobby.id])
        self._lobby_rows.set(lobby)
        self._told.append(Told(lobby.id, lobby.version, lobby))
        return lobby

    def remove(self, lobby: Lobby) -> None:
        lobby = self.lobbies.pop(lobby.id)
        for player in lobby.players:
            del self._by_player[lobby.project_id, lobby.config, player.id]
        codes = self._codes[lobby.project_id, lobby.config]
        del codes[lobby.code]
        if not codes:
            del self._codes[lobby.project_id, lobby.config]
        self._lobby_rows.remove(lobby.id)
        self._told.append(Told(lobby.id, lobby.version + 1, None))

    def put_match(self, match: Match) -> Match:
        """A new match, or one as it is now. One that is over leaves memory and stays on disk."""
        self._match_rows.set(match)
        self._touched[match.id] = match.status
        if match.status in OVER:
            self.matches.pop(match.id, None)
            self._over[match.id] = match.status
        else:
            self.matches[match.id] = match
        return match

    def rate(self, ratings: Iterable[Rating]) -> None:
        self._ratings += ratings

    def note(self, project_id: str, subject: str, what: str, at: int, **data: Any) -> None:
        """An entry of the project's journal, with what players or a studio would ask."""
        row = {"project_id": project_id, "kind": "lobby", "subject": subject, "type": f"lobby.{what}"}
        self._events.append({**row, "at": at, "data": data or None})

    def take(self) -> Batch:
        """What has gathered since; the books are clean afterwards."""
        statements = self._lobby_rows.take() + self._match_rows.take()
        for key in self._over:
            self._match_rows.forget(key)
        if self._ratings:
            statements += rating_statements(self._ratings)
        if self._events:
            statements.append((_INSERT_EVENTS, self._events))
        batch = Batch(statements, self._told, self._touched, list(self._over.values()))
        self._ratings, self._told, self._events, self._over, self._touched = [], [], [], {}, {}
        return batch

    def _index(self, lobby: Lobby, before: Lobby | None) -> None:
        where = (lobby.project_id, lobby.config)
        if before is None or lobby.players is not before.players:
            now = {player.id for player in lobby.players}
            then = {player.id for player in before.players} if before else set[str]()
            for player in now - then:
                if (*where, player) in self._by_player:
                    raise in_another(lobby.config, player)
            for player in now - then:
                self._by_player[*where, player] = lobby.id
            for player in then - now:
                del self._by_player[*where, player]
        if before is None:
            self._codes.setdefault(where, {})[lobby.code] = lobby.id
        self.lobbies[lobby.id] = lobby


def in_another(config: str, player_id: str) -> Conflict:
    return Conflict(
        f"Player '{player_id[:64]}' is in a lobby of '{config[:64]}' already. Leave that first.",
        error="Already in another lobby",
    )
