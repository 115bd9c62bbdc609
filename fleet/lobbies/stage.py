"""Carries matches into the world: starts their servers, follows them, stops them. One task per match and kind of work.

It is told by effects after each commit, and after a restart by what the books say; all of it may be repeated. A task is
begun again after any error, until the match's state says that nothing is left to do; `repair` begins one for a match
that has none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Literal

import structlog

from fleet.actors.tasks import SupervisedTasks
from fleet.errors import FleetError, TooMany
from fleet.faults import crash_point
from fleet.lobbies.books import Books
from fleet.lobbies.effects import Effect
from fleet.lobbies.game_data import custom_data, server_view
from fleet.lobbies.games import Games
from fleet.lobbies.match import OVER, Match, MatchStatus
from fleet.lobbies.projects import Projects
from fleet.lobbies.world import START_S, World, why_stopped
from fleet.times import now_ms

log = structlog.get_logger(__name__)

_AGAIN_S = 0.5
RETRY_MOST_S = 10.0
_WORK: dict[MatchStatus, Literal["start", "follow", "stop"]] = {
    "starting": "start",
    "active": "follow",
    "ending": "stop",
}


def _here() -> bool:
    return False


class Stage:
    """`commit`: what was changed is on disk, and its effects are on their way. `away`: whether the database is."""

    def __init__(
        self,
        books: Books,
        games: Games,
        projects: Projects,
        world: World,
        commit: Callable[[], Awaitable[None]],
        hold_ms: int,
        away: Callable[[], bool] = _here,
    ) -> None:
        self._books = books
        self._games = games
        self._projects = projects
        self._world = world
        self._commit = commit
        self._hold_ms = hold_ms
        self._away = away
        self._supervised = SupervisedTasks("matches")
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._on_disk: dict[str, MatchStatus] = {}
        self._untold: set[str] = set()
        self._unsure: set[str] = set()  # of these a start may be under way that nobody here waits for

    def resume(self) -> None:
        """After a restart: every match goes on from where its row says it is."""
        self._on_disk = {match.id: match.status for match in self._books.matches.values()}
        self._unsure |= {match_id for match_id, status in self._on_disk.items() if status in _WORK}
        self.repair()

    def committed(self, matches: Mapping[str, MatchStatus]) -> None:
        """These are their statuses on disk."""
        self._on_disk.update(matches)
        for match_id, status in matches.items():
            if status in OVER:
                self._on_disk.pop(match_id, None)

    def repair(self) -> None:
        """Every match that is on disk has the task that its status needs."""
        for match_id, status in list(self._on_disk.items()):
            if status in _WORK and self._match(match_id, status) is not None:
                self.carry_out([Effect(_WORK[status], match_id)])

    def carry_out(self, effects: list[Effect]) -> None:
        """Nothing happens twice at the same time: what is under way already goes on."""
        for effect in effects:
            if effect.kind == "stop" and (follow := self._tasks.get(("follow", effect.match_id))):
                follow.cancel()  # what it has changed is committed by a task of its own
            if effect.kind == "tell":
                self._untold.add(effect.match_id)
            key = (effect.kind, effect.match_id)
            if key not in self._tasks:
                self._begin(effect, key)

    def _begin(self, effect: Effect, key: tuple[str, str]) -> None:
        work = {"start": self._start, "follow": self._follow, "stop": self._stop, "tell": self._tell}[effect.kind]
        task = self._supervised.keep(
            effect.kind, partial(work, effect.match_id), most_s=RETRY_MOST_S, match=effect.match_id
        )
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._done(key))

    def _done(self, key: tuple[str, str]) -> None:
        del self._tasks[key]
        if key[0] == "tell" and key[1] in self._untold and self._match(key[1], "active") is not None:
            self.carry_out([Effect("tell", key[1])])

    async def close(self) -> None:
        await self._supervised.close()

    def _match(self, match_id: str, status: MatchStatus) -> Match | None:
        match = self._books.matches.get(match_id)
        return match if match is not None and match.status == status else None

    # Starting -------------------------------------------------------------------------------------------------------

    async def _start(self, match_id: str) -> None:
        """A server from the first region that has one. Where the answer is unknown the same is asked again."""
        while (match := self._match(match_id, "starting")) is not None:
            if self._away():  # whatever came of it could not be kept
                await asyncio.sleep(_AGAIN_S)
            elif not await self._try_start(match):
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
            log.exception("match_start_failed", match=match.id)
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
        if _passes(error):
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
        current = self._match(match.id, "starting")  # its time may have been lengthened after an outage
        if current is None:
            self._unsure.add(match.id)
            return False
        if current.start_until is not None and now_ms() > current.start_until and not self._away():
            self._unsure.add(match.id)
            self._games.failed(match.id, f"no server in time: {why}", now_ms(), again=True, hold_ms=self._hold_ms)
            await self._commit()
            return False
        await asyncio.sleep(_AGAIN_S)
        return True

    # Following and stopping -----------------------------------------------------------------------------------------

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
            _, waiting = await asyncio.wait([start], timeout=START_S)
            if waiting:
                self._unsure.add(match_id)
        if (match := self._match(match_id, "ending")) is not None:
            crash_point("lobby.stopping")
            await self._world.stop(match, match.detail or "the match is over", sure=match_id not in self._unsure)
            self._unsure.discard(match_id)
            self._games.settled(match_id, now_ms())
            await self._commit()

    async def _tell(self, match_id: str) -> None:
        """The game hears who plays: the latest, however often that has changed meanwhile."""
        while match_id in self._untold:
            match = self._match(match_id, "active")
            self._untold.discard(match_id)
            if match is None:
                return
            config = self._projects.config(match.project_id, match.config)
            data = custom_data(match, self._books.lobbies, config)
            try:
                await self._world.tell(self._projects.principal(match.project_id), match, data)
            except FleetError as error:
                if _passes(error):
                    self._untold.add(match_id)
                    raise
                log.warning("game_not_told", match=match_id, error=error.detail)
            except Exception:
                self._untold.add(match_id)
                raise


def _passes(error: FleetError) -> bool:
    """Whether the same may succeed later: what does not answer, or has too much of this project under way."""
    return error.status >= 500 or isinstance(error, TooMany)
