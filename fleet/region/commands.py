"""What a region's callers ask for. Each command changes the books, and answers once that is on disk.

Commands are idempotent (by instance_id, or by op_id), so that Ray may repeat them after a crash. While the database
cannot be written they are refused: what an outage gathers would be done at its end, when nobody wants it any more.
"""

import asyncio
from typing import Any

import structlog

from fleet.actors.single_flight import SingleFlight
from fleet.errors import BadRequest, Conflict, NotFound
from fleet.node.model import Drain
from fleet.node.runtime import LogLine, RunKey
from fleet.pools.claim import ClaimCall
from fleet.region.feed import Want
from fleet.region.plan import current
from fleet.region.queue import no_room
from fleet.region.reconciler import Reconciler
from fleet.store.commit import row_of, row_values
from fleet.store.tables import Server
from fleet.times import now_ms

log = structlog.get_logger(__name__)

NODE_WAIT_S = 12.0
STOP_ALL_S = 30.0


class Commands:
    """One per manager, once it has its rows."""

    def __init__(self, region: str, reconciler: Reconciler) -> None:
        parts = reconciler.parts
        self._region = region
        self._reconciler = reconciler
        self._books, self._runs, self._leases = parts.books, parts.runs, parts.leases
        self._executor, self._pools, self._scaler = parts.executor, parts.pools, parts.scaler
        self._commits, self._bell, self._logs = parts.commits, parts.bell, parts.logs
        self._metrics, self._forecasting, self._preparation = parts.metrics, parts.forecasting, parts.preparation
        self._enabled = parts.enabled
        self._starts = SingleFlight[str, dict[str, Any]]()
        self._pools.starting = self._starts.__contains__

    def check(self) -> None:
        """`Unavailable` while nothing can be written."""
        # The group commit knows for how long what it has could not be written.
        if (check := getattr(self._commits, "check", None)) is not None:
            check()

    def project_of(self, method: str, arguments: tuple[Any, ...]) -> str:
        """Whose command it is; "" for a server that is not live."""
        if method == "start":
            return str(arguments[0]["project_id"])
        server = self._books.live.get(arguments[0])
        return server.project_id if server is not None else ""

    # Servers ----------------------------------------------------------------------------------------------------

    async def start(self, values: dict[str, Any]) -> dict[str, Any]:
        """Accept a server; answers once its row, with host ports where a node has them, is on disk. One id, one
        server: a replica, and others for the same match, may ask again at any time."""
        self.check()
        return await self._starts.do(values["instance_id"], lambda: self._start(values))

    async def _start(self, values: dict[str, Any]) -> dict[str, Any]:
        server = row_of(Server, values)
        known = self._books.live.get(server.instance_id)
        if known is not None:
            await self._commits.flush()
            return row_values(known)
        if (stopped := await self._reconciler.stored(server.instance_id)) is not None:
            return row_values(stopped)
        self._check_offered(server)
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
        await self._reconciler.commit()
        self._metrics.started("cold")
        return row_values(server)

    def _check_offered(self, server: Server) -> None:
        """The caller's replica may have read an older catalog than this manager."""
        self._executor.sizes.offered(server.compute_size)
        if not self._enabled:
            text = f"Region '{self._region[:64]}' is not enabled on this fleet (any more)."
            raise BadRequest(text, error="Region not enabled")

    async def _wait_for_room(self, server: Server) -> bool:
        """True if a node has room; False if one is on its way; Conflict if there is none and will be none."""
        if self._executor.find_node(server) is not None:
            return True
        waited_until = asyncio.get_running_loop().time() + NODE_WAIT_S
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

    async def update(self, instance_id: str, custom_data: dict[str, Any]) -> dict[str, Any]:
        """Replace custom_data, in the row and in the running game's playflow.json."""
        self.check()
        server = self._alive(instance_id)
        now = now_ms()
        self._books.change(server, now, custom_data=custom_data)
        self._books.note(server, now, "updated")
        await self._reconciler.commit()
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
        self.check()
        server = self._alive(instance_id)
        if server.last_op != op_id:
            self._executor.new_generation(
                server, now_ms(), "restart_requested", {}, last_op=op_id, crashes=[], **values
            )
            if self._executor.find_node(server) is not None:
                await self._executor.place_and_launch(server)
        await self._reconciler.commit()
        self._reconciler.reconcile_runs(instance_id)
        return row_values(server)

    async def stop(self, instance_id: str, reason: str, detail: str | None) -> dict[str, Any]:
        """Stopped at once for the caller; the container ends gracefully behind. Stopping again changes nothing."""
        self.check()
        server = self._books.live.get(instance_id)
        if server is None:
            stored = await self._reconciler.stored(instance_id)
            if stored is None:
                raise NotFound(f"There is no server '{instance_id}'.", error="Server not found")
            return row_values(stored)
        if server.status != "stopped":
            self._executor.end(server, now_ms(), reason, "SHUTDOWN_SIGNAL", detail or "", None, gone=False)
        await self._reconciler.commit()
        self._reconciler.reconcile(server)
        return row_values(server)

    async def stop_all(self, reason: str, detail: str) -> int:
        """Stop every server of the region; returns when none is left or 30 s have passed. How many there were."""
        self.check()
        self._pools.keeper.closed = True
        alive = [s for s in self._books.live.values() if s.status != "stopped"]
        for server in alive:
            await self.stop(server.instance_id, reason, detail)
        deadline_at = asyncio.get_running_loop().time() + STOP_ALL_S
        while self._books.live and asyncio.get_running_loop().time() < deadline_at:
            await self._bell.rung(1.0)
        return len(alive)

    def _alive(self, instance_id: str) -> Server:
        server = self._books.live.get(instance_id)
        if server is None or server.status == "stopped":
            raise Conflict("The server has stopped; start a new one.", error="Server stopped")
        return server

    # Pools and nodes --------------------------------------------------------------------------------------------

    async def claim(self, calls: list[ClaimCall]) -> list[dict[str, Any] | None]:
        """Warm servers for many starts at once (see `pool_desk.py`); None where the start must go cold."""
        self.check()
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
        self.check()
        self._pools.keeper.announce((project_id, size, build), expected)
        await self._reconciler.settle()

    async def drain(self, node_id: str, draining: bool, until: int | None = None) -> None:
        """No new placements on that node (or again); its servers go on until they end. `until`: its machine will go."""
        cause = "operator" if until is None else "notice"
        await self._scaler.drain(node_id, Drain(cause, until) if draining else None)

    # What others read -------------------------------------------------------------------------------------------

    async def reached(self, who: str, wants: list[Want], timeout_s: float) -> list[str]:
        """Long poll of a replica: which of these servers have one of their statuses (see `feed.py`)."""
        found = await self._bell.until(who, wants, timeout_s)
        await self._commits.flush()  # what memory says is on disk before the replica reads it
        return found

    async def logs(self, key: RunKey, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        return await self._logs.logs(key, after, since_ms, limit)

    async def wait_logs(self, key: RunKey, after: str | None, timeout_s: float) -> tuple[list[LogLine], bool]:
        return await self._logs.wait_logs(key, after, timeout_s)

    async def usage(self, key: RunKey, period_s: int, step_s: int) -> dict[str, Any] | None:
        return await self._logs.ask_now(key, "usage", period_s, step_s)
