"""What goes between replicas and keepers."""

from dataclasses import dataclass, field
from typing import Any

from fleet.errors import FleetError
from fleet.lobbies.model import LobbyView, QueueStats

SHARD_PREFIX = "lobbies"


@dataclass(frozen=True, slots=True)
class Command:
    """A method of the keeper's desk with its arguments. `again`: a keeper died under the same command, so it may have
    had its effect."""

    method: str
    project_id: str
    config: str
    player_id: str
    arguments: tuple[Any, ...] = ()
    again: bool = False


# What a command gives: the lobby, None if it is gone, or why not.
Answer = LobbyView | None | FleetError


@dataclass(frozen=True, slots=True)
class Watched:
    """A stream of a player: what of its lobby it has seen."""

    lobby_id: str
    player_id: str
    version: int


@dataclass(frozen=True, slots=True)
class Poll:
    """One question of a replica: what is new of the lobbies that its streams watch. It differs from the question before
    by `opened` and `closed` streams; the first of a session has them all."""

    session: str
    first: bool
    opened: tuple[Watched, ...] = ()
    closed: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 25.0


@dataclass(frozen=True, slots=True)
class News:
    """`lobby` None: it is gone."""

    lobby_id: str
    version: int
    lobby: LobbyView | None


@dataclass(frozen=True, slots=True)
class Polled:
    """`known` False: the keeper does not know the session (it is new itself), so ask with a new one."""

    known: bool
    news: list[News] = field(default_factory=list[News])
    stats: list[tuple[str, QueueStats]] = field(default_factory=list[tuple[str, QueueStats]])
