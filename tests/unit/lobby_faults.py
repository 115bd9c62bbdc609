"""A keeper's core in virtual time over a database and regions that fail, hang, answer late or twice, as a seed says.

The core, its deadlines, stage and sweeper are the real ones; the edges (store, commits, regions) are stand-ins, since
their real parts take real time. Until `until` every call may meet a fault; afterwards none does.
"""

import asyncio
import random
import selectors
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import structlog.testing
from sqlalchemy import Delete, Insert

from fleet.errors import Conflict, Fenced, Unavailable
from fleet.lobbies.config import find_config
from fleet.lobbies.core import Core
from fleet.lobbies.match import OVER
from fleet.lobbies.projects import Known
from fleet.lobbies.world import World
from fleet.operation import new_id
from fleet.projects.model import Principal
from fleet.settings import LobbySettings
from fleet.store.commit import GroupCommit
from fleet.store.engine import Store
from fleet.store.lobby_tables import Lobby as LobbyRow
from fleet.store.lobby_tables import Match as MatchRow
from fleet.store.tables import Server
from fleet.times import SteadyClock, now_ms, use_clock

LOBBIES, MATCHES = LobbyRow.__tablename__, MatchRow.__tablename__
BEGIN_S = 1_800_000_000.0
PROJECT = "p"


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only when nothing else can happen, and then at once."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self.now


