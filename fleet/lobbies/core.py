"""The keeper without its actor: commands in, commits, answers out; deadlines; what is told to replicas.

Order, as in the region's manager: change the books in memory, commit with whatever else waits, and only then answer,
tell the streams, arm the timers, and act in the world.

While the database is away nothing is decided: commands that change something are refused before they do, deadlines and
sweeps wait, and what is only looked at is shown as it is on disk. Afterwards nobody is held to a time in which they
could not act (`_excuse`).
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from sqlmodel import col, select

from fleet.actors.health import process_health
from fleet.actors.tasks import SupervisedTasks
from fleet.errors import FleetError, NotFound, Unavailable
from fleet.faults import crash_point
from fleet.lobbies.books import Batch, Books
from fleet.lobbies.calls import Answer, Command, Poll, Polled
from fleet.lobbies.desk import Caller, Desk
from fleet.lobbies.effects import Effect
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
from fleet.lobbies.unmet import Unmet
from fleet.lobbies.views import view_of
from fleet.lobbies.world import World
from fleet.settings import LobbySettings
from fleet.store.commit import GroupCommit
from fleet.store.engine import DATABASE_UNAVAILABLE, Store
from fleet.store.lobby_tables import MATCH_NOT_OVER
from fleet.store.lobby_tables import Lobby as LobbyRow
from fleet.store.lobby_tables import Match as MatchRow
from fleet.times import now_ms

log = structlog.get_logger(__name__)

# Methods after which the player is in no lobby, or that are no player's.
_NO_SIGN = ("leave", "delete", "get", "at_version")
# Methods that change nothing.
_LOOKS = ("get", "mine", "at_version")

PREPARE_S = 20.0  # for what the database must tell before commands are decided
LAG_S = 5.0  # a commit that has waited so long, or took so long: the database is, or was, away
FROZEN_MS = 30_000  # nothing has run here for so long: calls and deadlines stood still too


class Core:
    def __init__(self, shard: int, settings: LobbySettings, store: Store, commits: GroupCommit, world: World) -> None:
        self.shard = shard
        self.settings = settings
        self.store = store
        self.commits = commits
        self.projects = Projects(store)
        self.books = Books(shard)
        self.metrics = KeeperMetrics(shard, self._sample)
        self.unmet = Unmet(self.books.note, self.metrics.rule_not_met)
        self.queues = Queues(self.metrics.waited, self.unmet.heard, self.metrics.postponed)
        self.ratings = RatingBook()
        self.presence = Presence(now_ms())
        self._beat = now_ms()
        self._unread_since: int | None = None
        self._on_disk: dict[str, Lobby] = {}
        self._tasks = SupervisedTasks("lobby_core", shard=shard)
        self._gathering: asyncio.Task[None] | None = None
        self._committing = asyncio.Lock()
        terms = MatchTerms(int(settings.start_s * 1000), int(settings.requeue_s * 1000), int(settings.hold_s * 1000))
        config = self.projects.config
        self.matches = Matches(self.books, self.queues, self.ratings, config, new_match_id, terms)
        self.games = Games(self.books, self.matches, self.queues, self.ratings)
        self.desk = Desk(self.books, self.matches, self.games, config, secrets.randbelow)
        self.stage = Stage(self.books, self.games, self.projects, world, self.commit, terms.hold_ms, lambda: self.away)
        self.feed = Feed(self.books.lobbies, self.presence, self._view, self._stats, self._silent, now_ms)
        self.healer = Healer(self, int(settings.host_grace_s * 1000))
        self.sweeper = Sweeper(self, world)

    # Life -----------------------------------------------------------------------------------------------------------

    async def load(self, shards: Callable[[str], int]) -> None:
        """The rows of this shard's projects; whatever was under way goes on. `shards` gives a project's shard. If it
        raises, nothing has happened in the world: a new core may try again."""
        async with self.store.read() as session:
            projects = set((await session.exec(select(LobbyRow.project_id).distinct())).all())
            live = select(MatchRow).where(col(MatchRow.status).in_(MATCH_NOT_OVER))
            matches = [
                match_of(row) for row in (await session.exec(live)).all() if shards(row.project_id) == self.shard
            ]
            mine = [project for project in projects if shards(project) == self.shard]
            rows: list[LobbyRow] = []
            for project in mine:
                rows += (await session.exec(select(LobbyRow).where(col(LobbyRow.project_id) == project))).all()
        self.books.load([lobby_of(row) for row in rows], matches)
        self._on_disk = dict(self.books.lobbies)
        await self.projects.refresh([*mine, *(match.project_id for match in matches)])
        queued = [lobby for lobby in self.books.lobbies.values() if lobby.status == "in_queue"]
        await self.ratings.load(self.store, (of for lobby in queued for of in _players(lobby)))
        self.healer.after_restart(now_ms())
        self._excuse(now_ms())
        await self.commit()
        self.stage.resume()
        self.healer.arm(self.books.lobbies)
        self.healer.arm_matches(self.books.matches)
        self.sweeper.begin()

    async def close(self) -> None:
        await self.sweeper.close()
        await self.healer.close()
        await self.stage.close()
        await self.projects.close()
        await self._tasks.close()

    # Outages --------------------------------------------------------------------------------------------------------

    @property
    def away(self) -> bool:
        """Whether the database is, so that what is decided now could not be kept."""
        return self._refusal() is not None

    def _refusal(self) -> Unavailable | None:
        check: Callable[[], None] | None = getattr(self.commits, "check", None)
        try:
            if check is not None:
                check()
        except Unavailable as error:
            return error
        if self.commits.lag_s() >= LAG_S:
            return _no_database()
        return None

    async def refresh(self, project_ids: Iterable[str]) -> None:
        """`Projects.refresh`, which also tells when the database is back: replicas could not read it either."""
        try:
            await self.projects.refresh(project_ids)
        except Exception:
            self._unread_since = self._unread_since or now_ms()
            raise
        since, self._unread_since = self._unread_since, None
        if since is not None and now_ms() - since >= LAG_S * 1000:
            self._excuse(now_ms())

    def awake(self, now: int) -> None:
        """Before deadlines act: if this process stood still, nobody could act meanwhile."""
        if now - self._beat >= FROZEN_MS:
            log.warning("keeper_stood_still", ms=now - self._beat)
            self._excuse(now)
        self._beat = max(self._beat, now)

    def _excuse(self, now: int) -> None:
        self.presence.excuse(now)
        self.matches.excuse(now)

    async def repair(self) -> None:
        """What an error left behind: deadlines without a timer, matches without a task, changes without a commit."""
        if self.away:
            self._beat = max(self._beat, now_ms())
            return
        self.awake(now_ms())
        await self.healer.repair()
        await self.commit()
        self.stage.repair()

    # What replicas call ---------------------------------------------------------------------------------------------

    async def commands(self, commands: list[Command]) -> list[Answer]:
        """Answers in order, each once the effect of its command is on disk. While the database is away, those that
        would change something are `Unavailable`, and had no effect."""
        refusal = self._refusal() or await self._prepare(commands)
        now = now_ms()
        if refusal is not None:
            return [self._look(command, now, refusal) for command in commands]
        answers = [self._answer(command, now) for command in commands]
        crash_point("lobby.decided")
        await self.commit()
        crash_point("lobby.committed")
        return answers

    async def _prepare(self, commands: list[Command]) -> Unavailable | None:
        """What deciding them needs from the database; why it cannot be had."""
        try:
            async with asyncio.timeout(PREPARE_S):
                await self.refresh(command.project_id for command in commands)
                await self.ratings.load(self.store, (of for command in commands for of in self._rated(command)))
        except Exception as error:
            log.warning("commands_not_prepared", error=repr(error))
            return _no_database()
        return self._refusal()

    def _look(self, command: Command, now: int, refusal: Unavailable) -> Answer:
        """A command while the database is away. It is a sign of life all the same."""
        mine = self.books.of_player(command.project_id, command.config, command.player_id)
        if mine is not None and command.method not in _NO_SIGN:
            self.presence.sign(mine.id, command.player_id, now)
        if command.method not in _LOOKS:
            self.metrics.command("refused")
            return refusal
        try:
            lobby = self._carry_out(command, now)
        except NotFound as error:
            return error if command.project_id in self.projects else refusal
        stored = self._on_disk.get(lobby.id) if lobby is not None else None
        return self._view(stored) if stored is not None else refusal

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
            # Its own task: what follows a commit happens, whoever of those who wait for it goes away.
            self._gathering = self._tasks.once("commit", self._commit())
        await asyncio.shield(self._gathering)

    async def _commit(self) -> None:
        """One at a time, so that whatever changes meanwhile goes together in the next: in one statement per table."""
        async with self._committing:
            self._gathering = None
            batch = self.books.take()
            effects, self.matches.effects = self.matches.effects, []
            began = now_ms()
            await self.commits.submit(batch.statements)
            self._follow_up(batch, effects)
        if now_ms() - began >= LAG_S * 1000:
            log.warning("database_was_away", ms=now_ms() - began)
            self._excuse(now_ms())
            if self._gathering is None:
                self._gathering = self._tasks.once("commit", self._commit())

    def _follow_up(self, batch: Batch, effects: list[Effect]) -> None:
        """An error in one step leaves the others be; `repair` does again what it left out."""
        steps: list[Callable[[], None]] = [
            lambda: self._stored(batch),
            lambda: self.feed.tell(batch.told),
            lambda: self.healer.arm({told.lobby_id for told in batch.told}),
            lambda: self.healer.arm_matches(batch.matches),
            lambda: self.stage.carry_out(effects),
        ]
        for step in steps:
            try:
                step()
            except Exception as error:
                log.exception("commit_follow_up_failed")
                process_health.failed("lobby_core.follow_up", self, error)
                process_health.forget("lobby_core.follow_up", self)

    def _stored(self, batch: Batch) -> None:
        for told in batch.told:
            if told.lobby is None:
                self._on_disk.pop(told.lobby_id, None)
            else:
                self._on_disk[told.lobby_id] = told.lobby
        self.stage.committed(batch.matches)
        for outcome in batch.over:
            self.metrics.match(outcome)

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


def _no_database() -> Unavailable:
    return Unavailable(
        "The database does not answer now, so nothing was changed. Try again.", error=DATABASE_UNAVAILABLE
    )
