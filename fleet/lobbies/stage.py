"""Carries matches into the world: starts their servers, follows them, stops them. One task per match and kind of work.

It is told by effects after each commit, and after a restart by what the books say; all of it may be repeated.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from fleet.background import Background
from fleet.errors import FleetError
from fleet.faults import crash_point
from fleet.lobbies.books import Books
from fleet.lobbies.effects import Effect
from fleet.lobbies.game_data import custom_data, server_view
from fleet.lobbies.games import Games
from fleet.lobbies.match import Match
from fleet.lobbies.projects import Projects
from fleet.lobbies.world import World, why_stopped
from fleet.times import now_ms

log = structlog.get_logger(__name__)

_AGAIN_S = 0.5
_WORK = {"starting": "start", "active": "follow", "ending": "stop"}


class Stage:
    """`commit`: what was changed is on disk, and its effects are on their way."""

    def __init__(
        self,
        books: Books,
        games: Games,
        projects: Projects,
        world: World,
        commit: Callable[[], Awaitable[None]],
        hold_ms: int,
    ) -> None:
        self._books = books
        self._games = games
        self._projects = projects
        self._world = world
        self._commit = commit
        self._hold_ms = hold_ms
        self._background = Background("stage")
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._unsure: set[str] = set()  # of these a start may be under way that nobody here waits for

    def resume(self) -> None:
        """After a restart: every match goes on from where its row says it is."""
        for match in list(self._books.matches.values()):
            if match.status != "found":
                self._unsure.add(match.id)
                self.carry_out([Effect(_WORK[match.status], match.id)])  # pyright: ignore[reportArgumentType]

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if effect.kind == "stop" and (follow := self._tasks.get(("follow", effect.match_id))):
                follow.cancel()
            key = (effect.kind, effect.match_id)
            if key not in self._tasks or effect.kind == "tell":
                work = {"start": self._start, "follow": self._follow, "stop": self._stop, "tell": self._tell}
                task = self._background.spawn(
                    work[effect.kind](effect.match_id), kind=effect.kind, match=effect.match_id
                )
                self._tasks[key] = task
                task.add_done_callback(lambda done, key=key: self._done(key, done))

    def _done(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]

    async def close(self) -> None:
        await self._background.close()

    def _match(self, match_id: str, status: str) -> Match | None:
        match = self._books.matches.get(match_id)
        return match if match is not None and match.status == status else None

    async def _start(self, match_id: str) -> None:
        """A server from the first region that has one. Where the answer is unknown the same is asked again."""
        while (match := self._match(match_id, "starting")) is not None:
            if not await self._try_start(match):
                return

    async def _try_start(self, match: Match) -> bool:
        """Whether to try again."""
        try:
            await self._projects.refresh([match.project_id])
            caller = self._projects.principal(match.project_id)
            config = self._projects.config(match.project_id, match.config)
            if self._match(match.id, "starting") is None:
                return False
            data = custom_data(match, self._books.lobbies, config)
            server = await self._world.start(caller, match, config, data)
        except FleetError as error:
            return await self._refused(match, error)
        except Exception as error:  # the database restarts, for one: whether a server came of it is unknown
            log.exception("start of a match's server broke", match=match.id)
            return await self._broke(match, repr(error))
        self._unsure.discard(match.id)
        self._games.started(match.id, server_view(server), now_ms())
        if server.status == "stopped":
            self._games.server_stopped(match.id, why_stopped(server), now_ms())
        await self._commit()
        crash_point("lobby.active")
        return False

    async def _refused(self, match: Match, error: FleetError) -> bool:
        """Whether to try again: elsewhere if the region has no room, there if its answer is unknown."""
        if error.status >= 500:
            return await self._broke(match, error.detail)
        full = error.status == 409
        if full and self._games.next_region(match.id, now_ms()):
            await self._commit()
            return True
        self._unsure.discard(match.id)
        self._games.failed(match.id, f"no server: {error.detail}", now_ms(), again=full, hold_ms=self._hold_ms)
        await self._commit()
        return False

    async def _broke(self, match: Match, why: str) -> bool:
        if match.start_until is not None and now_ms() > match.start_until:
            self._unsure.add(match.id)
            self._games.failed(match.id, f"no server in time: {why}", now_ms(), again=True, hold_ms=self._hold_ms)
            await self._commit()
            return False
        await asyncio.sleep(_AGAIN_S)
        return True

    async def _follow(self, match_id: str) -> None:
        while (match := self._match(match_id, "active")) is not None:
            server = await self._world.changed(match)
            if self._match(match_id, "active") is None:
                return
            if server is None or server.status == "stopped":
                why = why_stopped(server) if server is not None else "it is gone"
                self._games.server_stopped(match_id, why, now_ms())
            else:
                self._games.server_changed(match_id, server_view(server), now_ms())
            await self._commit()

    async def _stop(self, match_id: str) -> None:
        """Once a start that is under way has its answer, since it may be a server."""
        start = self._tasks.get(("start", match_id))
        if start is not None:
            await asyncio.wait([start])
        if (match := self._match(match_id, "ending")) is not None:
            crash_point("lobby.stopping")
            await self._world.stop(match, match.detail or "the match is over", sure=match_id not in self._unsure)
            self._unsure.discard(match_id)
            self._games.settled(match_id, now_ms())
            await self._commit()

    async def _tell(self, match_id: str) -> None:
        match = self._match(match_id, "active")
        if match is None:
            return
        config = self._projects.config(match.project_id, match.config)
        data = custom_data(match, self._books.lobbies, config)
        try:
            await self._world.tell(self._projects.principal(match.project_id), match, data)
        except FleetError as error:
            log.warning("a game was not told who plays", match=match_id, error=error.detail)
