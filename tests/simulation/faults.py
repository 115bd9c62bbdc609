"""Faults: what goes wrong, when, for how long. A schedule follows from a seed, and may be thinned out afterwards.

Some are events (a process is killed), others are windows in which calls over one edge may fail at every await.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

WINDOWS = ("database_flaky", "calls_flaky", "engine_flaky", "engine_slow")
KINDS = (
    *WINDOWS,
    "database_locked",
    "database_away",
    "manager_kill",
    "keeper_kill",
    "manager_hang",
    "head_away",
    "agent_kill",
    "agent_hang",
    "agent_gone",
    "engine_away",
    "engine_hang",
    "machine_freeze",
    "machine_lost",
    "machine_cut",
    "container_vanishes",
    "clock_step",
)
_SHORT = {
    "manager_hang": 40.0,
    "agent_hang": 90.0,
    "machine_freeze": 120.0,
    "machine_cut": 180.0,
    "engine_away": 120.0,
    "engine_hang": 60.0,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`at`, `for_s`: virtual seconds; inf: for good. `where`: picks the target among those that are there then.
    `steps`: a kill comes after so many steps of the process, so between any two."""

    at: float
    kind: str
    for_s: float = 0.0
    where: int = 0
    steps: int = 0

    @property
    def until(self) -> float:
        return self.at if self.for_s == float("inf") else self.at + self.for_s

    def __str__(self) -> str:
        length = "for good" if self.for_s == float("inf") else f"for {self.for_s:.1f} s"
        return f"{self.at:8.2f} s  {self.kind} {length} (target {self.where}, after {self.steps} steps)"


def schedule(chance: random.Random, kinds: Sequence[str], span_s: float, number: int) -> list[Fault]:
    """`number` faults in the first `span_s` seconds, in order. Two may be at once."""
    found: list[Fault] = []
    for _ in range(number):
        kind = chance.choice(kinds)
        for_s = chance.choice((1.0, 5.0, 20.0, _SHORT.get(kind, 45.0))) * chance.uniform(0.5, 1.5)
        if kind in ("agent_hang", "agent_gone", "machine_lost") and chance.random() < 0.3:
            for_s = float("inf")
        if kind in ("database_locked", "database_away", "head_away") and chance.random() < 0.2:
            for_s = chance.uniform(100.0, 600.0)
        steps = chance.randrange(400) if chance.random() < 0.7 else 0
        found.append(Fault(chance.uniform(20.0, span_s), kind, for_s, chance.randrange(1000), steps))
    return sorted(found, key=lambda fault: fault.at)


class Weather:
    """The windows that are open now, and what they do to one call. `log` keeps what was done to which call."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.open: dict[str, int] = dict.fromkeys(KINDS, 0)

    def latency(self, usual_s: float) -> float:
        """Mostly short; now and then long, so that anything may overtake anything."""
        draw = self._chance.random()
        return usual_s * (0.2 + draw) if draw < 0.98 else usual_s * self._chance.uniform(5, 40)

    def strikes(self, window: str, share: float) -> bool:
        return self.open[window] > 0 and self._chance.random() < share

    def pick(self, *outcomes: str) -> str:
        return self._chance.choice(outcomes)

    def uniform(self, low: float, high: float) -> float:
        return self._chance.uniform(low, high)
