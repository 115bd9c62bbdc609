"""Matchmaking in virtual time: a population queues, strategies match it, and what its players get is measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from heapq import heapify, heappop
from statistics import fmean
from typing import Protocol

from fleet.matchmaking import Found, MatchLoop, ModeConfig, Ticket
from fleet.matchmaking.check import check
from fleet.matchmaking.model import BETA, Quality
from fleet.matchmaking.objective import gain

TICK_S = 1.0
RARE_SHARE = 0.1  # the tails whose waits are told apart: this share of lowest and of highest skills
CHECKED = 200  # matches per run that the independent checker sees
SWEEP_LOOKS = 400


class Strategy(Protocol):
    """Whoever makes matches of a queue."""

    def arrives(self, ticket: Ticket, now: float) -> Sequence[Found]: ...
    def tick(self, now: float) -> Sequence[Found]: ...
    def leaves(self, ticket_id: str) -> None: ...


class Ours:
    """The loop that the keeper drives: an attempt at each arrival, a sweep each second, bounded by steps and not by
    time."""

    def __init__(self, mode: ModeConfig) -> None:
        self.loop = MatchLoop(mode)

    def arrives(self, ticket: Ticket, now: float) -> Sequence[Found]:
        self.loop.add(ticket)
        return self.loop.taken(self.loop.attempt(ticket.ticket_id, now))

    def tick(self, now: float) -> Sequence[Found]:
        looks = iter(range(1_000_000))
        return self.loop.taken(self.loop.sweep(now, SWEEP_LOOKS, clock=lambda: float(next(looks))))

    def leaves(self, ticket_id: str) -> None:
        self.loop.remove(ticket_id)


@dataclass
class Result:
    """What the players of a run got. Shares are of all tickets that came."""

    matches: int = 0
    matched: float = 0.0
    timed_out: float = 0.0
    still_waiting: float = 0.0
    wait_p50: float = 0.0
    wait_p95: float = 0.0
    wait_p99: float = 0.0
    skill_spread: float = 0.0
    team_skill_difference: float = 0.0
    win_chance_off: float = 0.0
    worst_latency: float = 0.0
    longest_wait: float = 0.0
    tail_wait_p95: float = 0.0
    crowded_role_wait_p95: float = 0.0
    worth_per_player: float = 0.0
    faults: list[str] = field(default_factory=list[str])

    def as_json(self) -> dict[str, object]:
        return {name: round(v, 4) if isinstance(v, float) else v for name, v in asdict(self).items()}


def replay(strategy: Strategy, mode: ModeConfig, tickets: Sequence[Ticket], seconds: float, *, checks: bool) -> Result:
    """Let the tickets, in order of coming, queue until they are matched or their time is over."""
    run = _Run(mode, {ticket.ticket_id: ticket for ticket in tickets}, checks)
    ends = [(ticket.created_at + mode.timeout, ticket.ticket_id) for ticket in tickets]
    heapify(ends)
    events = [(ticket.created_at, 1, ticket.ticket_id) for ticket in tickets]
    events += [(TICK_S * number, 0, "") for number in range(1, int(seconds / TICK_S) + 1)]
    heapify(events)
    while events:
        now, kind, ticket_id = heappop(events)
        while ends and ends[0][0] <= now:
            late = heappop(ends)[1]
            if late in run.waiting:
                run.waiting.discard(late)
                run.late.append(late)
                strategy.leaves(late)
        if kind:
            run.waiting.add(ticket_id)
            run.took(strategy.arrives(run.tickets[ticket_id], now), now)
        else:
            run.took(strategy.tick(now), now)
    return run.result(seconds)


class _Run:
    def __init__(self, mode: ModeConfig, tickets: dict[str, Ticket], checks: bool) -> None:
        self.mode = mode
        self.tickets = tickets
        self.checks = checks
        self.waiting: set[str] = set()
        self.late: list[str] = []
        self.found: list[Found] = []
        self.quality: list[Quality] = []
        self.waits: dict[str, float] = {}
        self.faults: list[str] = []

    def took(self, several: Sequence[Found], now: float) -> None:
        for found in several:
            if self.checks and len(self.found) < CHECKED:
                self.faults += check(found, self.tickets, self.mode, now)
            self.found.append(found)
            self.quality.append(measured(found, self.tickets, now))
            for ticket_id in found.ticket_ids:
                self.waiting.remove(ticket_id)
                self.waits[ticket_id] = now - self.tickets[ticket_id].created_at

    def result(self, seconds: float) -> Result:
        # Whoever was not matched has waited until it gave up, or until the end.
        waited = dict(self.waits)
        for ticket_id in (*self.late, *self.waiting):
            waited[ticket_id] = min(self.mode.timeout, seconds - self.tickets[ticket_id].created_at)
        waits = sorted(waited.values())
        count = max(1, len(waits))
        one = Result(
            matches=len(self.found),
            matched=len(self.waits) / count,
            timed_out=len(self.late) / count,
            still_waiting=len(self.waiting) / count,
            wait_p50=quantile(waits, 0.5),
            wait_p95=quantile(waits, 0.95),
            wait_p99=quantile(waits, 0.99),
            longest_wait=waits[-1] if waits else 0.0,
            tail_wait_p95=quantile(self._tails(waited), 0.95),
            crowded_role_wait_p95=quantile(self._rare(waited), 0.95),
            faults=self.faults[:10],
        )
        if self.found:
            quality = self.quality
            one.skill_spread = fmean(q.spread for q in quality)
            one.win_chance_off = fmean(q.imbalance for q in quality)
            one.worst_latency = fmean(q.worst_latency for q in quality)
            one.team_skill_difference = fmean(self._difference(found) for found in self.found)
            worth = sum(gain(self.mode, self._players(f), q) for f, q in zip(self.found, quality, strict=True))
            one.worth_per_player = worth / sum(ticket.size for ticket in self.tickets.values())
        return one

    def _players(self, found: Found) -> int:
        return sum(self.tickets[one].size for one in found.ticket_ids)

    def _difference(self, found: Found) -> float:
        """Between the best and the weakest team's mean skill."""
        teams = [
            [p.mu for one in team.tickets for p in self.tickets[one].players] for team in found.teams if team.tickets
        ]
        means = [fmean(team) for team in teams]
        return max(means) - min(means)

    def _tails(self, waited: Mapping[str, float]) -> list[float]:
        ordered = sorted(waited, key=lambda one: self.tickets[one].players[0].mu)
        tail = int(len(ordered) * RARE_SHARE)
        return sorted(waited[one] for one in (*ordered[:tail], *ordered[len(ordered) - tail :]))

    def _rare(self, waited: Mapping[str, float]) -> list[float]:
        """Waits of single players who ask for the one role that most ask for: theirs is the longest line."""
        wished = {one: roles[0] for one in waited if len(roles := self.tickets[one].players[0].roles) == 1}
        asked = list(wished.values())
        crowded = max(sorted(set(asked)), key=asked.count, default="")
        return sorted(waited[one] for one, role in wished.items() if role == crowded and self.tickets[one].size == 1)


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def measured(found: Found, tickets: Mapping[str, Ticket], now: float) -> Quality:
    """A match's quality by the tickets alone, the same way for every strategy."""
    everyone = [tickets[one] for one in found.ticket_ids]
    players = [player for ticket in everyone for player in ticket.players]
    values = [fmean(player.mu for player in ticket.players) for ticket in everyone]
    teams = [[p for one in team.tickets for p in tickets[one].players] for team in found.teams if team.tickets]
    skills = [sum(player.mu for player in team) for team in teams]
    variance = 2 * BETA**2 + sum(player.sigma**2 for player in players) * 2 / max(2, len(teams))
    pings = [player.latencies.get(found.region or "", 0.0) for player in players]
    waits = [now - ticket.created_at for ticket in everyone for _ in ticket.players]
    return Quality(
        spread=max(values) - min(values),
        imbalance=0.5 * math.erf((max(skills) - min(skills)) / math.sqrt(2 * variance)),
        worst_latency=max(pings),
        mean_latency=fmean(pings),
        longest_wait=max(waits),
        mean_wait=fmean(waits),
    )
