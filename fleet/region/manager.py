"""The RegionManager actor: the one writer of its region's servers.

It turns commands, node events and deadlines into plans (`plan.py`, pure) and carries them out, always in this order:
change the books in memory, commit them together with whatever else waits, and only then answer the caller, tell the
waiting replicas and command the nodes. The exception is a launch, which a node may begin while its row is being
committed: if the commit never comes, the container belongs to nobody and the next reconcile stops it.

After any restart it raises the region's epoch (which fences its predecessor), loads its rows, asks its agents what
runs, and plans everything.
"""

import asyncio
import os
import time
from collections.abc import Iterable
from typing import Any

import ray
import structlog
from prometheus_client import Metric
from sqlmodel import col, select

from fleet.actors.single_flight import SingleFlight
from fleet.actors.watchdog import Watchdog
from fleet.errors import Conflict, FleetError, NotFound
from fleet.node.model import Drain, Hello, RunView
from fleet.node.runtime import LogLine, RunKey
from fleet.pools.claim import ClaimCall
from fleet.region.feed import Want
from fleet.region.parts import Hooks, Parts
from fleet.region.plan import current, plan, plan_server
from fleet.region.queue import no_room
from fleet.settings import get_settings
from fleet.store.commit import row_of, row_values, take_epoch
from fleet.store.engine import Store
from fleet.store.tables import Server, live
from fleet.telemetry.logs import setup_logging
from fleet.telemetry.request_id import bind_request_id
from fleet.times import now_ms

log = structlog.get_logger(__name__)

_REPAIR_S = 5.0
_NODE_WAIT_S = 12.0


