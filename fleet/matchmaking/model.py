"""The nouns of matchmaking: a ticket is a lobby in the queue, a found match is lobbies on teams."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MU, SIGMA = 25.0, 25.0 / 3
BETA = 25.0 / 6  # openskill's spread of one player's performance


@dataclass(frozen=True, slots=True)
class Player:
    """Who wants to play. No roles: any will do. `regions` in order of liking, empty: any; latencies in milliseconds."""

    player_id: str
    mu: float = MU
    sigma: float = SIGMA
    roles: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    latencies: Mapping[str, float] = field(default_factory=dict[str, float])
    blocked: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Ticket:
    """One lobby in the queue. `created_at` is its place; one handed back keeps it.

    `fields` has what rules look at: for `difference` the mean of the players' numbers, for `equals` the common value,
    for `not_equals` and `overlap` a tuple of values. `spectators` come along and count for nothing.
    """

    ticket_id: str
    players: tuple[Player, ...]
    created_at: float
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    spectators: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return len(self.players)


@dataclass(frozen=True, slots=True)
class Team:
    """A team of a found match: whole lobbies, and the role each player got (none where the mode has no roles)."""

    name: str
    tickets: tuple[str, ...]
    roles: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Quality:
    """What a match costs its players. `imbalance` is |P(win) - 1/2| of the best team over its even share."""

    spread: float = 0.0
    imbalance: float = 0.0
    worst_latency: float = 0.0
    mean_latency: float = 0.0
    longest_wait: float = 0.0
    mean_wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """A match, or with `backfill` more lobbies for a running one (then `teams` has only who is added).

    `regions` is in order of preference; the first is the region voted for. Empty: no player named any.
    """

    teams: tuple[Team, ...]
    regions: tuple[str, ...]
    quality: Quality
    made_at: float
    backfill: str | None = None
    partial: bool = False

    @property
    def ticket_ids(self) -> tuple[str, ...]:
        return tuple(ticket for team in self.teams for ticket in team.tickets)

    @property
    def region(self) -> str | None:
        return self.regions[0] if self.regions else None


@dataclass(frozen=True, slots=True)
class OpenMatch:
    """A running match that takes more lobbies: who is on which team, in the order of the mode's teams."""

    match_id: str
    teams: tuple[tuple[Ticket, ...], ...]
    region: str | None
    opened_at: float
    roles: Mapping[str, str] = field(default_factory=dict[str, str])
