"""The queues of a shard: for each project, config and mode a `MatchLoop`, and who waits in it.

A loop is made for one version of its mode; when the mode changes it is made anew with the same tickets at the same
places. Times in it are seconds.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from fleet.errors import BadRequest
from fleet.lobbies.model import Lobby, QueueStats
from fleet.lobbies.ratings import RatingBook
from fleet.matchmaking import Faults, Found, MatchLoop, Member, ModeConfig, OpenMatch, Sweep, Ticket, ticket_of
from fleet.matchmaking.turns import Allowance

QueueKey = tuple[str, str, str]  # project, config, mode
ModeOf = Callable[[QueueKey], ModeConfig | None]


@dataclass
class Queue:
    """`waiting`: since when each lobby waits, and how many players it has. Nothing is matched before `held_until`."""

    loop: MatchLoop
    waiting: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    players: int = 0
    waits: deque[float] = field(default_factory=lambda: deque[float](maxlen=50))
    wait_sum: float = 0.0
    held_until: int = 0
    holds: int = 0

    def mean_wait_s(self, now: int) -> float:
        """Of the latest who found a match; while nobody has, of who waits longest. Cheap: every view shows it."""
        return round(self.wait_sum / len(self.waits) if self.waits else self.oldest_s(now), 1)

    def oldest_s(self, now: int) -> float:
        """How long the first has waited."""
        return max((now - next(iter(self.waiting.values()))[0]) / 1000, 0.0) if self.waiting else 0.0

    def waited(self, seconds: float) -> None:
        if len(self.waits) == self.waits.maxlen:
            self.wait_sum -= self.waits[0]
        self.waits.append(seconds)
        self.wait_sum += seconds

    def drop(self, lobby_id: str) -> int | None:
        """Out of the queue; since when it waited."""
        found = self.waiting.pop(lobby_id, None)
        if found is None:
            return None
        self.loop.remove(lobby_id)
        self.players -= found[1]
        return found[0]


def ticket(lobby: Lobby, mode: ModeConfig, ratings: RatingBook) -> Ticket:
    """BadRequest if a player's state does not fit the mode."""
    assert lobby.queued is not None, "it is in a queue"
    of = (lobby.project_id, lobby.config, lobby.queued.mode)
    members: list[Member] = []
    for player in lobby.players:
        state = player.state or {}
        rating = ratings.get((*of, player.id))
        members.append(Member(player.id, state, rating.mu, rating.sigma, _blocked(player.id, state.get("blocked"))))
    return ticket_of(mode, lobby.id, lobby.queued.since / 1000, members)


def _blocked(player_id: str, named: object) -> frozenset[str]:
    if named is None:
        return frozenset()
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):  # pyright: ignore[reportUnknownVariableType]
        raise BadRequest(
            f"Player {player_id[:64]}: 'blocked' should be a list of player ids.", error="Bad player state"
        )
    return frozenset[str](named)  # pyright: ignore[reportUnknownArgumentType]


