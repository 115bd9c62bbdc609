"""One match, from found to ended: frozen like lobbies, changed by these functions only."""

from dataclasses import dataclass, field, replace
from typing import Literal

# ending: its lobbies are free again, and its server is yet to be stopped.
MatchStatus = Literal["found", "starting", "active", "ending", "ended", "failed"]
OVER: tuple[MatchStatus, ...] = ("ended", "failed")


@dataclass(frozen=True, slots=True)
class Side:
    """A team: its lobbies, and the role that each player got."""

    name: str
    lobbies: tuple[str, ...]
    roles: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Match:
    """`mode` is empty for a host's own start. `regions[region_at]` is where the server is asked for now."""

    id: str
    project_id: str
    config: str
    mode: str
    status: MatchStatus
    sides: tuple[Side, ...]
    regions: tuple[str, ...]
    created_at: int
    updated_at: int
    region_at: int = 0
    confirmed: frozenset[str] = frozenset()
    confirm_until: int | None = None
    start_until: int | None = None
    server_id: str | None = None
    server_status: str | None = None
    server_region: str | None = None
    detail: str | None = None

    @property
    def lobbies(self) -> tuple[str, ...]:
        return tuple(lobby for side in self.sides for lobby in side.lobbies)

    @property
    def region(self) -> str:
        return self.server_region or self.regions[min(self.region_at, len(self.regions) - 1)]

    @property
    def matchmade(self) -> bool:
        return bool(self.mode)


def confirmed_by(match: Match, lobby_id: str, now: int) -> Match:
    return replace(match, confirmed=match.confirmed | {lobby_id}, updated_at=now)


def starting(match: Match, now: int, until: int) -> Match:
    return replace(match, status="starting", confirm_until=None, start_until=until, updated_at=now)


def next_region(match: Match, now: int) -> Match | None:
    """Asked of the next region; None: there is none left."""
    if match.region_at + 1 >= len(match.regions):
        return None
    return replace(match, region_at=match.region_at + 1, updated_at=now)


def active(match: Match, server_id: str, status: str, region: str, now: int) -> Match:
    return replace(
        match,
        status="active",
        server_id=server_id,
        server_status=status,
        server_region=region,
        start_until=None,
        updated_at=now,
    )


def over(match: Match, why: str, now: int) -> Match:
    """Failed, if it never came to a server; ending, if there may be one to stop."""
    status: MatchStatus = "failed" if match.status == "found" else "ending"
    return replace(match, status=status, detail=why, confirm_until=None, start_until=None, updated_at=now)


def before_play(match: Match) -> bool:
    """Nobody has played yet: its server does not run."""
    return match.status in ("found", "starting") or (match.status == "active" and match.server_status == "launching")


def without(match: Match, lobby_id: str, now: int) -> Match:
    """One lobby has left; the others play on."""
    sides = tuple(replace(side, lobbies=tuple(one for one in side.lobbies if one != lobby_id)) for side in match.sides)
    return replace(match, sides=sides, updated_at=now)


def with_more(match: Match, more: tuple[Side, ...], now: int) -> Match:
    """Lobbies that join a running match, side by side in the mode's order."""
    sides = list(match.sides)
    for number, side in enumerate(more):
        if number < len(sides):
            old = sides[number]
            sides[number] = replace(old, lobbies=old.lobbies + side.lobbies, roles={**old.roles, **side.roles})
        else:
            sides.append(side)
    return replace(match, sides=tuple(sides), updated_at=now)


def settled(match: Match, now: int) -> Match:
    """Its server is stopped, or there is none."""
    status: MatchStatus = "ended" if match.server_id is not None else "failed"
    return replace(match, status=status, server_status="stopped" if match.server_id else None, updated_at=now)
