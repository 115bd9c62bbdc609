"""The region managers as a replica (or script) sees them: actor calls, and waiting without polling.

Managers are made on first use, so a region that nobody plays in costs nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Any, cast

import structlog
from ray.exceptions import RayActorError, RayError, RayTaskError
from sqlalchemy import Text
from sqlalchemy import cast as cast_to
from sqlmodel import col, select

from fleet.actors.lanes import CALLS
from fleet.actors.single_flight import SingleFlight
from fleet.errors import FleetError, Unavailable
from fleet.node.runtime import LogLine, RunKey
from fleet.node.series import empty
from fleet.pools.claim import ClaimCall
from fleet.pools.config import pooled_regions
from fleet.region.coalesce import Coalescer
from fleet.region.head_actor import on_head
from fleet.region.manager import RegionManager
from fleet.region.names import manager_name
from fleet.region.watch import RegionWatch
from fleet.servers.model import LogPage, RestartChanges, UsageSeries
from fleet.store.commit import row_of, row_values
from fleet.store.engine import DATABASE_UNAVAILABLE, Store, may_pass
from fleet.store.tables import Project, Server, live
from fleet.telemetry.request_id import current_request_id

log = structlog.get_logger(__name__)

_CALL_S = 60.0
_LOG_WAIT_S = 20.0
_LOOK_UP_S = 10.0


def manager(region: str) -> Any:
    """The region's actor, made if there is none. Ray repeats its calls after a crash: they are idempotent."""
    return on_head(RegionManager, manager_name(region), region, repeats=True, max_concurrency=CALLS)


