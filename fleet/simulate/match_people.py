"""Who queues in a simulated population: skills, parties, roles, homes, and when they come."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fleet.matchmaking import ModeConfig, Player, Ticket, parse_mode

# Milliseconds between a home and a region, the middle of what players there measure.
REGIONS = ("us-east", "us-west", "eu-west", "ap-south")
PINGS: dict[str, tuple[float, float, float, float]] = {
    "us-east": (25, 75, 90, 230),
    "us-west": (75, 25, 150, 220),
    "eu-west": (90, 150, 25, 140),
    "ap-south": (230, 220, 140, 35),
}
HOMES = {"us-east": 0.4, "eu-west": 0.35, "us-west": 0.15, "ap-south": 0.1}
ROLES: dict[tuple[str, ...], float] = {
    ("tank",): 0.10,
    ("healer",): 0.13,
    ("dps",): 0.37,
    ("tank", "dps"): 0.08,
    ("healer", "dps"): 0.08,
    ("tank", "healer"): 0.04,
    (): 0.20,
}
PARTIES = {1: 0.75, 2: 0.15, 3: 0.07, 5: 0.03}
SKILL, SKILL_SD, SIGMA = 25.0, 6.0, 2.0
ACCEPTED_MS = 160.0

MODES: dict[str, dict[str, Any]] = {
    "5v5": {
        "teams": 2,
        "playersPerTeam": 5,
        "roles": {"tank": 1, "healer": 1, "dps": 3},
        "rules": [{"type": "skill"}, {"type": "region", "maxLatency": 120}],
    },
    "duel": {"rules": [{"type": "skill"}, {"type": "region", "maxLatency": 120}]},
    "2v2": {"playersPerTeam": 2, "rules": [{"type": "skill"}, {"type": "region", "maxLatency": 120}]},
    "3v3": {
        "playersPerTeam": 3,
        "roles": {"tank": 1, "dps": 2},
        "rules": [{"type": "skill"}, {"type": "region", "maxLatency": 120}],
    },
    "ffa": {"teams": 1, "playersPerTeam": 100, "minPlayersPerTeam": 50, "rules": [{"type": "skill"}]},
    "royale": {"teams": 50, "playersPerTeam": 2, "minTeams": 25, "minPlayersPerTeam": 1, "rules": [{"type": "skill"}]},
}


@dataclass(frozen=True, slots=True)
class People:
    """The population of one mode. Parties larger than a team, and roles the mode lacks, do not occur."""

    mode: ModeConfig
    parties: bool = True
    skill_sd: float = SKILL_SD

    def ticket(self, chance: random.Random, number: int, at: float) -> Ticket:
        size = 1
        if self.parties:
            sizes = [one for one in PARTIES if one <= self.mode.party_limit]
            size = chance.choices(sizes, [PARTIES[one] for one in sizes])[0]
        skill = chance.gauss(SKILL, self.skill_sd)
        home = chance.choices(tuple(HOMES), tuple(HOMES.values()))[0]
        spread = 0.0 if size == 1 else 1.0
        roles = self._roles(chance, size)
        players = tuple(
            self._player(chance, f"p{number}.{one}", skill + spread * chance.gauss(0, 1), home, roles[one])
            for one in range(size)
        )
        return Ticket(f"t{number:07}", players, at)

    def _player(self, chance: random.Random, player_id: str, mu: float, home: str, roles: tuple[str, ...]) -> Player:
        pings = {
            region: round(max(5.0, ping * chance.uniform(0.8, 1.2) + chance.expovariate(0.2)), 1)
            for region, ping in zip(REGIONS, PINGS[home], strict=True)
        }
        near = sorted((region for region in REGIONS if pings[region] <= ACCEPTED_MS), key=pings.__getitem__)
        return Player(player_id, mu, SIGMA, roles, tuple(near), pings)

    def _roles(self, chance: random.Random, size: int) -> list[tuple[str, ...]]:
        """Roles of a party that one team can hold: a party has agreed who plays what, or fills."""
        known = self.mode.shape.roles
        if not known:
            return [()] * size
        left = dict(self.mode.shape.teams[0].roles)
        chosen: list[tuple[str, ...]] = []
        for _ in range(size):
            wish = chance.choices(tuple(ROLES), tuple(ROLES.values()))[0]
            wish = tuple(role for role in wish if role in known)
            if size > 1:
                wish = wish[:1] if wish and left[wish[0]] else ()
                left = {role: count - (role in wish) for role, count in left.items()}
            chosen.append(wish)
        return chosen


def crowd(mode: str, count: int, seed: int = 0, *, waited: float = 0.0, parties: bool = True) -> list[Ticket]:
    """Tickets that wait at time 0, having come over the `waited` seconds before."""
    chance = random.Random(seed)
    people = People(parse_mode(MODES[mode]), parties)
    return [people.ticket(chance, number, -chance.random() * waited) for number in range(count)]


def arrivals(rate: Callable[[float], float], peak: float, seconds: float, chance: random.Random) -> Sequence[float]:
    """Times of a Poisson process with the rate per second `rate(t)`, never above `peak`, by thinning."""
    times: list[float] = []
    at = 0.0
    while True:
        at += chance.expovariate(peak)
        if at >= seconds:
            return times
        if chance.random() * peak < rate(at):
            times.append(at)


def curve(shape: str, per_minute: float, seconds: float) -> tuple[Callable[[float], float], float]:
    """An arrival curve's rate per second and its peak: steady, a day in the whole time, or a rush in the middle."""
    mean = per_minute / 60
    if shape == "steady":
        return (lambda _: mean), mean
    if shape == "day":
        return (lambda at: mean * (1 - 0.8 * math.cos(2 * math.pi * at / seconds))), 1.8 * mean
    return (lambda at: mean * (4.0 if 0.45 <= at / seconds <= 0.55 else 2 / 3)), 4.0 * mean


CURVES = ("steady", "day", "rush")
