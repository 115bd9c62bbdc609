"""One mode's queue as it is run: arriving tickets are tried at once, sweeps look again at who waits.

The keeper, the simulator, the benchmarks and the tests drive this same object. It keeps two matchers over its life. One
belongs to the caller: it knows who waits now, and tries who arrives. The other belongs to the sweeps, which may run in
a thread: it gets what has changed at each sweep's beginning and is kept, so that a sweep which its budget cuts off is
gone on with by the next, and a long queue is reached to its end.

A ticket has a version, new with each `add`, and so has a running match with each `open`. What a sweep found holds only
if every version in it is still the present one: who left, queues anew or changed meanwhile is in no old match. Tickets
of a match that does not hold wait on, and are tried again at once (`untried`).
"""

from collections.abc import Callable, Generator, Iterator
from itertools import count, islice
from time import perf_counter

from fleet.matchmaking.config import ModeConfig
from fleet.matchmaking.matcher import Clock, Matcher
from fleet.matchmaking.model import Found, OpenMatch, Ticket
from fleet.matchmaking.pairs import Faults

_EVERY = 64  # changes between two looks at the clock


class Sweep:
    """One sweep under way. `run` may be called in another thread, and touches nothing that the caller's side does."""

    def __init__(self, side: "_SweepSide", changes: "_Changes") -> None:
        self._side = side
        self._changes = changes
        self._given_up = False
        self.found: list[Found] = []
        self.faults: Faults = {}
        self.done = False

    def run(self, now: float, budget_s: float, clock: Clock = perf_counter, *, search: bool = True) -> None:
        """Take in the changes, then look, as far as the budget goes; the next sweep goes on from there."""
        ends = clock() + budget_s

        def bounded() -> float:
            return ends if self._given_up else clock()

        if self._side.take_in(self._changes, lambda: bounded() >= ends):
            self.found = self._side.matcher.sweep(now, ends - clock(), bounded, search=search)
            self.faults = self._side.matcher.faults()
        self.done = True

    def give_up(self) -> None:
        """Nobody waits for it any more: it ends at its next look at the clock."""
        self._given_up = True

    def versions(self, found: Found) -> dict[str, int]:
        return {ticket_id: self._side.versions[ticket_id] for ticket_id in found.ticket_ids}

    def match_version(self, match_id: str) -> int | None:
        return self._side.match_versions.get(match_id)


