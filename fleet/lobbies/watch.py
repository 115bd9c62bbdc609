"""Live lobbies on a replica: one question under way per shard for all its streams, and a bounded queue for each.

Somebody new who watches makes another question, which says only what is new; the keeper then lets go of the one
before. If a question breaks, or the keeper is new, a new session names all streams with the versions they have: nothing
is missed, and what comes twice is dropped here.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import cast

import structlog

from fleet.actors.tasks import SupervisedTasks
from fleet.lobbies.calls import Answer, Command, News, Poll, Polled, Watched
from fleet.lobbies.model import LobbyEvent, LobbyView, QueueStats

log = structlog.get_logger(__name__)

_AGAIN_S = 0.2
_LINGER_S = 0.005  # newcomers wait so long for company
_POLL_S = 20.0
QUEUE = 256

Ask = Callable[[Poll], Awaitable[Polled]]


class Place:
    """One stream. `full`: its reader was too slow, and what came since is not in it."""

    def __init__(self, lobby_id: str, player_id: str, version: int) -> None:
        self.lobby_id = lobby_id
        self.player_id = player_id
        self.version = version
        self.full = False
        self._news: deque[News | QueueStats] = deque()
        self._wake = asyncio.Event()

    def offer(self, news: News | QueueStats) -> None:
        if isinstance(news, News):
            if news.version <= self.version:
                return
            self.version = news.version
        if len(self._news) >= QUEUE:
            self.full = True
            self._news.clear()
        if not self.full:
            self._news.append(news)
        self._wake.set()

    async def take(self) -> News | QueueStats | None:
        """The next; None: it is full."""
        while not self._news and not self.full:
            self._wake.clear()
            await self._wake.wait()
        return self._news.popleft() if self._news and not self.full else None


class ShardWatch:
    """`ask` is the keeper's `poll`."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._places: dict[str, set[Place]] = {}
        self._opened: list[Place] = []
        self._closed: list[tuple[str, str]] = []
        self._session: str | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self._tasks = SupervisedTasks("lobby_streams")
        self._ended = False
        self._scheduled = False

    def join(self, place: Place) -> None:
        self._places.setdefault(place.lobby_id, set()).add(place)
        if self._session is not None:
            self._opened.append(place)
        self._schedule(_LINGER_S)

    def leave(self, place: Place) -> None:
        places = self._places.get(place.lobby_id, set())
        places.discard(place)
        if not places:
            self._places.pop(place.lobby_id, None)
        if place in self._opened:
            self._opened.remove(place)
        elif self._session is not None:
            self._closed.append((place.lobby_id, place.player_id))
        self._schedule(_LINGER_S)

    async def close(self) -> None:
        self._ended = True
        await self._tasks.close()

    def _schedule(self, delay_s: float) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_later(delay_s, self._start)

    def _start(self) -> None:
        self._scheduled = False
        if self._ended or (not self._places and not self._closed):
            return
        task = self._tasks.once("ask", self._carry(self._question()))  # `_answered` asks again
        self._asking.add(task)
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        """The last question is answered: the next one. Two may end in one turn of the loop, so it is counted here."""
        self._asking.discard(task)
        if self._places and not self._asking and not task.cancelled():
            self._schedule(0)

    def _question(self) -> Poll:
        first = self._session is None
        if first:
            self._session = secrets.token_hex(8)
            self._opened = [place for places in self._places.values() for place in places]
            self._closed = []
        opened = tuple(Watched(place.lobby_id, place.player_id, place.version) for place in self._opened)
        closed, self._opened, self._closed = tuple(self._closed), [], []
        assert self._session is not None, "it was just made"
        return Poll(self._session, first, opened, closed, _POLL_S if self._places else 0.0)

    async def _carry(self, poll: Poll) -> None:
        try:
            answer = await self._ask(poll)
        except Exception as error:
            log.warning("lobbies_not_heard_of", error=getattr(error, "detail", repr(error)))
            await asyncio.sleep(_AGAIN_S)
            answer = Polled(known=False)
        if not answer.known:
            if self._session == poll.session:
                self._session = None
                self._schedule(0)
            return
        for news in answer.news:
            self._hand_out(news.lobby_id, news)
        for lobby_id, stats in answer.stats:
            self._hand_out(lobby_id, stats)

    def _hand_out(self, lobby_id: str, news: News | QueueStats) -> None:
        for place in self._places.get(lobby_id, ()):
            place.offer(news)


def event_id(lobby_id: str, version: int) -> str:
    return f"{lobby_id}:{version}"


def parse_event_id(given: str | None) -> tuple[str, int] | None:
    """Lobby and version; None for what is not one of ours."""
    lobby_id, colon, version = (given or "").rpartition(":")
    if not colon or not version.isascii() or not version.isdecimal() or len(version) > 18:
        return None
    return lobby_id, int(version)


class Watch:
    """`LobbyFeed` over the keepers."""

    def __init__(
        self,
        command: Callable[[Command], Awaitable[Answer]],
        poll: Callable[[int, Poll], Awaitable[Polled]],
        shard_of: Callable[[str], int],
    ) -> None:
        self._command = command
        self._poll = poll
        self._shard_of = shard_of
        self._shards: dict[int, ShardWatch] = {}

    async def close(self) -> None:
        for shard in self._shards.values():
            await shard.close()

    def _shard(self, project_id: str) -> ShardWatch:
        number = self._shard_of(project_id)
        if number not in self._shards:
            self._shards[number] = ShardWatch(lambda poll: self._poll(number, poll))
        return self._shards[number]

    async def follow(
        self, project_id: str, config: str, player_id: str, last_event_id: str | None = None
    ) -> AsyncGenerator[LobbyEvent]:
        lobby = await self._begin(project_id, config, player_id, last_event_id)
        shard, place = self._shard(project_id), Place(lobby.id, player_id, lobby.version)
        shard.join(place)
        try:
            yield _event("connected", lobby)
            while (news := await place.take()) is not None:
                if isinstance(news, QueueStats):
                    yield LobbyEvent("queue_stats", lobby.id, stats=news)
                elif news.lobby is None:
                    yield LobbyEvent("lobby_deleted", lobby.id, event_id(lobby.id, news.version))
                    return
                elif not news.lobby.has(player_id):
                    return
                else:
                    yield _event("lobby_updated", news.lobby)
        finally:
            shard.leave(place)

    async def _begin(self, project_id: str, config: str, player_id: str, last_event_id: str | None) -> LobbyView:
        """The lobby as the reader left it, if that and all since is known; else as it is."""
        now = cast(LobbyView, await self._command(Command("mine", project_id, config, player_id)))
        seen = parse_event_id(last_event_id)
        if seen is None or seen[0] != now.id or seen[1] >= now.version:
            return now
        asked = Command("at_version", project_id, config, player_id, seen)
        then = cast(LobbyView, await self._command(asked))
        return then if then.has(player_id) else now


def _event(kind: "str", lobby: LobbyView) -> LobbyEvent:
    return LobbyEvent(kind, lobby.id, event_id(lobby.id, lobby.version), lobby=lobby)  # pyright: ignore[reportArgumentType]
