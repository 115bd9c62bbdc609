"""The RegionManager actor: the one writer of its region's servers.

It turns commands (`commands.py`), node events, deadlines and the repair timer (`reconciler.py`) into plans (`plan.py`,
pure) and carries them out, always in this order: change the books in memory, commit them together with whatever else
waits, and only then answer the caller, tell the waiting replicas and command the nodes. The exception is a launch,
which a node may begin while its row is being committed: if the commit never comes, the container belongs to nobody and
the next reconcile stops it.

After any restart it raises the region's epoch (which fences its predecessor), loads its rows, asks its agents what
runs, and plans everything. What it needs for that may be away: it tries again until it is there.
"""

import os
from typing import Any

import structlog
from prometheus_client import Metric

from fleet.actors.health import process_health
from fleet.actors.lanes import HEALTH, LOGS, WATCH, Lanes, in_lanes, lane
from fleet.actors.startup import Startup
from fleet.actors.tasks import SupervisedTasks
from fleet.actors.watchdog import Watchdog
from fleet.errors import BadRequest
from fleet.limits.fair import FairGate, Places
from fleet.node.runtime import LogLine, RunKey
from fleet.pools.claim import ClaimCall
from fleet.region.commands import Commands
from fleet.region.feed import Want
from fleet.region.metrics import health_families
from fleet.region.reconciler import Reconciler
from fleet.settings import FleetSettings, get_settings
from fleet.store.commit import take_epoch
from fleet.store.engine import Store
from fleet.telemetry.logs import setup_logging
from fleet.telemetry.request_id import bind_request_id

log = structlog.get_logger(__name__)

# Commands under way for one project, and for all. A start may wait 12 s for room.
COMMANDS = Places(1024, 128, 256)
COMMANDS_WAIT, COMMANDS_WAIT_S = 512, 30.0  # more of the same project, and how long they wait
OF_REQUESTS = frozenset({"start", "update", "ready", "restart", "stop"})


@in_lanes
class RegionManager:
    """The region's door: whoever comes before it is up waits a little, then hears what is missing (503)."""

    async def __init__(self, region: str) -> None:
        self._region = region
        self._lanes = Lanes()
        self._gate = FairGate("commands", COMMANDS, queue=COMMANDS_WAIT, wait_s=COMMANDS_WAIT_S)
        self._tasks = SupervisedTasks("region", region=region)
        self._startup = Startup(f"Region {region}", self._tasks)
        self._settings: FleetSettings | None = None
        self._watchdog: Watchdog | None = None
        self._store: Store | None = None
        self._epoch: int | None = None
        self._reconciler: Reconciler | None = None
        self._commands: Commands | None = None
        self._startup.begin(self._come_up)

    async def _come_up(self) -> None:
        """Each attempt goes on with what the ones before have: settings, one epoch for this process, its rows."""
        if self._settings is None:
            settings = get_settings()
            setup_logging(f"manager-{self._region}", settings.home)
            self._settings = settings
            self._watchdog = Watchdog(settings.hung_s)
        if self._store is None:
            self._store = Store(self._settings.database)
        self._startup.missing = "its database"  # which is waited for without an end
        if self._epoch is None:
            self._epoch = await take_epoch(self._store, self._region)
        if self._reconciler is None:
            reconciler = Reconciler(self._region, self._settings, self._store, self._epoch)
            try:
                await reconciler.load()
            except BaseException:
                await reconciler.close()
                raise
            self._reconciler = reconciler
        self._startup.missing = "the list of its agents"
        self._reconciler.begin()
        self._commands = Commands(self._region, self._reconciler)
        live = len(self._reconciler.books.live)
        log.info("manager_ready", region=self._region, epoch=self._epoch, live=live, pid=os.getpid())

    async def _up(self) -> Commands:
        await self._startup.ready()
        assert self._commands is not None
        return self._commands

    async def command(self, request_id: str, method: str, arguments: tuple[Any, ...]) -> Any:
        """One of `OF_REQUESTS` as part of a request: its id is in each line that is logged meanwhile."""
        bind_request_id(request_id)
        if method not in OF_REQUESTS:
            raise BadRequest(f"There is no command '{method}'.")
        commands = await self._up()
        async with self._gate.place(commands.project_of(method, arguments)):
            return await getattr(commands, method)(*arguments)

    async def claim(self, calls: list[ClaimCall]) -> list[dict[str, Any] | None]:
        return await (await self._up()).claim(calls)

    async def pools_changed(self, project_id: str) -> None:
        await (await self._up()).pools_changed(project_id)

    async def builds_changed(self, build_id: str) -> None:
        await (await self._up()).builds_changed(build_id)

    async def pools(self, project_id: str) -> list[dict[str, Any]]:
        return await (await self._up()).pools(project_id)

    async def announce(self, project_id: str, size: str, build: str, expected: list[tuple[float, float]]) -> None:
        await (await self._up()).announce(project_id, size, build, expected)

    async def stop_all(self, reason: str, detail: str) -> int:
        return await (await self._up()).stop_all(reason, detail)

    async def drain(self, node_id: str, draining: bool, until: int | None = None) -> None:
        await (await self._up()).drain(node_id, draining, until)

    @lane(WATCH)
    async def reached(self, who: str, wants: list[Want], timeout_s: float) -> list[str]:
        return await self._in_lane("reached", who, wants, timeout_s)

    @lane(LOGS)
    async def logs(self, key: RunKey, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        return await self._in_lane("logs", key, after, since_ms, limit)

    @lane(LOGS)
    async def wait_logs(self, key: RunKey, after: str | None, timeout_s: float) -> tuple[list[LogLine], bool]:
        return await self._in_lane("wait_logs", key, after, timeout_s)

    @lane(LOGS)
    async def usage(self, key: RunKey, period_s: int, step_s: int) -> dict[str, Any] | None:
        return await self._in_lane("usage", key, period_s, step_s)

    async def _in_lane(self, method: str, *arguments: Any) -> Any:
        """One of the calls that have a concurrency group of their own, in the actor's loop."""

        async def work() -> Any:
            return await getattr(await self._up(), method)(*arguments)

        return await self._lanes.run(work)

    @lane(HEALTH)
    async def status(self) -> dict[str, Any]:
        return await self._lanes.run(self._status)

    async def _status(self) -> dict[str, Any]:
        """For operators, at any time: epoch, nodes with what they hold, live servers, commits. `missing`: what it waits
        for before it is up, else None; `failing`: what fails without end."""
        failing = {one.task: {"for_s": round(one.for_s), "error": one.error} for one in process_health.failing()}
        health = {"missing": self._startup.missing, "failing": failing}
        if self._reconciler is None or not self._startup.done:
            blank: dict[str, Any] = {
                "epoch": self._epoch or 0,
                "live": 0,
                "commits": 0,
                "writes": 0,
                "nodes": [],
                "repair_ms": 0.0,
            }
            return {"region": self._region, "pid": os.getpid(), **blank, **health}
        repair_ms = round(self._reconciler.repair_s * 1000, 2)
        return self._reconciler.parts.report.status() | {"repair_ms": repair_ms} | health

    @lane(HEALTH)
    async def metrics(self) -> list[Metric]:
        """What this manager counts, for the API replica that answers a scrape."""
        return await self._lanes.run(self._metrics)

    async def _metrics(self) -> list[Metric]:
        if self._reconciler is None or not self._startup.done:
            return health_families(self._region, {}, up=False)
        return await self._reconciler.parts.metrics.collect_aside()