class _Jump(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing will ever happen again"
            self._loop.now += max(0.0, timeout)
        return ready


def in_virtual_time(work: Callable[[VirtualLoop], Coroutine[Any, Any, None]]) -> None:
    loop = VirtualLoop()
    use_clock(lambda: int((BEGIN_S + loop.now) * 1e9))
    try:
        with structlog.testing.capture_logs():  # each fault is logged, which takes longer than all the rest
            loop.run_until_complete(work(loop))
    finally:
        use_clock(SteadyClock())
        loop.close()


class Here(Executor):
    """Work is done at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class Faults:
    """`share` of all calls meet one, until `until_s`."""

    def __init__(self, loop: VirtualLoop, seed: int, until_s: float, share: float) -> None:
        self.loop = loop
        self.chance = random.Random(seed)
        self.until_s = until_s
        self.share = share
        self.met = 0
        self.away = False  # the database, until a test says otherwise
        self.next: list[Exception] = []  # of the next reads of the database

    @property
    def over(self) -> bool:
        return self.loop.now >= self.until_s

    async def may_read(self) -> None:
        if self.away:
            raise ConnectionError("the database is away")
        if self.next:
            raise self.next.pop(0)
        await self.may()

    async def may(self, *errors: Exception) -> None:
        """Raise, answer late or never."""
        if self.over or self.chance.random() >= self.share:
            return
        self.met += 1
        kind = self.chance.random()
        if kind < 0.5:
            raise self.chance.choice([*errors, ConnectionError("the connection broke")])
        if kind < 0.8:
            await asyncio.sleep(self.chance.uniform(0.1, 40))
        else:
            await asyncio.Event().wait()


class Database:
    """Rows by table. Stands for the store, and for the group commit of whichever keeper has the epoch."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.rows: dict[str, dict[str, dict[str, Any]]] = {LOBBIES: {}, MATCHES: {}}
        self.servers: dict[str, Server] = {}

    def write(self, statements: Sequence[Any]) -> None:
        for statement, several in statements:
            table = statement.table.name
            if table not in self.rows:
                continue
            for values in several:
                if isinstance(statement, Insert):
                    key = values["id" if table == LOBBIES else "match_id"]
                    assert key not in self.rows[table], "written twice"
                    self.rows[table][key] = dict(values)
                elif isinstance(statement, Delete):
                    del self.rows[table][values["of"]]
                else:
                    new = {name.removeprefix("new_"): value for name, value in values.items() if name != "of"}
                    self.rows[table][values["of"]].update(new)

    async def first(self, query: Any) -> Server | None:
        await self.faults.may_read()
        wanted = set(query.compile().params.values())
        return next((server for name, server in self.servers.items() if name in wanted), None)

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[Any]:
        await self.faults.may_read()
        yield SimpleNamespace(exec=self._exec)

    async def _exec(self, query: Any) -> Any:
        column = query.column_descriptions[0]
        found: list[Any] = []
        if column["name"] == "project_id":
            found = sorted({row["project_id"] for row in self.rows[LOBBIES].values()})
        elif column["entity"] is LobbyRow:
            found = [LobbyRow(**row) for row in self.rows[LOBBIES].values()]
        elif column["entity"] is MatchRow:
            found = [MatchRow(**row) for row in self.rows[MATCHES].values() if row["status"] not in OVER]
        return SimpleNamespace(all=lambda: found, first=lambda: None)


class Commits:
    """As `GroupCommit`: in order, tried for as long as it takes, `Unavailable` when somebody has waited long."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._since: list[float] = []
        self._order = asyncio.Lock()
        self.fenced = False

    async def submit(self, statements: Sequence[Any]) -> None:
        faults = self._database.faults
        self._since.append(began := faults.loop.now)
        async with self._order:
            while not faults.over and faults.chance.random() < faults.share / 3:  # noqa: ASYNC110
                await asyncio.sleep(faults.chance.uniform(0.1, 30))
            while faults.away:  # noqa: ASYNC110
                await asyncio.sleep(0.5)
            await asyncio.sleep(0.001)
            if self.fenced:
                raise Fenced("another keeper has come")
            self._database.write(statements)
        self._since.remove(began)

    def lag_s(self) -> float:
        return self._database.faults.loop.now - min(self._since, default=self._database.faults.loop.now)


class Cloud:
    """Regions and the service that starts servers. News of servers get lost at times."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.faults = database.faults
        self.heard: dict[str, asyncio.Event] = {}

    async def start(self, caller: Principal, request: Any) -> Server:
        name = new_id()
        await self.faults.may(Unavailable("no answer"), Conflict("full", error="Capacity limit reached"))
        if name not in self.database.servers:
            now = now_ms()
            values = {"created_at": now, "updated_at": now, "launched_at": now, "step_at": now, "name": "match"}
            self.database.servers[name] = Server(
                instance_id=name, project_id=PROJECT, region=request.region, status="launching", step="booting",
                compute_size="small", build_id="b", version_tag="default", match_id=request.match_id, **values,
            )  # fmt: skip
            self.faults.loop.call_later(self.faults.chance.uniform(0.1, 9), self.becomes, name, "running")
        await self.faults.may(Unavailable("no answer"))
        return self.database.servers[name]

    def becomes(self, name: str, status: str) -> None:
        old = self.database.servers[name]
        if old.status == "stopped":
            return
        self.database.servers[name] = Server(**{**old.model_dump(), "status": status, "step": status})
        if self.faults.over or self.faults.chance.random() > self.faults.share:
            self.heard.setdefault(name, asyncio.Event()).set()

    async def stop(self, region: str, instance_id: str, reason: str, detail: str | None) -> Server:
        await self.faults.may(Unavailable("no answer"))
        self.becomes(instance_id, "stopped")
        await self.faults.may(Unavailable("no answer"))
        return self.database.servers[instance_id]

    async def wait(self, region: str, instance_id: str, statuses: set[str], timeout_s: float) -> None:
        await self.faults.may(Unavailable("no answer"))
        try:
            async with asyncio.timeout(timeout_s):
                while self.database.servers[instance_id].status not in statuses:
                    news = self.heard[instance_id] = asyncio.Event()
                    await news.wait()
        except TimeoutError:
            return

    async def update(self, caller: Principal, instance_id: str, custom_data: dict[str, Any] | None) -> Server:
        await self.faults.may(Unavailable("no answer"))
        return self.database.servers[instance_id]

    async def announce(self, *_: Any) -> None:
        await self.faults.may(Unavailable("no answer"))


class Home:
    """The keeper of one shard: killed and begun anew when a test says so."""

    def __init__(self, faults: Faults, config: dict[str, Any]) -> None:
        self.faults = faults
        self.database = Database(faults)
        self.cloud = Cloud(self.database)
        self.config = config
        self.core: Core | None = None
        self.commits: Commits | None = None

    async def begin(self) -> None:
        """As the actor does: until it succeeds."""
        while self.core is None:
            self.commits = Commits(self.database)
            store, commits = cast(Store, self.database), cast(GroupCommit, self.commits)
            core = Core(0, LobbySettings(), store, commits, World(store, self.cloud, self.cloud))
            core.sweeper.thread = Here()
            core.projects._read = self._read(core)  # pyright: ignore[reportPrivateUsage]
            try:
                async with asyncio.timeout(20):
                    await core.load(lambda _: 0)
            except Exception:
                self.commits.fenced = True
                await core.close()
                await asyncio.sleep(1)
            else:
                self.core = core

    async def kill(self) -> None:
        core, self.core = self.core, None
        if core is not None and self.commits is not None:
            self.commits.fenced = True
            await core.close()

    def _read(self, core: Core) -> Callable[[str], Coroutine[Any, Any, None]]:
        async def read(project_id: str) -> None:
            await self.faults.may_read()
            settings = {"lobby_configs": [self.config]}
            assert find_config(settings["lobby_configs"], self.config["name"]).modes
            known = core.projects._known  # pyright: ignore[reportPrivateUsage]
            if project_id not in known:
                principal = Principal(PROJECT, "server", plan="pro", valid_until=float("inf"), settings=settings)
                known[project_id] = Known(principal)

        return read