@ray.remote
class RegionManager:
    """Commands are idempotent (by instance_id, or by op_id), so that Ray may repeat them after a crash."""

    async def __init__(self, region: str) -> None:
        settings = get_settings()
        self._watchdog = Watchdog(settings.hung_s)
        setup_logging(f"manager-{region}", settings.home)
        self._region = region
        self._store = Store(settings.database)
        self._epoch = await take_epoch(self._store, region)
        hooks = Hooks(
            on_sync=self._on_sync,
            on_events=self._on_events,
            on_silent=self._on_silent,
            on_lost=self._on_lost,
            due=self._due,
            status_of=self._status_of,
            commit=self._commit,
            settle=self._settle,
            spawn_settle=self._spawn_settle,
            plan_one=self._plan_one,
            stored=self._stored,
            find=self._find,
        )
        parts = Parts(region, settings, self._store, self._epoch, hooks)
        self._policy, self._metrics, self._report = parts.policy, parts.metrics, parts.report
        self._commits, self._books, self._runs = parts.commits, parts.books, parts.runs
        self._bell, self._deadlines, self._logs = parts.bell, parts.deadlines, parts.logs
        self._leases, self._scaler, self._preparation = parts.leases, parts.scaler, parts.preparation
        self._executor, self._pools, self._forecasting = parts.executor, parts.pools, parts.forecasting
        self._memory = parts.memory
        self._starts = SingleFlight[str, dict[str, Any]]()
        self._pools.starting = self._starts.__contains__
        await self._load()
        self._leases.adopt()
        self._scaler.begin()
        self._repair_s = 0.0  # of the last full pass
        self._repairer = asyncio.create_task(self._repair())
        self._pool_keeper = asyncio.create_task(self._pools.run())
        live, pid = len(self._books.live), os.getpid()
        log.info("manager ready", region=region, epoch=self._epoch, live=live, pid=pid)

    async def _load(self) -> None:
        rows = select(Server).where(col(Server.region) == self._region, live())
        async with self._store.read() as session:
            self._books.load(list((await session.exec(rows)).all()))
        await self._memory.load()
        self._forecasting.load()
        for server in list(self._books.live.values()):
            self._deadlines.set(server)
            self._preparation.started(server.build_id)
            if server.step == "queued":
                self._plan_one(server)
        await self._pools.load()

    # Commands ---------------------------------------------------------------------------------------------------

    async def command(self, request_id: str, method: str, arguments: tuple[Any, ...]) -> Any:
        """One of the commands below as part of a request: its id is in each line that is logged meanwhile."""
        bind_request_id(request_id)
        return await getattr(self, method)(*arguments)

    async def start(self, values: dict[str, Any]) -> dict[str, Any]:
        """Accept a server; answers once its row, with host ports where a node has them, is on disk. One id, one
        server: a replica, and others for the same match, may ask again at any time."""
        return await self._starts.do(values["instance_id"], lambda: self._start(values))

    async def _start(self, values: dict[str, Any]) -> dict[str, Any]:
        server = row_of(Server, values)
        known = self._books.live.get(server.instance_id)
        if known is not None:
            await self._commits.flush()
            return row_values(known)
        if (stopped := await self._stored(server.instance_id)) is not None:
            return row_values(stopped)
        self._preparation.started(server.build_id)
        self._forecasting.started(server.compute_size)
        placed = await self._wait_for_room(server)
        if (claimed := await self._pools.claimed_by(server.instance_id)) is not None:
            return claimed
        now = now_ms()
        server.step, server.step_at, server.launched_at, server.start_kind = "queued", now, now, "cold"
        # Repeated after a crash: the first try's run had no row, so it has been told to stop. It is not this one.
        server.generation += max((key.generation for key in self._runs.of(server.instance_id)), default=0)
        self._executor.clear_ports(server)
        self._books.add(server, now)
        if placed:
            await self._executor.place_and_launch(server)
        else:
            self._executor.queued.append(server)
        await self._commit()
        self._metrics.started("cold")
        self._deadlines.set(server)
        return row_values(server)

    async def _wait_for_room(self, server: Server) -> bool:
        """True if a node has room; False if one is on its way; Conflict if there is none and will be none."""
        if self._executor.find_node(server) is not None:
            return True
        waited_until = asyncio.get_running_loop().time() + _NODE_WAIT_S
        demand = self._executor.demand(server)
        with self._scaler.waiting(demand):
            while (left := waited_until - asyncio.get_running_loop().time()) > 0:
                short = await self._scaler.reviewed()
                if self._executor.find_node(server) is not None:
                    return True
                if server.instance_id in short:
                    raise no_room(self._region, server.compute_size, demand)
                await self._leases.wait_change(left)
        return False

    async def claim(self, calls: list[ClaimCall]) -> list[dict[str, Any] | None]:
        """Warm servers for many starts at once (see `pool_desk.py`); None where the start must go cold."""
        rows = await self._pools.claim(calls)
        for call, row in zip(calls, rows, strict=True):
            self._forecasting.started(call.compute_size, int(row is not None))  # the others come again, cold
        return rows

    async def pools_changed(self, project_id: str) -> None:
        """The project's settings have changed: its pools are made, changed or retired."""
        await self._pools.refresh(project_id)

    async def builds_changed(self, build_id: str) -> None:
        """A build is ready, failed or deleted: pools of its name may have something newer to run."""
        if self._pools.keeper.pools():
            log.info("builds changed", region=self._region, build=build_id)
            await self._pools.refresh(None)

    async def pools(self, project_id: str) -> list[dict[str, Any]]:
        """The project's pools, each with its inputs, decision and stock."""
        return self._pools.views(project_id)

    async def announce(self, project_id: str, size: str, build: str, expected: list[tuple[float, float]]) -> None:
        """Starts known ahead (epoch seconds, number), such as a matchmaking queue sees. Replaces the last word."""
        self._pools.keeper.announce((project_id, size, build), expected)
        await self._settle()

    async def update(self, instance_id: str, custom_data: dict[str, Any]) -> dict[str, Any]:
        """Replace custom_data, in the row and in the running game's playflow.json."""
        server = self._alive(instance_id)
        now = now_ms()
        self._books.change(server, now, custom_data=custom_data)
        self._books.note(server, now, "updated")
        await self._commit()
        self._executor.tell_game(server)
        return row_values(server)

    async def ready(self, instance_id: str) -> dict[str, Any]:
        """The project says for its game that it takes players (builds with `ready_by` game)."""
        server = self._alive(instance_id)
        if server.node_id:
            await self._executor.ask(server.node_id, "ready", current(server))
        return row_values(server)

    async def restart(self, instance_id: str, values: dict[str, Any], op_id: str) -> dict[str, Any]:
        """A new generation with changed values; once per op_id. The old run is stopped."""
        server = self._alive(instance_id)
        if server.last_op != op_id:
            self._executor.new_generation(
                server, now_ms(), "restart_requested", {}, last_op=op_id, crashes=[], **values
            )
            if self._executor.find_node(server) is not None:
                await self._executor.place_and_launch(server)
        await self._commit()
        self._deadlines.set(server)
        self._reconcile_runs(instance_id)
        return row_values(server)

    async def stop(self, instance_id: str, reason: str, detail: str | None) -> dict[str, Any]:
        """Stopped at once for the caller; the container ends gracefully behind. Stopping again changes nothing."""
        server = self._books.live.get(instance_id)
        if server is None:
            stored = await self._stored(instance_id)
            if stored is None:
                raise NotFound(f"There is no server '{instance_id}'.", error="Server not found")
            return row_values(stored)
        if server.status != "stopped":
            self._executor.end(server, now_ms(), reason, "SHUTDOWN_SIGNAL", detail or "", None, gone=False)
        await self._commit()
        self._reconcile(server)
        return row_values(server)

    async def stop_all(self, reason: str, detail: str) -> int:
        """Stop every server of the region; returns when none is left or 30 s have passed. How many there were."""
        self._pools.keeper.closed = True
        alive = [s for s in self._books.live.values() if s.status != "stopped"]
        for server in alive:
            await self.stop(server.instance_id, reason, detail)
        deadline_at = asyncio.get_running_loop().time() + 30
        while self._books.live and asyncio.get_running_loop().time() < deadline_at:
            await self._bell.rung(1.0)
        return len(alive)

    def _alive(self, instance_id: str) -> Server:
        server = self._books.live.get(instance_id)
        if server is None or server.status == "stopped":
            raise Conflict("The server has stopped; start a new one.", error="Server stopped")
        return server

    async def _stored(self, instance_id: str) -> Server | None:
        mine = (col(Server.instance_id) == instance_id, col(Server.region) == self._region)
        return await self._store.first(select(Server).where(*mine))

    # What others read -------------------------------------------------------------------------------------------

    async def reached(self, who: str, wants: list[Want], timeout_s: float) -> list[str]:
        """Long poll of a replica: which of these servers have one of their statuses (see `feed.py`)."""
        found = await self._bell.until(who, wants, timeout_s)
        await self._commits.flush()  # what memory says is on disk before the replica reads it
        return found

    def _status_of(self, instance_id: str) -> str | None:
        server = self._books.live.get(instance_id)
        return server.status if server is not None else None

    async def logs(self, key: RunKey, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        return await self._logs.logs(key, after, since_ms, limit)

    async def wait_logs(self, key: RunKey, after: str | None, timeout_s: float) -> tuple[list[LogLine], bool]:
        return await self._logs.wait_logs(key, after, timeout_s)

    async def usage(self, key: RunKey, period_s: int, step_s: int) -> dict[str, Any] | None:
        return await self._logs.ask_now(key, "usage", period_s, step_s)

    async def _find(self, instance_id: str) -> Server | None:
        return self._books.live.get(instance_id) or await self._stored(instance_id)

    async def status(self) -> dict[str, Any]:
        """For operators: epoch, nodes with what they hold, live servers, commits."""
        return self._report.status() | {"repair_ms": round(self._repair_s * 1000, 2)}

    async def metrics(self) -> list[Metric]:
        """What this manager counts, for the API replica that answers a scrape."""
        return await self._metrics.collect_aside()

    async def drain(self, node_id: str, draining: bool, until: int | None = None) -> None:
        """No new placements on that node (or again); its servers go on until they end. `until`: its machine will go."""
        cause = "operator" if until is None else "notice"
        await self._scaler.drain(node_id, Drain(cause, until) if draining else None)

    # Events -----------------------------------------------------------------------------------------------------

    async def _on_sync(self, hello: Hello) -> None:
        """A node told its whole truth."""
        bind_request_id("")  # the task that follows a node may have begun in a command
        concerned = self._runs.replace_node(hello.node_id, hello.runs)
        concerned |= self._executor.rooms.servers(hello.node_id)
        self._executor.adopt_ports(hello.runs)
        self._plan_some(concerned)
        self._pools.refill()
        await self._settle()
        for run in hello.runs:
            self._pools.observe(run)
            server = self._books.live.get(run.key.instance_id)
            # Whatever an agent that died was told last: the file says what the row says.
            if server is not None and server.pool_claimed_at is not None and server.status == "running":
                self._executor.tell_game(server)
        log.info("node synced", region=self._region, node=hello.node_id, runs=len(hello.runs))

    async def _on_events(self, views: tuple[RunView, ...]) -> None:
        for view in views:
            known = self._runs.get(view.key)
            if known is not None and known.state.ended and not view.state.ended:
                continue
            self._runs[view.key] = view
            self._executor.adopt_ports((view,))
            server = self._books.live.get(view.key.instance_id)
            if server is not None and current(server) == view.key:
                self._plan_one(server)
                self._pools.observe(view)
            else:
                self._reconcile_runs(view.key.instance_id)
        self._pools.refill()
        await self._settle()

    def _on_silent(self, node_id: str) -> None:
        """An agent does not answer. What becomes of its servers is a matter of time: the repair timer plans it."""
        self._pools.keeper.doubt(node_id)

    async def _on_lost(self, node_id: str) -> None:
        """Ray says that the machine is dead, and with it all that ran there."""
        self._metrics.node("lost")
        concerned = self._runs.replace_node(node_id, ()) | self._executor.rooms.servers(node_id)
        self._plan_some(concerned)
        self._pools.refill()
        await self._settle()

    async def _repair(self) -> None:
        while True:
            await asyncio.sleep(_REPAIR_S)
            began = time.perf_counter()
            try:
                await self._plan_all()
                self._repair_s = time.perf_counter() - began
                self._forecasting.pass_time(self._books.live.values())
                self._scaler.review()
            except FleetError as error:
                log.warning("repair incomplete", region=self._region, error=error.detail)

    async def _plan_all(self) -> None:
        live = list(self._books.live.values())
        self._executor.carry_out(plan(live, self._runs, self._leases.views(), now_ms(), self._policy))
        self._pools.refill()
        await self._settle()

    def _plan_one(self, server: Server) -> None:
        run = self._runs.get(current(server))
        self._executor.carry_out(plan_server(server, run, self._leases.views(), now_ms(), self._policy))

    def _reconcile(self, server: Server) -> None:
        """Plan one server again after its change is on disk, and do what that says."""
        self._plan_one(server)
        self._spawn_settle()

    def _reconcile_runs(self, instance_id: str) -> None:
        """Release this server's runs of other generations, or all if it is finished."""
        self._plan_some([instance_id])
        self._spawn_settle()

    def _plan_some(self, instance_ids: Iterable[str]) -> None:
        """Plan these servers and all their runs."""
        views, now = self._leases.views(), now_ms()
        for instance_id in instance_ids:
            live = self._books.live.get(instance_id)
            runs = self._runs.of(instance_id)
            self._executor.carry_out(plan([live] if live else [], runs, views, now, self._policy))

    def _spawn_settle(self) -> None:
        self._executor.spawn(self._settle())

    async def _settle(self) -> None:
        """Launch what was queued, commit, tell, then let the nodes act."""
        await self._executor.launch_queued()
        await self._commit()

    async def _commit(self) -> None:
        """Changes on disk; then the feed, the timers and the nodes may know."""
        batch = self._books.take()
        after = self._executor.take_commands()
        if batch.statements:
            await self._commits.submit(batch.statements)
        for instance_id in batch.touched:
            server = self._books.live.get(instance_id)
            self._deadlines.set(server) if server else self._deadlines.clear(instance_id)
        self._bell.ring(batch.told)
        self._executor.command(after)

    def _due(self, server: Server) -> None:
        bind_request_id("")
        if self._books.live.get(server.instance_id) is server:
            self._reconcile(server)
