"""All ways of matchmaking beside each other on the same population."""

import json
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fleet.errors import FleetError
from fleet.matchmaking import MatchLoop, ModeConfig, Ticket, parse_mode
from fleet.matchmaking.objective import gain
from fleet.simulate.match_others import exact, first_come, fixed_windows
from fleet.simulate.match_people import CURVES, MODES, People, arrivals, curve
from fleet.simulate.matchmaking import Ours, Result, replay

OURS = "ours"
MOST_TICKETS = 200_000
# Snapshots small enough for the exact solver: how many tickets, by the players of a match.
SNAPSHOTS, SNAPSHOT_WAITED_S, SOLVER_S = 5, 30.0, 20.0
ROUNDS = 4_000


@dataclass(frozen=True)
class Terms:
    """Who queues, how often and for how long."""

    mode_name: str = "5v5"
    per_minute: float = 120.0
    seconds: float = 1200.0
    curve: str = "steady"
    parties: bool = True
    skill_sd: float = 6.0
    seed: int = 0

    @cached_property
    def mode(self) -> ModeConfig:
        if self.mode_name in MODES:
            return parse_mode(MODES[self.mode_name])
        path = Path(self.mode_name)
        if not path.is_file():
            detail = f"'{self.mode_name[:60]}' is no mode and no file; there are {', '.join(MODES)}."
            raise FleetError(detail, error="Unknown mode")
        try:
            return parse_mode(json.loads(path.read_text()), path.name)
        except ValueError as error:
            raise FleetError(f"{path}: {error}", error="No JSON") from None

    @property
    def title(self) -> str:
        return f"{self.mode_name}, {self.per_minute:g} lobbies a minute for {self.seconds / 60:g} min, {self.curve}"

    @cached_property
    def people(self) -> People:
        return People(self.mode, self.parties, self.skill_sd)

    def tickets(self) -> list[Ticket]:
        if self.curve not in CURVES:
            raise FleetError(f"'{self.curve[:40]}' is no curve; there are {', '.join(CURVES)}.", error="Unknown curve")
        if self.per_minute * self.seconds / 60 > MOST_TICKETS:
            raise FleetError(f"More than {MOST_TICKETS} lobbies: take less time or fewer a minute.", error="Too many")
        chance = random.Random(self.seed)
        rate, peak = curve(self.curve, self.per_minute, self.seconds)
        times = arrivals(rate, peak, self.seconds, chance)
        return [self.people.ticket(chance, number, at) for number, at in enumerate(times)]


def compare(terms: Terms) -> dict[str, Result]:
    """Every strategy's result, ours first."""
    mode, tickets = terms.mode, terms.tickets()
    return {
        OURS: replay(Ours(mode), mode, tickets, terms.seconds, checks=True),
        "first come first served": replay(first_come(mode), mode, tickets, terms.seconds, checks=False),
        "greedy, fixed windows": replay(fixed_windows(mode), mode, tickets, terms.seconds, checks=False),
    }


@dataclass(frozen=True, slots=True)
class Solved:
    """One snapshot: our sweep against the exact solver, or the best that it found in its time."""

    tickets: int
    groups: int
    proved: bool
    worth: float
    matches: int
    best_worth: float
    best_matches: int


def against_exact(terms: Terms) -> list[Solved]:
    """Our sweep with its search on some small snapshots, beside the exact solution of each."""
    found: list[Solved] = []
    for number in range(SNAPSHOTS):
        solved = _snapshot(terms, terms.seed * SNAPSHOTS + number)
        if solved is not None:
            found.append(solved)
    return found


def _snapshot(terms: Terms, seed: int) -> Solved | None:
    chance = random.Random(seed)
    size = {2: 200, 4: 30, 6: 20}.get(terms.mode.shape.players, 15)
    tickets = [terms.people.ticket(chance, n, -chance.random() * SNAPSHOT_WAITED_S) for n in range(size)]
    best = exact(tickets, terms.mode, 0.0, SOLVER_S)
    if best is None or not best.matches:
        return None
    sizes = {ticket.ticket_id: ticket.size for ticket in tickets}
    loop = MatchLoop(terms.mode, seed)
    for ticket in tickets:
        loop.add(ticket)
    looks = iter(range(10_000_000))
    ours = loop.taken(loop.sweep(0.0, ROUNDS + len(tickets), clock=lambda: float(next(looks))))
    worth = sum(gain(terms.mode, sum(sizes[one] for one in f.ticket_ids), f.quality) for f in ours)
    return Solved(len(tickets), best.groups, best.proved, worth, len(ours), best.worth, best.matches)
