"""The keeper without its actor: commands in, commits, answers out; deadlines; what is told to replicas.

Order, as in the region's manager: change the books in memory, commit with whatever else waits, and only then answer,
tell the streams, arm the timers, and act in the world.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from sqlmodel import col, select

from fleet.errors import FleetError
from fleet.faults import crash_point
from fleet.lobbies.books import Books
from fleet.lobbies.calls import Answer, Command, Poll, Polled
from fleet.lobbies.desk import Caller, Desk
from fleet.lobbies.feed import Feed
from fleet.lobbies.games import Games
from fleet.lobbies.healer import Healer
from fleet.lobbies.matches import Matches, MatchTerms
from fleet.lobbies.metrics import KeeperMetrics, KeeperSample
from fleet.lobbies.model import Lobby, LobbyView
from fleet.lobbies.names import new_match_id
from fleet.lobbies.presence import Presence
from fleet.lobbies.projects import Projects
from fleet.lobbies.queues import Queues
from fleet.lobbies.ratings import RatingBook
from fleet.lobbies.rows import lobby_of, match_of
from fleet.lobbies.stage import Stage
from fleet.lobbies.sweeper import Sweeper
from fleet.lobbies.views import view_of
from fleet.lobbies.world import World
from fleet.settings import LobbySettings
from fleet.store.commit import GroupCommit
from fleet.store.engine import Store
from fleet.store.lobby_tables import Lobby as LobbyRow
from fleet.store.lobby_tables import Match as MatchRow
from fleet.times import now_ms

log = structlog.get_logger(__name__)

# Methods after which the player is in no lobby, or that are no player's.
_NO_SIGN = ("leave", "delete", "get", "at_version")


class Core:
    def __init__(self, shard: int, settings: LobbySettings, store: Store, commits: GroupCommit, world: World) -> None:
        self.shard = shard
        self.settings = settings
        self.store = store
        self.commits = commits
        self.projects = Projects(store)
        self.books = Books(shard)
        self.metrics = KeeperMetrics(shard, self._sample)
        self.queues = Queues(self.metrics.waited)
        self.ratings = RatingBook()
        self.presence = Presence(now_ms())
        self._gathering: asyncio.Task[None] | None = None
        self._committing = asyncio.Lock()
        terms = MatchTerms(int(settings.start_s * 1000), int(settings.requeue_s * 1000), int(settings.hold_s * 1000))
        config = self.projects.config
        self.matches = Matches(self.books, self.queues, self.ratings, config, new_match_id, terms)
        self.games = Games(self.books, self.matches, self.queues, self.ratings)
        self.desk = Desk(self.books, self.matches, self.games, config, secrets.randbelow)
        self.stage = Stage(self.books, self.games, self.projects, world, self.commit, terms.hold_ms)
        self.feed = Feed(self.books.lobbies, self.presence, self._view, self._stats, self._silent, now_ms)
        self.healer = Healer(self, int(settings.host_grace_s * 1000))
        self.sweeper = Sweeper(self, world)

    # Life -----------------------------------------------------------------------------------------------------------

    async def load(self, shards: Callable[[str], int]) -> None:
        """The rows of this shard's projects; whatever was under way goes on. `shards` gives a project's shard."""
        async with self.store.read() as session:
            projects = set((await session.exec(select(LobbyRow.project_id).distinct())).all())
            live = select(MatchRow).where(col(MatchRow.status).not_in(("ended", "failed")))
            matches = [
                match_of(row) for row in (await session.exec(live)).all() if shards(row.project_id) == self.shard
            ]
            mine = [project for project in projects if shards(project) == self.shard]
            rows: list[LobbyRow] = []
            for project in mine:
                rows += (await session.exec(select(LobbyRow).where(col(LobbyRow.project_id) == project))).all()
        self.books.load([lobby_of(row) for row in rows], matches)
        await self.projects.refresh([*mine, *(match.project_id for match in matches)])
        queued = [lobby for lobby in self.books.lobbies.values() if lobby.status == "in_queue"]
        await self.ratings.load(self.store, (of for lobby in queued for of in _players(lobby)))
        self.healer.after_restart(now_ms())
        await self.commit()
        self.stage.resume()
        self.healer.arm(self.books.lobbies)
        self.healer.arm_matches(self.books.matches)
        self.sweeper.begin()

    async def close(self) -> None:
        await self.sweeper.close()
        await self.healer.close()
        await self.stage.close()

    # What replicas call ---------------------------------------------------------------------------------------------

    async def commands(self, commands: list[Command]) -> list[Answer]:
        """Answers in order, each once the effect of its command is on disk."""
        await self.projects.refresh(command.project_id for command in commands)
        await self.ratings.load(self.store, (of for command in commands for of in self._rated(command)))
        now = now_ms()
        answers = [self._answer(command, now) for command in commands]
        crash_point("lobby.decided")
        await self.commit()
        crash_point("lobby.committed")
        return answers

    def _rated(self, command: Command) -> Iterable[tuple[str, str, str, str]]:
        """Of whom the ratings are needed."""
        lobby = self.books.of_player(command.project_id, command.config, command.player_id)
        if lobby is None:
            return ()
        if command.method == "start_matchmaking":
            return _players(lobby, command.arguments[0])
        match = self.books.matches.get(lobby.match_id or "")
        if command.method != "end_match" or match is None:
            return ()
        return [of for one in self.matches.lobbies(match) for of in _players(one, match.mode)]

    def _answer(self, command: Command, now: int) -> Answer:
        try:
            self.projects.principal(command.project_id)
            lobby = self._carry_out(command, now)
        except FleetError as error:
            self.metrics.command("refused")
            return error
        except Exception as error:
            self.metrics.command("failed")
            log.exception("a command broke", method=command.method, project=command.project_id)
            return FleetError(f"The keeper could not do this: {error!r}")
        self.metrics.command("done")
        if lobby is None:
            return None
        if command.method not in _NO_SIGN:
            self.presence.sign(lobby.id, command.player_id, now)
        view = self._view(lobby)
        self.matches.try_fresh(now)  # comes after what is answered here
        return view

    def _carry_out(self, command: Command, now: int) -> Lobby | None:
        arguments: tuple[Any, ...] = command.arguments
        if command.method == "get":
            return self.desk.get(command.project_id, command.config, arguments[0])
        if command.method == "at_version":
            lobby = self.desk.get(command.project_id, command.config, arguments[0])
            return self.feed.as_it_was(lobby.id, arguments[1]) or lobby
        caller = Caller(command.project_id, command.config, command.player_id, command.again)
        return getattr(self.desk, command.method)(caller, now, *arguments)

    async def poll(self, poll: Poll) -> Polled:
        return await self.feed.poll(poll)

    # Committing -----------------------------------------------------------------------------------------------------

    async def commit(self) -> None:
        """What has changed so far is on disk; then streams, timers and the world know."""
        if self._gathering is None:
            self._gathering = asyncio.create_task(self._commit())
        await asyncio.shield(self._gathering)

    async def _commit(self) -> None:
        """One at a time, so that whatever changes meanwhile goes together in the next: in one statement per table."""
        async with self._committing:
            self._gathering = None
            batch = self.books.take()
            effects, self.matches.effects = self.matches.effects, []
            await self.commits.submit(batch.statements)
            for outcome in batch.over:
                self.metrics.match(outcome)
            self.feed.tell(batch.told)
            self.healer.arm({told.lobby_id for told in batch.told})
            self.healer.arm_matches(batch.matches)
            self.stage.carry_out(effects)

    # What is shown --------------------------------------------------------------------------------------------------

    def _view(self, lobby: Lobby) -> LobbyView:
        return view_of(lobby, self._stats(lobby))

    def _stats(self, lobby: Lobby):
        return self.queues.stats(lobby, now_ms())

    def _sample(self) -> KeeperSample:
        return KeeperSample(
            self.books.lobbies.values(),
            self.books.matches.values(),
            self.queues.lengths(now_ms()),
            self.presence.streams,
        )

    def _silent(self, lobby_id: str) -> None:
        if lobby_id in self.books.lobbies:
            self.healer.arm([lobby_id])
        else:
            self.presence.forget(lobby_id)


def _players(lobby: Lobby, mode: str | None = None) -> list[tuple[str, str, str, str]]:
    name = mode if mode is not None else (lobby.queued.mode if lobby.queued else "")
    return [(lobby.project_id, lobby.config, name, player.id) for player in lobby.players]