class Queues:
    def __init__(
        self,
        waited: Callable[[float], None] = lambda _seconds: None,
        unmet: Callable[[QueueKey, Faults], None] = lambda _key, _faults: None,
        postponed: Callable[[], None] = lambda: None,
    ) -> None:
        """`waited` hears how long each ticket that found a match had waited, in seconds; `unmet`, which rules counted
        as not met though nobody knows; `postponed`, that an arriving ticket was left to the sweeps."""
        self._waited = waited
        self._unmet = unmet
        self._postponed = postponed
        self._arrivals: Allowance[str] = Allowance()
        self._queues: dict[QueueKey, Queue] = {}
        self._fresh: list[tuple[QueueKey, str]] = []

    def all(self) -> list[QueueKey]:
        return list(self._queues)

    def __contains__(self, key: QueueKey) -> bool:
        return key in self._queues

    def __getitem__(self, key: QueueKey) -> Queue:
        return self._queues[key]

    def add(self, lobby: Lobby, mode: ModeConfig, ratings: RatingBook) -> None:
        """To its place; `attempts` tries it at once. BadRequest if a player's state does not fit the mode."""
        key = _key(lobby)
        new = ticket(lobby, mode, ratings)
        queue = self._of(key, mode)
        queue.drop(lobby.id)
        queue.loop.add(new)
        assert lobby.queued is not None, "its key says so"
        queue.waiting[lobby.id] = (lobby.queued.since, len(lobby.players))
        queue.players += len(lobby.players)
        self._fresh.append((key, lobby.id))

    def _of(self, key: QueueKey, mode: ModeConfig) -> Queue:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = Queue(MatchLoop(mode))
        elif queue.loop.mode.digest != mode.digest:
            self.renew(key, mode)
        return queue

    def renew(self, key: QueueKey, mode: ModeConfig) -> None:
        """The mode has changed: the same lobbies wait under its new rules."""
        queue = self._queues[key]
        before, queue.loop = queue.loop, MatchLoop(mode)
        for one in before.tickets:
            queue.loop.add(one)
        for match in before.running:
            queue.loop.open(match)

    def forget(self, key: QueueKey) -> None:
        """Its mode is not configured any more, and nobody waits."""
        self._queues.pop(key, None)

    def has(self, lobby: Lobby, key: QueueKey | None = None) -> bool:
        """Whether the lobby waits in its queue, and that is `key` if one is given."""
        if key is not None and key != _key(lobby):
            return False
        queue = self._queues.get(_key(lobby)) if lobby.status == "in_queue" and lobby.queued else None
        return queue is not None and lobby.id in queue.waiting

    def remove(self, lobby: Lobby) -> None:
        """It gave up; no error if it is not there."""
        queue = self._queues.get(_key(lobby))
        if queue is not None:
            queue.drop(lobby.id)

    def take(self, lobby: Lobby, now: int) -> None:
        """It has a match."""
        key = _key(lobby)
        queue = self._queues[key]
        since = queue.drop(lobby.id)
        if since is not None:
            queue.waited((now - since) / 1000)
            self._waited((now - since) / 1000)

    def attempts(self, now: int) -> Iterator[tuple[QueueKey, Found]]:
        """What tickets that came since the last call complete. Each is formed before the next is asked for."""
        fresh, self._fresh = self._fresh, []
        for key, lobby_id in fresh:
            queue = self._queues.get(key)
            if queue is None or lobby_id not in queue.waiting or now < queue.held_until:
                continue
            attempt = self._attempt(key, queue, lobby_id, now)
            try:
                for found in attempt:
                    yield key, found
            finally:
                attempt.close()

    def _attempt(self, key: QueueKey, queue: Queue, lobby_id: str, now: int) -> Generator[Found]:
        """The match that the ticket completes, unless its project's arrivals have used their share up."""
        if not self._arrivals.begin(key[0]):
            self._postponed()
            return
        with closing(queue.loop.attempt(lobby_id, now / 1000)) as attempt:
            found = next(attempt, None)
            self._arrivals.end(key[0])
            if faults := queue.loop.faults():
                self._unmet(key, faults)
            if found is not None:
                yield found

    def settle(self, key: QueueKey, loop: MatchLoop, sweep: Sweep, now: int) -> Iterator[Found]:
        """What a sweep of this loop found and still holds. Each is formed before the next is asked for; tickets of
        those that do not hold are tried again by `attempts`."""
        queue = self._queues.get(key)
        if queue is None or queue.loop is not loop:  # the mode has changed: all wait in the new loop
            return
        if sweep.faults:
            self._unmet(key, sweep.faults)
        yield from loop.settle(sweep, holding=now < queue.held_until)
        self._fresh += [(key, ticket_id) for ticket_id in loop.untried()]

    def hold(self, key: QueueKey, now: int, first_ms: int) -> None:
        """Its matches find no server: the next is made after a while, which doubles up to a minute."""
        queue = self._queues.get(key)
        if queue is not None:
            queue.held_until = now + min(first_ms * 2**queue.holds, 60_000)
            queue.holds += 1

    def served(self, key: QueueKey) -> None:
        """A match of it has found a server."""
        if (queue := self._queues.get(key)) is not None:
            queue.holds = 0

    def stats(self, lobby: Lobby, now: int) -> QueueStats:
        queue = self._queues.get(_key(lobby)) if lobby.queued else None
        if queue is None:
            return QueueStats()
        return QueueStats(queue.players, len(queue.waiting), queue.mean_wait_s(now))

    def lengths(self, now: int) -> list[tuple[int, int, float]]:
        """Per queue: lobbies and players who wait, and for how many seconds the first has."""
        return [(len(queue.waiting), queue.players, queue.oldest_s(now)) for queue in self._queues.values()]

    def open(self, key: QueueKey, mode: ModeConfig, match: OpenMatch) -> None:
        """The running match takes lobbies of this queue; replaces what was known of it."""
        queue = self._of(key, mode)
        queue.loop.open(match)

    def close(self, key: QueueKey, match_id: str) -> None:
        """The running match takes no more lobbies."""
        queue = self._queues.get(key)
        if queue is not None:
            queue.loop.close(match_id)


def _key(lobby: Lobby) -> QueueKey:
    return lobby.project_id, lobby.config, lobby.queued.mode if lobby.queued else ""
