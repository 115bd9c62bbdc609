"""The matcher of one mode's queue: an index that is kept as tickets come and go, and matches made from it.

All of it is a function of what was called with which `now`: no clock, no I/O, no chance.
"""

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from time import perf_counter
from typing import Any

from fleet.matchmaking.assemble import Assembler, Made
from fleet.matchmaking.config import ModeConfig
from fleet.matchmaking.entry import Entry, Terms
from fleet.matchmaking.index import Shard
from fleet.matchmaking.model import Found, Ticket
from fleet.matchmaking.pairs import Pairs
from fleet.matchmaking.regions import RegionBook
from fleet.matchmaking.roles import Placer
from fleet.matchmaking.rules import RegionRule

NEAREST = 128
Clock = Callable[[], float]


class Matcher:
    """The queue of one project, lobby config and mode. A found match's tickets have left the queue."""

    def __init__(self, mode: ModeConfig) -> None:
        rule = next((rule for rule in mode.rules if isinstance(rule, RegionRule)), None)
        self.mode = mode
        self.terms = Terms(mode, Placer(mode.shape), RegionBook(rule))
        self.assembler = Assembler(self.terms, Pairs(mode))
        self._entries: dict[str, Entry] = {}
        self._shards: dict[tuple[Any, ...], Shard] = {}
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
            shard = self._shards[entry.shard] = Shard(self.mode.shape, self.terms.placer.hall.any)
        shard.add(entry, self._masks(entry))
        heappush(self._deadlines, (entry.born + self.mode.timeout, ticket.ticket_id))

    def remove(self, ticket_id: str) -> bool:
        """Take a ticket out; whether it was there."""
        entry = self._entries.pop(ticket_id, None)
        if entry is None:
            return False
        entry.alive = False
        shard = self._shards[entry.shard]
        shard.remove(entry, self._masks(entry))
        if not shard.items:
            del self._shards[entry.shard]
        return True

    def attempt(self, ticket_id: str, now: float) -> Found | None:
        """A match with this ticket, if one can be made now."""
        entry = self._entries.get(ticket_id)
        made = None if entry is None else self._around(entry, now)
        return None if made is None else self._take(made, now)

    def sweep(self, now: float, budget_s: float = 0.2, clock: Clock = perf_counter) -> list[Found]:
        """Matches among all who wait, the longest waiting first, until the budget is used up."""
        ends = clock() + budget_s
        found: list[Found] = []
        for entry in sorted(self._entries.values(), key=lambda one: (one.born, one.key)):
            if clock() > ends:
                break
            if entry.alive and (made := self._around(entry, now)):
                found.append(self._take(made, now))
        return found

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
        waiting = sorted(self._entries.values(), key=lambda one: (one.born, one.ticket.ticket_id))
        return [entry.ticket for entry in waiting]

    def _masks(self, entry: Entry) -> list[int]:
        hall = self.terms.placer.hall
        return [hall.mask(player.roles) for player in entry.ticket.players]

    def _around(self, entry: Entry, now: float) -> Made | None:
        shard = self._shards[entry.shard]
        if not self.mode.shape.may_be_partial and not shard.can_fill():
            return None
        self.terms.placer.tidy()
        group = self.assembler.gather(entry, shard.near(entry, NEAREST), now)
        return self.assembler.made(group, now)

    def _take(self, made: Made, now: float) -> Found:
        found = self.assembler.found(made, now)
        for ticket_id in found.ticket_ids:
            self.remove(ticket_id)
        return found


def match(tickets: Iterable[Ticket], mode: ModeConfig, now: float) -> list[Found]:
    """Matches among a snapshot of tickets; always the same for the same arguments."""
    matcher = Matcher(mode)
    for ticket in tickets:
        matcher.add(ticket)
    return matcher.sweep(now, budget_s=1.0, clock=lambda: 0.0)
