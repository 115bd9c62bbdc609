"""The keeper's side of live lobbies: recent changes of each, and who wants to hear of them.

A replica asks one question for all its streams and is answered with the first news. Its next question, or one that
takes the place of an unanswered one, says only which streams came and went. What was handed to a session is counted in
versions, so nothing is told twice; a replica that did not get an answer begins a new session with the versions it has.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fleet.lobbies.books import Told
from fleet.lobbies.calls import News, Poll, Polled, Watched
from fleet.lobbies.model import Lobby, LobbyView, QueueStats
from fleet.lobbies.presence import Presence

RING = 32
GONE_S = 60.0  # so long it is known that a lobby was
SILENT_S = 60.0  # then a replica's session is over


@dataclass
class _Session:
    streams: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])  # lobby -> player -> streams
    handed: dict[str, int] = field(default_factory=dict[str, int])
    news: set[str] = field(default_factory=set[str])
    stats: set[str] = field(default_factory=set[str])
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0  # questions so far; only the newest waits
    polling: int = 0
    heard_at: float = field(default_factory=time.monotonic)


class Feed:
    def __init__(
        self,
        lobbies: dict[str, Lobby],
        presence: Presence,
        view: Callable[[Lobby], LobbyView],
        stats: Callable[[Lobby], QueueStats],
        silent: Callable[[str], None],
        now: Callable[[], int],
    ) -> None:
        """`silent(lobby_id)` hears when a player's last stream of it has closed."""
        self._lobbies = lobbies
        self._presence = presence
        self._view = view
        self._stats = stats
        self._silent = silent
        self._now = now
        self._rings: dict[str, deque[Told]] = {}
        self._sessions: dict[str, _Session] = {}
        self._watchers: dict[str, set[str]] = {}  # lobby -> sessions

    def tell(self, told: Iterable[Told]) -> None:
        """These changes are on disk."""
        for one in told:
            ring = self._rings.get(one.lobby_id)
            if ring is None:
                ring = self._rings[one.lobby_id] = deque(maxlen=RING)
            ring.append(one)
            if one.lobby is None:
                asyncio.get_running_loop().call_later(GONE_S, self._rings.pop, one.lobby_id, None)
            for name in self._watchers.get(one.lobby_id, ()):
                session = self._sessions[name]
                session.news.add(one.lobby_id)
                session.wake.set()

    def as_it_was(self, lobby_id: str, version: int) -> Lobby | None:
        """The lobby at a version from which everything since is known too."""
        for told in self._rings.get(lobby_id, ()):
            if told.version == version:
                return told.lobby
        lobby = self._lobbies.get(lobby_id)
        return lobby if lobby is not None and lobby.version == version else None

    def tell_stats(self) -> None:
        """Whoever watches a lobby in a queue hears of the queue."""
        for session in self._sessions.values():
            found = {name for name in session.streams if self._queued(name)}
            if found:
                session.stats |= found
                session.wake.set()

    def _queued(self, lobby_id: str) -> bool:
        lobby = self._lobbies.get(lobby_id)
        return lobby is not None and lobby.status == "in_queue"

    async def poll(self, poll: Poll) -> Polled:
        """The first news of what the session watches, or nothing at the timeout or when it asks again."""
        session = self._sessions.get(poll.session)
        if session is None:
            if not poll.first:
                return Polled(known=False)
            session = self._sessions[poll.session] = _Session()
        self._open(poll.session, session, poll.opened)
        self._close(poll.session, session, poll.closed)
        session.asked += 1
        mine = session.asked
        session.wake.set()  # an older question ends
        session.polling += 1
        try:
            async with asyncio.timeout(poll.timeout_s):
                while mine == session.asked and not (session.news or session.stats):
                    session.wake.clear()
                    await session.wake.wait()
        except TimeoutError:
            pass
        finally:
            session.polling -= 1
            session.heard_at = time.monotonic()
        return self._collect(session)

    def _collect(self, session: _Session) -> Polled:
        news = [one for name in session.news for one in self._news(session, name)]
        lobbies = [(name, self._lobbies.get(name)) for name in session.stats]
        stats = [(name, self._stats(lobby)) for name, lobby in lobbies if lobby is not None]
        session.news, session.stats = set(), set()
        return Polled(True, news, stats)

    def _news(self, session: _Session, lobby_id: str) -> list[News]:
        """What came after what the session has; where that is not known step by step, the lobby as it is."""
        have = session.handed.get(lobby_id)
        if have is None:
            return []
        ring = self._rings.get(lobby_id, ())
        found = [told for told in ring if told.version > have]
        if not found or found[0].version > have + 1:
            lobby = self._lobbies.get(lobby_id)
            if lobby is None:
                found = [Told(lobby_id, have + 1, None)]
            else:
                found = [Told(lobby_id, lobby.version, lobby)] if lobby.version > have else []
        if found:
            session.handed[lobby_id] = found[-1].version
        return [News(lobby_id, told.version, self._view(told.lobby) if told.lobby else None) for told in found]

    def _open(self, name: str, session: _Session, opened: Iterable[Watched]) -> None:
        for one in opened:
            players = session.streams.setdefault(one.lobby_id, {})
            players[one.player_id] = players.get(one.player_id, 0) + 1
            session.handed[one.lobby_id] = min(session.handed.get(one.lobby_id, one.version), one.version)
            session.news.add(one.lobby_id)
            self._watchers.setdefault(one.lobby_id, set()).add(name)
            self._presence.opened(one.lobby_id, one.player_id)

    def _close(self, name: str, session: _Session, closed: Iterable[tuple[str, str]]) -> None:
        for lobby_id, player_id in closed:
            players = session.streams.get(lobby_id, {})
            if player_id not in players:
                continue
            players[player_id] -= 1
            if not players[player_id]:
                del players[player_id]
            if not players:
                self._unwatch(name, session, lobby_id)
            self._gone(lobby_id, player_id)

    def _unwatch(self, name: str, session: _Session, lobby_id: str) -> None:
        session.streams.pop(lobby_id, None)
        session.handed.pop(lobby_id, None)
        watchers = self._watchers[lobby_id]
        watchers.discard(name)
        if not watchers:
            del self._watchers[lobby_id]

    def _gone(self, lobby_id: str, player_id: str) -> None:
        if self._presence.closed(lobby_id, player_id, self._now()):
            self._silent(lobby_id)

    def end_silent(self) -> None:
        """Replicas that ask no more are gone, and their streams with them."""
        late = time.monotonic() - SILENT_S
        for name, session in list(self._sessions.items()):
            if not session.polling and session.heard_at < late:
                self._end(name, session)

    def _end(self, name: str, session: _Session) -> None:
        streams = [
            (lobby, player)
            for lobby, players in session.streams.items()
            for player, count in players.items()
            for _ in range(count)
        ]
        self._close(name, session, streams)
        del self._sessions[name]