class MatchLoop:
    """Times are seconds. All but `Sweep.run` is the caller's thread's."""

    def __init__(self, mode: ModeConfig, seed: int = 0) -> None:
        self.mode = mode
        self._seed = seed
        self._arrivals = Matcher(mode, seed)
        self._tickets: dict[str, tuple[Ticket, int]] = {}
        self._running: dict[str, tuple[OpenMatch, int]] = {}
        self._version = count(1)
        self._changes = _Changes()
        self._side = _SweepSide(Matcher(mode, seed))
        self._again: list[str] = []

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, ticket_id: str) -> bool:
        return ticket_id in self._tickets

    @property
    def tickets(self) -> list[Ticket]:
        """Who waits, the longest first."""
        return sorted((ticket for ticket, _ in self._tickets.values()), key=lambda one: (one.created_at, one.ticket_id))

    @property
    def running(self) -> list[OpenMatch]:
        return [match for match, _ in self._running.values()]

    # What changes ---------------------------------------------------------------------------------------------------

    def add(self, ticket: Ticket) -> None:
        """Into the queue, or anew if it is there: what was found with it before does not hold any more."""
        self._tickets[ticket.ticket_id] = waiting = (ticket, next(self._version))
        self._arrivals.add(ticket)
        self._changes.tickets[ticket.ticket_id] = waiting

    def remove(self, ticket_id: str) -> bool:
        """Out of the queue; whether it was there."""
        if self._tickets.pop(ticket_id, None) is None:
            return False
        self._arrivals.remove(ticket_id)
        self._changes.tickets[ticket_id] = None
        return True

    def open(self, match: OpenMatch) -> None:
        """A running match takes more lobbies from now on; replaces what was known of it."""
        self._running[match.match_id] = opened = (match, next(self._version))
        self._arrivals.open(match)
        self._changes.matches[match.match_id] = opened

    def close(self, match_id: str) -> bool:
        """A running match takes nobody any more; whether it did."""
        if self._running.pop(match_id, None) is None:
            return False
        self._arrivals.close(match_id)
        self._changes.matches[match_id] = None
        return True

    # Matches --------------------------------------------------------------------------------------------------------

    def attempt(self, ticket_id: str, now: float) -> Generator[Found]:
        """The match that this ticket completes, if any. The caller removes its tickets, or they wait on."""
        if ticket_id not in self._tickets:
            return
        found = self._arrivals.attempt(ticket_id, now)
        if found is None:
            return
        versions = {name: self._tickets[name][1] for name in found.ticket_ids}
        try:
            yield found
        finally:
            for name in self._waiting_of(versions):
                self._arrivals.add(self._tickets[name][0])
            if found.backfill in self._running:
                self._arrivals.open(self._running[found.backfill][0])

    def sweep(
        self, now: float, budget_s: float = 0.2, clock: Clock = perf_counter, *, search: bool = True
    ) -> Iterator[Found]:
        """A whole sweep at once, where nothing happens meanwhile."""
        sweep = self.begin()
        sweep.run(now, budget_s, clock, search=search)
        yield from self.settle(sweep)

    def begin(self) -> Sweep:
        """The next sweep, with what has changed since the last began. One at a time."""
        changes, self._changes = self._changes, _Changes()
        return Sweep(self._side, changes)

    def settle(self, sweep: Sweep, *, holding: bool = False) -> Iterator[Found]:
        """What the sweep found and still holds. The caller carries out each before it asks for the next. `holding`: no
        match is wanted now after all."""
        filled: dict[str, int | None] = {}  # running matches as they are with what this sweep itself has added
        todo = iter(sweep.found)
        try:
            for found in todo:
                try:
                    holds = not holding and self._holds(sweep.versions(found))
                    if holds and self._takes(found.backfill, sweep, filled):
                        yield found
                        if found.backfill is not None:
                            filled[found.backfill] = self._match_version(found.backfill)
                finally:
                    self._put_back(sweep, found)
        finally:
            for found in todo:
                self._put_back(sweep, found)

    def taken(self, several: Iterator[Found]) -> list[Found]:
        """All of them, each carried out by taking its tickets out: for who has no lobbies behind them."""
        found: list[Found] = []
        for one in several:
            for ticket_id in one.ticket_ids:
                self.remove(ticket_id)
            found.append(one)
        return found

    def faults(self) -> Faults:
        """Rules that counted as not met in attempts since the last call though nobody knows, and why. A sweep has its
        own."""
        return self._arrivals.faults()

    def untried(self) -> list[str]:
        """Tickets whose match did not hold, since the last call."""
        again, self._again = self._again, []
        return again

    def abandon(self) -> None:
        """The sweep under way never came back: the next begins with a new matcher and all who wait."""
        self._side = _SweepSide(Matcher(self.mode, self._seed))
        self._changes = _Changes(dict(self._tickets), dict(self._running))

    def _holds(self, versions: dict[str, int]) -> bool:
        return len(self._waiting_of(versions)) == len(versions)

    def _takes(self, match_id: str | None, sweep: Sweep, filled: dict[str, int | None]) -> bool:
        if match_id is None:
            return True
        known = filled.get(match_id, sweep.match_version(match_id))
        return known is not None and known == self._match_version(match_id)

    def _match_version(self, match_id: str) -> int | None:
        return self._running[match_id][1] if match_id in self._running else None

    def _waiting_of(self, versions: dict[str, int]) -> list[str]:
        """Those that wait on as they were."""
        return [name for name, version in versions.items() if self._tickets.get(name, (None, 0))[1] == version]

    def _put_back(self, sweep: Sweep, found: Found) -> None:
        """The sweeps' matcher thinks that these tickets have left, and that the running match has them."""
        waiting = self._waiting_of(sweep.versions(found))
        for name in waiting:
            self._changes.tickets.setdefault(name, self._tickets[name])
        self._again += waiting
        if found.backfill in self._running:
            self._changes.matches.setdefault(found.backfill, self._running[found.backfill])


class _Changes:
    """What the sweeps' matcher has to learn; of each ticket and match only the last word. None: it is gone."""

    def __init__(
        self,
        tickets: dict[str, tuple[Ticket, int] | None] | None = None,
        matches: dict[str, tuple[OpenMatch, int] | None] | None = None,
    ) -> None:
        self.tickets = tickets if tickets is not None else {}
        self.matches = matches if matches is not None else {}


class _SweepSide:
    """The sweeps' own matcher, and which version of everything it has."""

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self.versions: dict[str, int] = {}
        self.match_versions: dict[str, int] = {}
        self._backlog = _Changes()

    def take_in(self, changes: _Changes, over: Callable[[], bool]) -> bool:
        """False: there was no time for all of them; the next sweep goes on."""
        self._backlog.matches.update(changes.matches)
        self._backlog.tickets.update(changes.tickets)
        for match_id, opened in self._backlog.matches.items():
            self._match(match_id, opened)
        self._backlog.matches = {}
        done = 0
        for name, waiting in self._backlog.tickets.items():
            if done % _EVERY == 0 and over():
                break
            self._ticket(name, waiting)
            done += 1
        self._backlog.tickets = dict(islice(self._backlog.tickets.items(), done, None))
        return not self._backlog.tickets

    def _match(self, match_id: str, opened: tuple[OpenMatch, int] | None) -> None:
        if opened is None:
            self.matcher.close(match_id)
            self.match_versions.pop(match_id, None)
        else:
            self.matcher.open(opened[0])
            self.match_versions[match_id] = opened[1]

    def _ticket(self, name: str, waiting: tuple[Ticket, int] | None) -> None:
        if waiting is None:
            self.matcher.remove(name)
            self.versions.pop(name, None)
        else:
            self.matcher.add(waiting[0])
            self.versions[name] = waiting[1]
