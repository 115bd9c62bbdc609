"""Modes and populations for tests of matchmaking."""

import random
from typing import Any

from fleet.matchmaking import ModeConfig, Player, Ticket, parse_mode
from fleet.matchmaking.tickets import Member, ticket_of

ROLES = ("tank", "healer", "dps")
REGIONS = ("eu-west", "us-east", "asia")
FIVES: dict[str, Any] = {
    "teams": 2,
    "playersPerTeam": 5,
    "roles": {"tank": 1, "healer": 1, "dps": 3},
    "rules": [{"type": "skill"}, {"type": "region"}],
}


def fives(**more: Any) -> ModeConfig:
    return parse_mode(FIVES | more)


def duel(**more: Any) -> ModeConfig:
    return parse_mode({"rules": [{"type": "difference", "field": "mmr", "maxDifference": 100}]} | more)


def lobby(mode: ModeConfig, name: str, at: float = 0.0, **state: Any) -> Ticket:
    """A lobby of one player with this state."""
    return ticket_of(mode, name, at, [Member(f"p-{name}", state)])


def some(chance: random.Random, count: int, *, biggest: int = 3, at: float = 0.0) -> list[Ticket]:
    """Tickets with parties, roles, skills and regions by chance."""
    return [_ticket(chance, number, biggest, at) for number in range(count)]


def _ticket(chance: random.Random, number: int, biggest: int, at: float) -> Ticket:
    size = min(biggest, chance.choice((1, 1, 1, 1, 2, 3)))
    skill = chance.gauss(25, 6)
    regions = tuple(chance.sample(REGIONS, chance.choice((1, 2, 3))))
    players = tuple(
        Player(f"p{number}.{one}", skill + chance.gauss(0, 1), 2.0, _roles(chance, one), regions) for one in range(size)
    )
    return Ticket(f"t{number:06}", players, at + chance.random())


def _roles(chance: random.Random, one: int) -> tuple[str, ...]:
    kind = chance.random()
    if kind < 0.3:
        return ()
    # Of a party only one is picky about a rare role.
    first = chance.choices(ROLES, (2, 2, 6))[0] if one == 0 else "dps"
    return (first,) if kind < 0.8 else tuple(dict.fromkeys((first, chance.choice(ROLES))))
