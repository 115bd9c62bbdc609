"""A region at work: what nodes tell, deadlines and the repair timer become plans, and plans become facts.

Everything takes one way: change the books in memory, commit together with whatever else waits, and only then tell the
waiting replicas, set the timers and command the nodes. What follows a commit is a task of its own, so that it happens
whoever stops waiting for it.

An error in the plan of one server stops nobody else's: it is logged, and the repair pass counts as failed.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

import structlog
from sqlmodel import col, select

from fleet.actors.tasks import SupervisedTasks
from fleet.node.model import Hello, RunView
from fleet.region.attention import BEAT_S
from fleet.region.books import Batch
from fleet.region.execute import Command
from fleet.region.model import Action
from fleet.region.parts import Hooks, Parts
from fleet.region.plan import current, plan_runs, plan_server
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from fleet.store.tables import Server, live
from fleet.telemetry.request_id import bind_request_id
from fleet.times import now_ms

log = structlog.get_logger(__name__)

REPAIR_S = 5.0
POOLS_S = 10.0
REPAIR_LIMIT_S = 60.0  # a pass that waits so long for its commit is given up: its changes are committed all the same
CLOSE_S = 1.0
HEARD_MS = 15_000  # an agent that has not told its list by then holds up nobody who waits for a node


class ServersNotPlanned(Exception):
    """Some servers could not be planned; the log says which, and why."""


class Reconciler:
    """`load` (once), then `begin` (again until it does not raise). Afterwards it goes on until `close`."""

    def __init__(self, region: str, settings: FleetSettings, store: Store, epoch: int) -> None:
        self._region = region
        self._store = store
        self._tasks = SupervisedTasks("manager", region=region)
        self.parts = parts = Parts(region, settings, store, epoch, self._hooks())
        self.books, self.runs, self.leases = parts.books, parts.runs, parts.leases
        self._executor, self._pools = parts.executor, parts.pools
        self._executor.may_place = self._may_place
        self._began_at: int | None = None
        self._unplanned = 0
        self.repair_s = 0.0  # of the last full pass

    def _hooks(self) -> Hooks:
        return Hooks(
            on_sync=self.on_sync,
            on_events=self.on_events,
            on_silent=self.on_silent,
            on_lost=self.on_lost,
            due=self._due,
            status_of=self.status_of,
            commit=self.commit,
            settle=self.settle,
            spawn_settle=self.spawn_settle,
            plan_one=self.plan_one,
            stored=self.stored,
            find=self.find,
        )

    # Life -------------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read what is on disk. Nothing is written, so one that fails may be thrown away."""
        rows = select(Server).where(col(Server.region) == self._region, live())
        async with self._store.read() as session:
            found = list((await session.exec(rows)).all())
        await self.parts.memory.load()
        self.books.load(found)
        self.parts.forecasting.load()
        await self._pools.load()
        for server in list(self.books.live.values()):
            self.parts.preparation.started(server.build_id)
            self.parts.deadlines.set(server)
            if server.step == "queued":
                self.plan_one(server)
        self._tell_of_former_sizes()

    def begin(self) -> None:
        """Follow the nodes, and repair from now on."""
        self.leases.adopt()
        self.parts.scaler.begin()
        if self._began_at is not None:
            return
        self._began_at = now_ms()
        self._tasks.every("beat", self._beat, BEAT_S, limit_s=REPAIR_LIMIT_S)
        self._tasks.every("repair", self.repair, REPAIR_S, limit_s=REPAIR_LIMIT_S)
        self._tasks.every("forecast", self._forecast, REPAIR_S, limit_s=REPAIR_LIMIT_S)
        self._tasks.every("scale", self._review, REPAIR_S, limit_s=REPAIR_LIMIT_S)
        self._tasks.every("tell_games", self._tell_games, REPAIR_S, limit_s=REPAIR_LIMIT_S)
        self._tasks.every("pools", self._pools.round, POOLS_S, limit_s=REPAIR_LIMIT_S)

    def _may_place(self) -> bool:
        """Not before the nodes have told what runs there: who is queued by its row may have been launched by the
        manager before, which died before its commit. It must not run twice."""
        return self._began_at is not None and (not self.leases.unheard or now_ms() - self._began_at > HEARD_MS)

    async def close(self) -> None:
        """End what was begun, and leave the nodes alone."""
        await self._tasks.close()
        await self._executor.tasks.close()
        self.parts.deadlines.close()
        for part in (self.leases, self.parts.scaler, self.parts.preparation, self.parts.secrets):
            await part.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.parts.commits.close()
        except Exception as error:
            log.warning("commits_not_closed", region=self._region, error=repr(error))

    def _tell_of_former_sizes(self) -> None:
        former: dict[str, int] = {}
        for server in self.books.live.values():
            if not self._executor.sizes.has(server.compute_size):
                former[server.compute_size] = former.get(server.compute_size, 0) + 1
        if former:
            log.warning("sizes_removed_but_in_use", region=self._region, servers=former)

    # What is known ----------------------------------------------------------------------------------------------

    def status_of(self, instance_id: str) -> str | None:
        server = self.books.live.get(instance_id)
        return server.status if server is not None else None

    async def stored(self, instance_id: str) -> Server | None:
        mine = (col(Server.instance_id) == instance_id, col(Server.region) == self._region)
        return await self._store.first(select(Server).where(*mine))

    async def find(self, instance_id: str) -> Server | None:
        return self.books.live.get(instance_id) or await self.stored(instance_id)

    # Events -----------------------------------------------------------------------------------------------------

    async def on_sync(self, hello: Hello) -> None:
        """A node told its whole truth, which is known once this returns. What follows from it is a task of its own: a
        commit takes as long as the database does, and nobody may stop listening to a node for so long."""
        bind_request_id("")  # the task that follows a node may have begun in a command
        # At once: a node that can be placed on must not seem empty for one turn of the loop.
        concerned = self.runs.replace_node(hello.node_id, hello.runs) | self._executor.rooms.servers(hello.node_id)
        self._executor.adopt_ports(hello.runs)
        self.plan_some(concerned)
        self._pools.refill()
        self._tasks.once("sync", self._synced(hello))  # the repair timer plans what fails of it again

    async def on_events(self, views: tuple[RunView, ...]) -> None:
        """A node told what has changed: the same."""
        bind_request_id("")
        for view in views:
            known = self.runs.get(view.key)
            if known is not None and self.runs.counts(view) and known.state.ended and not view.state.ended:
                continue
            self.runs[view.key] = view
            self._executor.adopt_ports((view,))
            if view.disk_full and not (known and known.disk_full):
                self._executor.note_full_disk(view)
            self.plan_some([view.key.instance_id])
            self._observe(view)
        self._pools.refill()
        self.spawn_settle()

    async def on_lost(self, node_id: str) -> None:
        """A machine is dead, or counts as dead, and with it all that ran there. Who tells of it may be cancelled: what
        follows from it happens."""
        await asyncio.shield(self._tasks.once("lost", self._lost(node_id)))

    def on_silent(self, node_id: str) -> None:
        """An agent does not answer. What becomes of its servers is a matter of time: the repair timer plans it."""
        self._pools.keeper.doubt(node_id)

    async def _synced(self, hello: Hello) -> None:
        await self.settle()
        for run in hello.runs:
            self._observe(run)
            server = self.books.live.get(run.key.instance_id)
            if server is not None and current(server) == run.key and _config_changed(server):
                self._executor.tell_game(server)
        log.info("node synced", region=self._region, node=hello.node_id, runs=len(hello.runs))

    def _observe(self, view: RunView) -> None:
        if self.runs.counts(view):
            self._pools.observe(view)

    async def _lost(self, node_id: str) -> None:
        self.parts.metrics.node("lost")
        concerned = self.runs.replace_node(node_id, ()) | self._executor.rooms.servers(node_id)
        self.plan_some(concerned)
        self._pools.refill()
        await self.settle()

    def _due(self, server: Server) -> None:
        bind_request_id("")
        if self.books.live.get(server.instance_id) is server:
            self.reconcile(server)

    # Repair -----------------------------------------------------------------------------------------------------

    async def repair(self) -> None:
        """Plan everything: whatever events have missed is done now."""
        began, self._unplanned = time.perf_counter(), 0
        views, now, live, policy = self.leases.views(), now_ms(), self.books.live, self.parts.policy
        for server in list(live.values()):
            run = self.runs.get(current(server))
            self._carry_out(server.instance_id, lambda s=server, r=run: plan_server(s, r, views, now, policy))
        self._carry_out("", lambda: plan_runs(live, self.runs, list(self.runs.rivals())))
        failed = self._unplanned
        self._pools.refill()
        await self.settle()
        self.repair_s = time.perf_counter() - began
        if failed:
            raise ServersNotPlanned(f"{failed} of {len(live)} servers")

    async def _beat(self) -> None:
        self.parts.attention.beat()

    async def _forecast(self) -> None:
        self.parts.forecasting.pass_time(self.books.live.values())

    async def _review(self) -> None:
        self.parts.scaler.review()

    async def _tell_games(self) -> None:
        self._executor.tell_again()

    # Planning ---------------------------------------------------------------------------------------------------

    def plan_one(self, server: Server) -> None:
        run, policy = self.runs.get(current(server)), self.parts.policy
        self._carry_out(server.instance_id, lambda: plan_server(server, run, self.leases.views(), now_ms(), policy))

    def plan_some(self, instance_ids: Iterable[str]) -> None:
        """Plan these servers and all their runs."""
        for instance_id in instance_ids:
            server = self.books.live.get(instance_id)
            if server is not None:
                self.plan_one(server)
            owned = {} if server is None else {instance_id: server}
            runs, rivals = self.runs.of(instance_id), tuple(self.runs.rivals_of(instance_id))
            self._carry_out(instance_id, lambda o=owned, r=runs, other=rivals: plan_runs(o, r, other))

    def _carry_out(self, instance_id: str, plan: Callable[[], list[Action]]) -> None:
        try:
            self._executor.carry_out(plan())
        except Exception:
            self._unplanned += 1
            log.exception("server_not_planned", region=self._region, server=instance_id)

    def reconcile(self, server: Server) -> None:
        """Plan one server again after its change is on disk, and do what that says."""
        self.plan_one(server)
        self.spawn_settle()

    def reconcile_runs(self, instance_id: str) -> None:
        """Release this server's runs of other generations, or all if it is finished."""
        self.plan_some([instance_id])
        self.spawn_settle()

    # Commit -----------------------------------------------------------------------------------------------------

    def spawn_settle(self) -> None:
        self._executor.spawn(self.settle())

    async def settle(self) -> None:
        """Launch what was queued, commit, tell, then let the nodes act."""
        await self._executor.launch_queued()
        await self.commit()

    async def commit(self) -> None:
        """Changes on disk; then the feed, the timers and the nodes may know. Returns when the changes that others have
        gathered before are on disk too."""
        batch, commands = self.books.take(), self._executor.take_commands()
        if batch.statements or self.parts.commits.lag_s() > 0:
            done = self.parts.commits.submit(batch.statements)
            await asyncio.shield(self._tasks.once("commit", self._after(done, batch, commands)))
        else:
            self._tell(batch, commands)

    async def _after(self, done: asyncio.Future[None], batch: Batch, commands: list[Command]) -> None:
        await done
        self._tell(batch, commands)

    def _tell(self, batch: Batch, commands: list[Command]) -> None:
        for instance_id in batch.touched:
            server = self.books.live.get(instance_id)
            self.parts.deadlines.set(server) if server else self.parts.deadlines.clear(instance_id)
        self.parts.bell.ring(batch.told)
        self._executor.command(commands)


def _config_changed(server: Server) -> bool:
    """Whether its playflow.json is not what it was launched with. A claim or update of which the node was not told,
    since its agent or the manager died, is told now: the file says what the row says."""
    if server.status != "running":
        return False
    return server.pool_claimed_at is not None or (not server.is_pool_server and server.updated_at > server.step_at)
