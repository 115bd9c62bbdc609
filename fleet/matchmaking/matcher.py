"""The matcher of one mode's queue: an index that is kept as tickets come and go, and matches made from it.

All of it is a function of what was called with which `now`: no clock, no I/O, no chance.
"""

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from random import Random
from time import perf_counter
from typing import Any

from fleet.matchmaking.assemble import Assembler, Made
from fleet.matchmaking.backfill import Running
from fleet.matchmaking.budget import ARRIVAL, LOOK
from fleet.matchmaking.config import ModeConfig
from fleet.matchmaking.entry import Entry, Terms
from fleet.matchmaking.index import Shard
from fleet.matchmaking.model import Found, OpenMatch, Ticket
from fleet.matchmaking.pairs import ALL_RULES, Fault, Faults, Pairs
from fleet.matchmaking.regions import RegionBook
from fleet.matchmaking.roles import Placer
from fleet.matchmaking.rules import RegionRule
from fleet.matchmaking.sweep import Sweeper, postpone

BEYOND = 1_024  # how far an arriving ticket's attempt looks for what is missing near it
NEAR_RUNNING = 64  # who is asked in a sweep whether they fit into a running match
Clock = Callable[[], float]


class Matcher:
    """The queue of one project, lobby config and mode. A found match's tickets have left the queue."""

    def __init__(self, mode: ModeConfig, seed: int = 0) -> None:
        rule = next((rule for rule in mode.rules if isinstance(rule, RegionRule)), None)
        self.mode = mode
        self.terms = Terms(mode, Placer(mode.shape), RegionBook(rule))
        self.assembler = Assembler(self.terms, Pairs(mode))
        self._entries: dict[str, Entry] = {}
        self._shards: dict[tuple[Any, ...], Shard] = {}
        self._running: dict[str, Running] = {}
        self._sweeper = Sweeper(self.assembler, Random(seed))
        self._deadlines: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, ticket_id: str) -> bool:
        return ticket_id in self._entries

    @property
    def players(self) -> int:
        """How many players wait."""
        return sum(shard.players for shard in self._shards.values())

    def add(self, ticket: Ticket) -> None:
        """Put a ticket into the queue, or anew if it is there already. Its place is its `created_at`."""
        self.remove(ticket.ticket_id)
        entry = self.terms.entry(ticket)
        self._entries[ticket.ticket_id] = entry
        shard = self._shards.get(entry.shard)
        if shard is None:
            shard = self._shards[entry.shard] = Shard(self.mode.shape)
        shard.add(entry)
        heappush(self._deadlines, (entry.born + self.mode.timeout, ticket.ticket_id))

    def remove(self, ticket_id: str) -> bool:
        """Take a ticket out; whether it was there."""
        entry = self._entries.pop(ticket_id, None)
        if entry is None:
            return False
        shard = self._shards[entry.shard]
        shard.remove(entry)
        if not shard.tickets:
            del self._shards[entry.shard]
        return True

    def open(self, match: OpenMatch) -> None:
        """A running match takes more lobbies from now on; replaces what was known of it."""
        self._running[match.match_id] = Running(match, self.assembler)

    def close(self, match_id: str) -> bool:
        """A running match takes nobody any more; whether it did."""
        return self._running.pop(match_id, None) is not None

    def attempt(self, ticket_id: str, now: float) -> Found | None:
        """A place in a running match for this ticket, or a match with it, if there can be one now.

        Where somebody waits longer who differs from the ticket in nothing else, it is their turn.
        """
        entry = self._entries.get(ticket_id)
        if entry is None:
            return None
        shard = self._shards[entry.shard]
        entry = shard.eldest_twin(entry)
        self.assembler.pairs.begin(ARRIVAL)
        placed = self._placed(entry, now)
        if placed is not None:
            return placed
        self._tidy()
        made = self._sweeper.around(entry, shard, now, BEYOND)
        if made is None:
            postpone(entry, now, self.assembler)
            return None
        return self._take(made, now)

    def sweep(
        self, now: float, budget_s: float = 0.2, clock: Clock = perf_counter, *, search: bool = True
    ) -> list[Found]:
        """Matches among all who wait, as far as the budget goes; the next call goes on from there.

        With a clock that counts calls instead of time the result depends on nothing but the arguments.
        """
        ends = clock() + budget_s
        found = self._backfilled(now, lambda: clock() < ends)
        self._tidy()
        shards = list(self._shards.values())
        made = self._sweeper.run(shards, now, lambda: clock() < ends, search=search)
        found += [self._take(one, now) for one in made]
        for shard in shards:
            shard.tidy()
        return found

    def faults(self) -> Faults:
        """Rules that counted as not met since the last call though nobody knows, and why."""
        faults = self.assembler.pairs.faults()
        if self._sweeper.cut_off:
            self._sweeper.cut_off = False
            why = f"the rules between two lobbies took {LOOK:,} steps around one lobby, which is the limit"
            faults[ALL_RULES] = Fault("look_too_long", why)
        return faults

    def expired(self, now: float) -> list[str]:
        """Tickets whose time in the queue is over. They stay until they are removed."""
        late: list[str] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, ticket_id = heappop(self._deadlines)
            entry = self._entries.get(ticket_id)
            if entry is not None and entry.born + self.mode.timeout <= now:
                late.append(ticket_id)
        for ticket_id in late:
            heappush(self._deadlines, (self._entries[ticket_id].born + self.mode.timeout, ticket_id))
        return list(dict.fromkeys(late))

    def snapshot(self) -> list[Ticket]:
        """All waiting tickets, the longest waiting first: enough to build an equal matcher."""
        return [entry.ticket for entry in self._eldest()]

    def _eldest(self) -> list[Entry]:
        return sorted(self._entries.values(), key=lambda one: (one.born, one.id))

    def _backfilled(self, now: float, going: Callable[[], bool]) -> list[Found]:
        """Who fits into running matches by now, of those about as good as their players."""
        found: list[Found] = []
        for match_id in list(self._running):
            running = self._running[match_id]
            if not running.room or not going():
                continue
            shards = list(self._shards.values()) if running.shard is None else [self._shards.get(running.shard)]
            near = [entry for shard in shards if shard for entry in shard.near(running.value, NEAR_RUNNING)]
            for entry in sorted(near, key=lambda one: (one.born, one.id)):
                self.assembler.pairs.begin()
                placed = self._placed(entry, now) if entry.alive else None
                if placed is not None:
                    found.append(placed)
                if self.assembler.pairs.exhausted and not going():
                    break
        return found

    def _tidy(self) -> None:
        """Keep the table of placements small: its states at once, its kinds when players made up very many."""
        placer = self.terms.placer
        placer.tidy()
        if placer.crowded:
            placer.renew()
            for entry in self._entries.values():
                entry.kind = placer.kind(entry.masks)

    def _placed(self, entry: Entry, now: float) -> Found | None:
        """The ticket in the running match that has waited longest for somebody like it."""
        for running in self._running.values():
            team = running.team_for(entry, now)
            if team is not None:
                self.remove(entry.id)
                self.open(running.match_with(entry, team))
                return running.found(entry, team, now)
        return None

    def _take(self, made: Made, now: float) -> Found:
        found = self.assembler.found(made, now)
        for ticket_id in found.ticket_ids:
            self.remove(ticket_id)
        return found


def match(tickets: Iterable[Ticket], mode: ModeConfig, now: float, *, rounds: int = 500) -> list[Found]:
    """Matches among a snapshot of tickets; always the same for the same arguments. `rounds` bounds the search."""
    matcher = Matcher(mode)
    for ticket in tickets:
        matcher.add(ticket)
    return matcher.sweep(now, budget_s=rounds + 2 * len(matcher), clock=_Steps())


class _Steps:
    """A clock that moves by one at each look."""

    def __init__(self) -> None:
        self._at = 0

    def __call__(self) -> float:
        self._at += 1
        return self._at