class RegionClient:
    """One per process. Raises `FleetError` subclasses only."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._handles: dict[str, Any] = {}
        self._look_ups = SingleFlight[str, Any]()
        self._watches: dict[str, RegionWatch] = {}
        self._claims: dict[str, Coalescer[ClaimCall, dict[str, Any] | None]] = {}

    async def recover(self) -> None:
        """Make the managers of regions that have unfinished servers or pools, where there are none: they reconcile
        without being asked. One pass of what every replica does all the time; it costs two small queries and a look-up
        by name for each region. Raises the first error, after all regions have had their turn."""
        failed: list[Exception] = []
        for region in sorted(await self._needed()):
            try:
                await self._look_up(region)
            except Exception as error:
                self._handles.pop(region, None)
                log.warning("region_not_recovered", region=region, error=repr(error))
                failed.append(error)
        if failed:
            raise failed[0]

    async def _needed(self) -> set[str]:
        """The regions that must have a manager though nobody asks for anything."""
        # Few projects have pools, so the others' settings are not read.
        pools = select(Project).where(cast_to(col(Project.settings), Text).contains('"pool_config"'))
        async with self._store.read() as session:
            regions = set((await session.exec(select(Server.region).where(live()).distinct())).all())
            projects = (await session.exec(pools)).all()
        for project in projects:
            try:
                regions |= pooled_regions(project.settings)
            except FleetError as error:  # of a region that the operator has removed
                log.warning("pools_not_recovered", project=project.id, error=error.detail)
        return regions

    async def claim(self, region: str, call: ClaimCall) -> Server | None:
        """A warm server, marked as the caller's and on disk; None if there is none and the start must go cold."""
        queue = self._claims.get(region)
        if queue is None:
            queue = self._claims[region] = Coalescer(partial(self._call, region, "claim"), _project_of)
        row = await queue.ask(call)
        return row_of(Server, row) if row is not None else None

    async def pools_changed(self, regions: Iterable[str], project_id: str) -> None:
        """Tell the regions that a project's settings have changed. Those that do not answer see it by themselves."""
        told = await asyncio.gather(
            *(self._call(region, "pools_changed", project_id) for region in regions), return_exceptions=True
        )
        for error in told:
            if isinstance(error, BaseException):
                log.warning("a region will see the settings later", project=project_id, error=repr(error))

    async def pools(self, region: str, project_id: str) -> list[dict[str, Any]]:
        return await self._call(region, "pools", project_id)

    async def announce(
        self, region: str, project_id: str, size: str, build: str, expected: list[tuple[float, float]]
    ) -> None:
        """Starts known ahead in one pool (epoch seconds, number); replaces the last word."""
        await self._call(region, "announce", project_id, size, build, expected)

    async def start(self, row: Server) -> Server:
        return row_of(Server, await self._command(row.region, "start", row_values(row)))

    async def update(self, region: str, instance_id: str, custom_data: dict[str, Any]) -> Server:
        return row_of(Server, await self._command(region, "update", instance_id, custom_data))

    async def ready(self, region: str, instance_id: str) -> Server:
        return row_of(Server, await self._command(region, "ready", instance_id))

    async def restart(self, region: str, instance_id: str, changes: RestartChanges, op_id: str) -> Server:
        return row_of(Server, await self._command(region, "restart", instance_id, dict(changes.values), op_id))

    async def stop(self, region: str, instance_id: str, reason: str, detail: str | None) -> Server:
        return row_of(Server, await self._command(region, "stop", instance_id, reason, detail))

    async def wait(self, region: str, instance_id: str, statuses: set[str], timeout_s: float) -> None:
        """Return once the committed row has one of the statuses, or at the timeout."""
        watch = self._watches.get(region)
        if watch is None:
            watch = self._watches[region] = RegionWatch(partial(self._call, region, "reached"))

        async def reached() -> bool:
            query = select(Server.status).where(col(Server.instance_id) == instance_id)
            return await self._store.first(query) in statuses

        await watch.until(instance_id, frozenset(statuses), reached, timeout_s)

    async def logs(self, server: Server, after: str | None, since_ms: int | None, limit: int) -> LogPage:
        """Lines of all the server's runs in order. A token names the run and the place in it."""
        generation, token = _split(after)
        lines: list[LogLine] = []
        for number in range(generation, server.generation + 1):
            key = RunKey(server.instance_id, number)
            page: list[LogLine] = await self._call(
                server.region,
                "logs",
                key,
                token,
                None if token else since_ms,
                limit - len(lines),
            )
            lines += [_numbered(line, number) for line in page]
            token = None
            if len(lines) >= limit:
                break
        ended = server.status == "stopped"
        more = len(lines) >= limit or not ended
        last = lines[-1].token if lines else after
        return LogPage(lines, server.node_id, last if more else None)

    async def usage(self, server: Server, period_s: int, step_s: int) -> UsageSeries:
        """What the server's present run used. Empty where nobody knows (any more)."""
        key = RunKey(server.instance_id, server.generation)
        try:
            found = await self._call(server.region, "usage", key, period_s, step_s)
        except Unavailable:
            if server.status != "stopped":
                raise
            found = None
        return UsageSeries(**found) if found else UsageSeries(step_s, empty())

    async def follow_logs(self, server: Server, after: str | None) -> AsyncIterator[list[LogLine]]:
        """What is there already, then lines as they come, until the present run has ended."""
        token = after
        while True:
            page = await self.logs(server, token, None, 500)
            if page.lines:
                token = page.lines[-1].token
                yield page.lines
            if len(page.lines) < 500:
                break
        key = RunKey(server.instance_id, server.generation)
        while True:
            generation, inner = _split(token)
            inner = inner if generation == server.generation else None
            lines, ended = await self._call(server.region, "wait_logs", key, inner, _LOG_WAIT_S)
            if lines:
                numbered = [_numbered(line, server.generation) for line in lines]
                token = numbered[-1].token
                yield numbered
            if ended:
                rest = await self.logs(server, token, None, 500)
                if rest.lines:
                    yield rest.lines
                return

    async def status(self, region: str) -> dict[str, Any]:
        return await self._call(region, "status")

    async def drain(self, region: str, node_id: str, *, draining: bool) -> None:
        await self._call(region, "drain", node_id, draining)

    async def stop_all(self, region: str, reason: str, detail: str) -> int:
        """Stop every server of the region; how many there were."""
        return await self._call(region, "stop_all", reason, detail)

    async def _look_up(self, region: str) -> Any:
        """The manager by its name, made if there is none. A look-up that hangs, with Ray's head away, keeps one thread
        for all who wait, and is waited for no longer than `_LOOK_UP_S`."""
        async with asyncio.timeout(_LOOK_UP_S):
            handle = await self._look_ups.do(region, lambda: asyncio.to_thread(manager, region), for_all=True)
        self._handles[region] = handle
        return handle

    async def _command(self, region: str, method: str, *arguments: Any) -> Any:
        """A call that does something for one request, whose id the manager's log then shows."""
        return await self._call(region, "command", current_request_id(), method, arguments)

    async def _call(self, region: str, method: str, *arguments: Any) -> Any:
        handle: Any = None
        try:
            handle = self._handles.get(region) or await self._look_up(region)
            async with asyncio.timeout(_CALL_S):
                return await getattr(handle, method).remote(*arguments)
        except RayTaskError as error:
            if isinstance(error.cause, FleetError):
                raise error.cause from None
            cause = cast("BaseException", error.cause)
            if not may_pass(cause):
                raise
            log.warning("region_hindered", region=region, method=method, error=repr(cause))
            raise Unavailable(
                f"Region {region} cannot reach its database now. Whether the command took effect is unknown: look "
                "before you repeat it.",
                error=DATABASE_UNAVAILABLE,
            ) from error
        except (RayError, TimeoutError) as error:
            if isinstance(error, RayActorError) and self._handles.get(region) is handle:
                del self._handles[region]  # it may be dead for good: the next call looks for it by name
            log.warning("region_does_not_answer", region=region, method=method, error=repr(error))
            raise Unavailable(
                f"Region {region} does not answer now. Whether the command took effect is unknown: look before "
                "you repeat it.",
                error="Region unavailable",
            ) from error


def _project_of(call: ClaimCall) -> str:
    return call.project_id


def _split(token: str | None) -> tuple[int, str | None]:
    """`<generation>:<token of that run>`; no token, or one that is not ours, is the beginning."""
    number, colon, inner = (token or "").partition(":")
    if not colon or not number.isdecimal() or len(number) > 9:
        return 1, None
    return max(1, int(number)), inner or None


def _numbered(line: LogLine, generation: int) -> LogLine:
    return LogLine(line.at, line.message, line.stream, f"{generation}:{line.token}")
