"""Running intervals from a server's journal. Pure.

A server runs from each `running` entry to the next entry that says it does not: a restart or crash (back to `queued`),
or its end (`stopping`, `stopped`). A pool server is idle until the first `claimed` entry, used from then on, whatever
restarts follow. Clocks of nodes and managers differ by milliseconds, so an end may lie before its beginning: the
interval is then empty.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from fleet.store.tables import ServerEvent

Kind = Literal["used", "idle"]
HOUR_MS = 3_600_000

_STARTING = {"queued", "placed", "preparing", "creating", "booting"}
_ENDS = frozenset(_STARTING | {"restarting", "restart_requested", "stopping", "stopped"})
LIFE = frozenset({"running", "claimed"}) | _ENDS  # the entries that usage follows from


class Facts(NamedTuple):
    """What does not change about a server."""

    project_id: str
    region: str
    size: str
    pool: bool


class Interval(NamedTuple):
    """Time of one price: [start, end) in milliseconds."""

    facts: Facts
    kind: Kind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Run:
    """Where a server's story stands. `since`: it runs since then."""

    since: int | None = None
    idle: bool = False
    claimed: bool = False

    def open(self, facts: Facts, now: int) -> Interval | None:
        """The interval that has not ended, up to now."""
        if self.since is None:
            return None
        return Interval(facts, "idle" if self.idle else "used", self.since, max(self.since, now))


def step(run: Run, facts: Facts, type: str, at: int) -> tuple[Run, Interval | None]:
    """One entry of the journal: how the story goes on, and the interval that it ends."""
    if type == "running" and run.since is None:
        return replace(run, since=at, idle=facts.pool and not run.claimed), None
    if type == "claimed":
        ended = run.open(facts, at) if run.idle else None
        since = ended.end if ended else run.since
        return Run(since, False, True), ended
    if type in _ENDS and run.since is not None:
        return replace(run, since=None, idle=False), run.open(facts, at)
    return run, None


def tell(facts: Facts, entries: Iterable[ServerEvent], run: Run | None = None) -> tuple[Run, list[Interval]]:
    """A server's entries in the journal's order, from a state on: the state after them, and what they ended."""
    run = run or Run()
    found: list[Interval] = []
    for entry in entries:
        run, ended = step(run, facts, entry.type, entry.at)
        if ended is not None:
            found.append(ended)
    return run, found


def hours(start: int, end: int) -> Iterator[tuple[int, int]]:
    """(hour's beginning, milliseconds in it) of an interval; the parts sum up to it exactly."""
    while start < end:
        hour = start - start % HOUR_MS
        until = min(hour + HOUR_MS, end)
        yield hour, until - start
        start = until
