"""What a keeper counts for Prometheus. Labels are bounded: shard, status, outcome. Never ids, nor names of modes."""

from collections import Counter as Count
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric

from fleet.lobbies.match import Match
from fleet.lobbies.model import Lobby
from fleet.telemetry.families import gauge, without_created

WAIT_BUCKETS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
WORK_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)


@dataclass(frozen=True, slots=True)
class KeeperSample:
    """The shard now. `queued`: per queue, tickets, players and for how many seconds its first has waited."""

    lobbies: Iterable[Lobby] = ()
    matches: Iterable[Match] = ()
    queued: Iterable[tuple[int, int, float]] = ()
    streams: int = 0


def starting(shard: int) -> Metric:
    """What a keeper tells that has not come up yet."""
    return gauge("fleet_lobbies_up", "1 while the keeper of the shard answers.", {(str(shard),): 0.0}, ("shard",))


class KeeperMetrics:
    """One per keeper. `sample` is called once for each `collect()`."""

    def __init__(self, shard: int, sample: Callable[[], KeeperSample] = KeeperSample) -> None:
        self._shard = str(shard)
        self._sample = sample
        self._registry = CollectorRegistry()
        self._commands = self._counter("fleet_lobby_commands", "Calls of players, by what came of them.", "outcome")
        self._unmet = self._counter(
            "fleet_rules_not_met", "Matchmaking rules that were not evaluated and count as not met.", "why"
        )
        self._postponed = Counter(
            "fleet_arrivals_postponed",
            "Arriving tickets left to the sweeps, since their project's arrivals took their share of the keeper.",
            ("shard",),
            registry=self._registry,
        )
        self._matches = self._counter("fleet_matches_over", "Matches, by how they ended.", "outcome")
        self._wait = self._histogram("fleet_queue_wait_seconds", "From queueing to a match, each ticket.", WAIT_BUCKETS)
        self._sweep = self._histogram("fleet_queue_sweep_seconds", "One look through a whole queue.", WORK_BUCKETS)
        self._commit = self._histogram("fleet_lobby_commit_seconds", "Time of one group commit.", WORK_BUCKETS)

    def _counter(self, name: str, meaning: str, label: str) -> Counter:
        return Counter(name, meaning, ("shard", label), registry=self._registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, meaning, ("shard",), buckets=buckets, registry=self._registry)

    # What the keeper tells ------------------------------------------------------------------------------------------

    def command(self, outcome: str) -> None:
        """`done`, `refused` (4xx) or `failed` (a fault of ours)."""
        self._commands.labels(self._shard, outcome).inc()

    def match(self, outcome: str) -> None:
        """`ended` after a server was had, or `failed` before."""
        self._matches.labels(self._shard, outcome).inc()

    def rule_not_met(self, why: str) -> None:
        """`refused`, `lobby_too_large`, `stopped` or `look_too_long`; once for a sweep or an attempt."""
        self._unmet.labels(self._shard, why).inc()

    def postponed(self) -> None:
        self._postponed.labels(self._shard).inc()

    def waited(self, seconds: float) -> None:
        self._wait.labels(self._shard).observe(max(0.0, seconds))

    def swept(self, seconds: float) -> None:
        self._sweep.labels(self._shard).observe(seconds)

    def committed(self, seconds: float, _statements: int) -> None:
        """What `GroupCommit` tells of each commit."""
        self._commit.labels(self._shard).observe(seconds)

    # What a scrape reads --------------------------------------------------------------------------------------------

    def collect(self) -> list[Metric]:
        """Every family with its samples; picklable."""
        return [without_created(family) for family in [*self._registry.collect(), *self._gauges(self._sample())]]

    def _gauges(self, now: KeeperSample) -> list[Metric]:
        lobbies, players = Count[str](), 0
        for lobby in now.lobbies:
            lobbies[lobby.status] += 1
            players += len(lobby.players)
        queued = list(now.queued)
        plain = {
            "fleet_lobbies_up": ("1 while the keeper of the shard answers.", 1),
            "fleet_lobby_players": ("Players in lobbies.", players),
            "fleet_lobby_streams": ("Streams of lobbies that are open.", now.streams),
            "fleet_queue_tickets": ("Lobbies that wait for a match.", sum(tickets for tickets, _, _ in queued)),
            "fleet_queue_players": ("Players who wait for a match.", sum(waiting for _, waiting, _ in queued)),
            "fleet_queue_oldest_seconds": ("How long the first has waited.", max((s for _, _, s in queued), default=0)),
        }
        mine = (self._shard,)
        by_status = {"fleet_lobbies": lobbies, "fleet_matches": Count(match.status for match in now.matches)}
        meanings = {"fleet_lobbies": "Live lobbies.", "fleet_matches": "Matches that are not over."}
        return [
            *(gauge(name, meaning, {mine: value}, ("shard",)) for name, (meaning, value) in plain.items()),
            *(
                gauge(name, meanings[name], {(*mine, s): n for s, n in counts.items()}, ("shard", "status"))
                for name, counts in by_status.items()
            ),
        ]
