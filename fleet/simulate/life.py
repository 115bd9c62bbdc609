"""A project's servers as the region managers would write them down, in virtual time.

Rows, journal and commits are those of production (books, executor, group commit); only nodes and clock are not. Beside
them stands a plain list of what really ran, kept apart: what a bill must come to.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fleet.catalog import Catalog
from fleet.errors import FleetError, Unavailable
from fleet.node.runtime import BuildRef
from fleet.pools.claim import ClaimCall
from fleet.region.books import Books
from fleet.region.claimed import mark_claimed
from fleet.region.execute import Executor
from fleet.region.model import Advance, End, Finish, NodeView, Requeue
from fleet.region.runs import Runs
from fleet.settings import FleetSettings
from fleet.store.commit import GroupCommit, take_epoch
from fleet.store.engine import Store
from fleet.store.tables import Server


class Ran(NamedTuple):
    """A stretch of time in which a server ran."""

    region: str
    size: str
    kind: str  # used | idle
    start: int
    end: int


class _NoNodes:
    """Nothing is launched: what nodes would say is said by the simulation."""

    def views(self) -> Mapping[str, NodeView]:
        return {}

    def hello(self, node_id: str) -> None:
        return None

    async def call(self, node_id: str, method: str, *arguments: Any) -> Any:
        raise Unavailable("there is no node")


async def _no_build(build_id: str) -> BuildRef:
    raise FleetError(f"{build_id} is not run here")


class _Manager:
    """A region's books in the hands of one writer, until the next one takes over."""

    def __init__(self, region: str, epoch: int, books: Books, executor: Executor, commits: GroupCommit) -> None:
        self.region = region
        self.epoch = epoch
        self.books = books
        self.executor = executor
        self.commits = commits

    async def commit(self) -> None:
        batch = self.books.take()
        self.executor.take_commands()
        if batch.statements:
            await self.commits.submit(batch.statements)


class Life:
    """`ran` is what has ended; `running` what has not: (region, size, kind, since)."""

    def __init__(self, store: Store, settings: FleetSettings, catalog: Catalog, project_id: str) -> None:
        self._store = store
        self._settings = settings
        self._catalog = catalog
        self._project_id = project_id
        self._managers: dict[str, _Manager] = {}
        self._rows: dict[str, Server] = {}
        self._made = 0
        self.ran: list[Ran] = []
        self.running: dict[str, tuple[str, str, str, int]] = {}

    # Managers ----------------------------------------------------------------------------------------------------

    async def manager_starts(self, region: str) -> None:
        """Another manager of the region: it knows what is on disk."""
        old = self._managers.get(region)
        if old is not None:
            await old.commit()
            await old.commits.close()
        epoch = await take_epoch(self._store, region)
        books = Books()
        books.load([row for row in self._rows.values() if row.region == region and row.step != "stopped"])
        commits = GroupCommit(self._store, region, epoch, _fail)
        executor = Executor(
            epoch, self._settings, self._catalog, books, Runs(), _NoNodes(), settle=self.commit, builds=_no_build
        )
        self._managers[region] = _Manager(region, epoch, books, executor, commits)

    async def commit(self) -> None:
        for manager in self._managers.values():
            await manager.commit()

    async def close(self) -> None:
        for manager in self._managers.values():
            await manager.commit()
            await manager.commits.close()

    # What happens to servers -------------------------------------------------------------------------------------

    def starts(self, region: str, size: str, at: int, *, pool: bool = False, auto_restart: bool = False) -> str:
        self._made += 1
        row = Server(
            instance_id=f"{self._project_id[:8]}-{self._made:06d}",
            project_id=self._project_id,
            region=region,
            name=f"server-{self._made}",
            status="launching",
            step="queued",
            compute_size=size,
            build_id="simulated",
            version_tag="default",
            auto_restart=auto_restart,
            is_pool_server=pool,
            created_at=at,
            updated_at=at,
            launched_at=at,
            step_at=at,
        )
        self._rows[row.instance_id] = row
        self._managers[region].books.add(row, at)
        return row.instance_id

    def is_ready(self, name: str, at: int) -> None:
        """Its ports are open: it runs."""
        row = self._rows[name]
        for step in ("booting", "running"):
            self._of(row).executor.carry_out([Advance(name, step, at)])
        idle = row.is_pool_server and row.pool_claimed_at is None
        self.running[name] = (row.region, row.compute_size, "idle" if idle else "used", at)

    def is_claimed(self, name: str, at: int) -> None:
        row = self._rows[name]
        self._over(name, at)
        call = ClaimCall(f"op-{name}", row.project_id, row.compute_size, "default", spec="")
        mark_claimed(self._of(row).books, row, call, at)
        self.running[name] = (row.region, row.compute_size, "used", max(at, self.ran[-1].end))

    def crashes(self, name: str, at: int, reason: str = "crashed") -> None:
        """It ends against its will and is to run again."""
        self._over(name, at)
        self._of(self._rows[name]).executor.carry_out([Requeue(name, at, reason, at + 1000)])

    def restarts(self, name: str, at: int) -> None:
        """Its owner has it run anew."""
        self._over(name, at)
        row = self._rows[name]
        self._of(row).executor.new_generation(row, at, "restart_requested", {})

    def ends(self, name: str, at: int, reason: str = "requested", *, gone: bool = False) -> None:
        """It is over; unless `gone`, its container takes a while to follow (`is_gone`)."""
        self._over(name, at)
        end = End(name, at, reason, "SHUTDOWN_SIGNAL", gone=gone)
        self._of(self._rows[name]).executor.carry_out([end])

    def is_gone(self, name: str, at: int) -> None:
        self._of(self._rows[name]).executor.carry_out([Finish(name, at, 0)])

    def _of(self, row: Server) -> _Manager:
        return self._managers[row.region]

    def _over(self, name: str, at: int) -> None:
        """What it did until now has ended."""
        running = self.running.pop(name, None)
        if running is not None:
            region, size, kind, since = running
            self.ran.append(Ran(region, size, kind, since, max(since, at)))


def _fail(error: BaseException) -> None:
    raise error
