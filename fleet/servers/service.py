"""Servers for the API replicas: reads come from the database, commands go to the region's manager.

Nothing here writes a server. A command is checked here (bounds, build, ownership) and carried out by the one
writer of that region, behind `Regions`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Protocol, cast

from sqlmodel import col

from fleet.catalog import Catalog
from fleet.errors import Conflict, FleetError, NotFound
from fleet.node.runtime import LogLine
from fleet.operation import made_before, new_id, repeatable
from fleet.pools.claim import ClaimCall
from fleet.pools.config import is_pooled
from fleet.projects.model import PortConfig, Principal, project_ports
from fleet.projects.plans import Plan, PlanBook, check_start, effective_ttl
from fleet.projects.scope import count_of, owned
from fleet.projects.secrets import SECRETS_AT
from fleet.sealing import Variables
from fleet.servers import limits as check
from fleet.servers.admission import Admission
from fleet.servers.listing import Listing
from fleet.servers.model import (
    ListQuery,
    LogPage,
    RestartChanges,
    RestartRequest,
    RestartValues,
    StartRequest,
    UsageSeries,
)
from fleet.servers.project_log import Position, ProjectLog, Said
from fleet.servers.wanted import Wanted
from fleet.settings import ServerLimits
from fleet.store.engine import Store
from fleet.store.tables import Build, Server, ServerEvent

MAX_ID_LENGTH = 64


class Regions(Protocol):
    """The region managers as seen from a replica. Every method raises `FleetError` subclasses only."""

    async def recover(self) -> None:
        """Make the managers of regions that have live servers."""
        ...

    async def start(self, row: Server) -> Server:
        """Accept a new server; the committed row, with its network_ports. Safe to repeat for the same id."""
        ...

    async def claim(self, region: str, call: ClaimCall) -> Server | None:
        """A warm server, now the caller's; None if there is none. One effect for one `op_id`."""
        ...

    async def pools_changed(self, regions: Iterable[str], project_id: str) -> None:
        """The project's settings have changed. Never fails: regions look for themselves as well."""
        ...

    async def pools(self, region: str, project_id: str) -> list[dict[str, Any]]:
        """The project's pools in the region, with their decisions."""
        ...

    async def update(self, region: str, instance_id: str, custom_data: dict[str, Any]) -> Server: ...

    async def ready(self, region: str, instance_id: str) -> Server:
        """Take it that the game says it is ready. Saying it again changes nothing."""
        ...

    async def restart(self, region: str, instance_id: str, changes: RestartChanges, op_id: str) -> Server:
        """A new run of the same server; one effect for one `op_id`."""
        ...

    async def stop(self, region: str, instance_id: str, reason: str, detail: str | None) -> Server:
        """Stop; no error if it has stopped already."""
        ...

    async def wait(self, region: str, instance_id: str, statuses: set[str], timeout_s: float) -> None:
        """Return once the committed row has one of the statuses, or at the timeout."""
        ...

    async def logs(self, server: Server, after: str | None, since_ms: int | None, limit: int) -> LogPage: ...

    async def usage(self, server: Server, period_s: int, step_s: int) -> UsageSeries: ...

    def follow_logs(self, server: Server, after: str | None) -> AsyncIterator[list[LogLine]]:
        """Lines as they come; ends when the server's run has ended."""
        ...


class BuildResolver(Protocol):
    """The part of the build service that servers need."""

    async def resolve(self, project_id: str, name: str, version: int | None) -> Build:
        """The newest ready build of that name, or that version; NotFound or Conflict (not ready) otherwise."""
        ...


class ServerService:
    """All calls are scoped to the caller's project: another project's server is `NotFound`."""

    def __init__(
        self,
        store: Store,
        regions: Regions,
        builds: BuildResolver,
        catalog: Catalog,
        limits: ServerLimits,
        plans: PlanBook,
        variables: Variables,
    ) -> None:
        self._store = store
        self._variables = variables
        self._plans = plans
        self._admission = Admission(store)
        self._project_log = ProjectLog(store, regions)
        self._listing = Listing(store)
        self._regions = regions
        self._builds = builds
        self._catalog = catalog
        self._limits = limits

    async def get(self, caller: Principal, instance_id: str) -> Server:
        if len(instance_id) <= MAX_ID_LENGTH and instance_id.isascii() and instance_id.isprintable():
            query = owned(Server, caller.project_id).where(col(Server.instance_id) == instance_id)
            found = await self._store.first(query)
            if found is not None:
                return found
        raise NotFound(f"There is no server '{instance_id[:MAX_ID_LENGTH]}' in this project.", error="Server not found")

    async def page(self, caller: Principal, query: ListQuery) -> tuple[list[Server], int]:
        """One page of servers, newest first, and the number of all that match."""
        return await self._listing.page(caller.project_id, query)

    async def start(self, caller: Principal, request: StartRequest) -> Server:
        """Check the request; returns a warm server of the region's pool, else a launching one with its ports.

        With the setting `unique_match` and a match_id: the match's server, if it has one already."""
        return await self._admitted(caller, request, self._begin)

    async def _begin(self, wanted: Wanted, pooled: bool) -> Server:
        if pooled and not wanted.request.startup_args:
            warm = await self._regions.claim(wanted.region, wanted.claim())
            if warm is not None:
                return warm
        return await self._regions.start(wanted.row())

    async def claim(self, caller: Principal, request: StartRequest) -> Server:
        """A warm server or nothing: Conflict if none stands ready."""
        return await self._admitted(caller, request, self._claim)

    async def _claim(self, wanted: Wanted, pooled: bool) -> Server:
        where = f"{wanted.region}/{wanted.size.name}"
        if not pooled:
            raise Conflict(
                f"The project has no pool in {where}. Set pool_config in the project's settings, or use "
                "POST /servers/start.",
                error="No pool",
            )
        warm = await self._regions.claim(wanted.region, wanted.claim())
        if warm is None:
            raise Conflict(
                f"No warm server of build '{wanted.build.name}' stands ready in {where} now. Try again in a moment, or "
                "use POST /servers/start, which starts one if need be.",
                error="Pool empty",
            )
        return warm

    async def _admitted(
        self, caller: Principal, request: StartRequest, begin: Callable[[Wanted, bool], Awaitable[Server]]
    ) -> Server:
        """Begin what the plan allows and the project's match does not have yet."""
        if (done := await self._made_before(caller)) is not None:
            return done
        plan = self._plans.get(caller.plan)
        check_start(plan, request.compute_size, out_of_budget=caller.out_of_budget)
        wanted = await self._prepare(caller, request, plan)
        counted = plan.max_servers is not None or wanted.once
        if counted:
            admitted = await self._admission.admit(wanted, plan)
            if admitted.server is not None:
                return admitted.server
            wanted = admitted.wanted
        try:
            server = await begin(wanted, plan.pools and is_pooled(caller.settings, wanted.region, wanted.size.name))
        except FleetError as error:
            if counted and error.status < 500:  # else it may have begun
                await self._admission.failed(wanted)
            raise
        if counted:
            await self._admission.became(wanted, server)
        return server

    async def _made_before(self, caller: Principal) -> Server | None:
        """The server that an earlier try of this very write has made or claimed."""
        op_id = made_before()
        if op_id is None:
            return None
        for column in (
            Server.instance_id,
            Server.last_op,
        ):  # each has its index, both at once have none
            found = await self._store.first(owned(Server, caller.project_id).where(col(column) == op_id))
            if found is not None:
                return found
        return None

    async def _prepare(self, caller: Principal, request: StartRequest, plan: Plan) -> Wanted:
        region = self._catalog.region(request.region)
        size = self._catalog.size(request.compute_size)
        stored = caller.settings.get("environment_variables")
        environment = {**self._variables.open(stored), **request.environment}
        ports = request.port_configs if request.port_configs is not None else project_ports(caller.settings)
        self._check(request.startup_args, request.custom_data, environment, ports, request.ttl)
        build = await self._builds.resolve(caller.project_id, request.version_tag, request.version)
        return Wanted(
            instance_id=new_id(),
            project_id=caller.project_id,
            region=region.id,
            size=size,
            build=build,
            request=request,
            environment=environment,
            # All servers that have the project's own variables alone share its sealed text.
            stored=stored if isinstance(stored, str) and not request.environment else self._variables.seal(environment),
            ports=ports,
            ttl=effective_ttl(plan, size, request.ttl),
            once=bool(request.match_id) and bool(caller.settings.get("unique_match")),
            secrets_at=caller.settings.get(SECRETS_AT, 0),
            repeatable=repeatable(),
        )

    def _check(
        self,
        startup_args: str | None,
        custom_data: dict[str, Any] | None,
        environment: dict[str, str] | None,
        ports: "list[PortConfig] | None",
        ttl: int | None,
    ) -> None:
        check.check_startup_args(startup_args, self._limits)
        check.check_custom_data(custom_data, self._limits)
        check.check_environment(environment or {}, self._limits)
        check.check_ports(ports or [], self._limits)
        check.check_ttl(ttl)

    async def update(self, caller: Principal, instance_id: str, custom_data: dict[str, Any] | None) -> Server:
        """Replace custom_data (None: leave it as it is)."""
        server = await self.get(caller, instance_id)
        if custom_data is None:
            return server
        check.check_custom_data(custom_data, self._limits)
        if server.status == "stopped":
            raise Conflict("The server has stopped; its data can no longer change.", error="Server stopped")
        return await self._regions.update(server.region, instance_id, custom_data)

    async def restart(self, caller: Principal, instance_id: str, request: RestartRequest) -> Server:
        """A new run with what was given changed; the same id, new ports."""
        server = await self.get(caller, instance_id)
        if server.last_op is not None and server.last_op == made_before():
            return server
        if server.is_pool_server:
            raise Conflict("A pool server cannot be restarted; stop it and start another.", error="Pool server")
        if server.status == "stopped":
            raise Conflict("The server has stopped; start a new one.", error="Server stopped")
        changes = RestartChanges(await self._changes(caller, server, request.given))
        return await self._regions.restart(server.region, instance_id, changes, new_id())

    async def _changes(self, caller: Principal, server: Server, given: dict[str, Any]) -> RestartValues:
        values = cast(RestartValues, {k: v for k, v in given.items() if k in RestartValues.__annotations__})
        self._check(
            values.get("startup_args"),
            values.get("custom_data"),
            cast("dict[str, str] | None", values.get("environment")),
            values.get("port_configs"),
            values.get("ttl"),
        )
        if "environment" in values:
            values["environment"] = self._variables.seal(cast("dict[str, str] | None", values["environment"]))
        # A size that is offered no more: what has it keeps what it has.
        size, plan = self._catalog.known(server.compute_size), self._plans.get(caller.plan)
        check_start(plan, server.compute_size, out_of_budget=False)  # it has its place, so only what it is counts
        if size is not None and size.persistent:
            values["auto_restart"] = True
        if size is not None and ("ttl" in values or plan.ttl is not None):
            values["ttl"] = effective_ttl(plan, size, values.get("ttl"))
        if "version_tag" in values or "version" in values:
            tag = values.get("version_tag") or server.version_tag
            build = await self._builds.resolve(caller.project_id, tag, values.get("version"))
            values["build_id"], values["version_tag"], values["version"] = build.build_id, build.name, build.version
        return values

    async def ready(self, caller: Principal, instance_id: str) -> Server:
        """The game takes players, says the project: heard where readiness is the game's own call."""
        server = await self.get(caller, instance_id)
        return server if server.status != "launching" else await self._regions.ready(server.region, instance_id)

    async def stop(self, caller: Principal, instance_id: str, detail: str | None) -> Server:
        """Stop the server. Stopping it again is the same success."""
        server = await self.get(caller, instance_id)
        if server.status == "stopped":
            return server
        return await self._regions.stop(server.region, instance_id, "requested", detail)

    async def wait(self, caller: Principal, server: Server, status: str, timeout_s: float) -> Server:
        """The server once it has that status or has stopped, or as it is at the timeout."""
        wanted = {status, "stopped"}
        if server.status in wanted:
            return server
        await self._regions.wait(server.region, server.instance_id, wanted, timeout_s)
        return await self.get(caller, server.instance_id)

    async def events(
        self, caller: Principal, instance_id: str, limit: int, offset: int
    ) -> tuple[list[ServerEvent], int]:
        """One page of the server's journal, oldest first, and the number of all its events."""
        await self.get(caller, instance_id)
        rows = owned(ServerEvent, caller.project_id).where(col(ServerEvent.instance_id) == instance_id)
        async with self._store.read() as session:
            total = (await session.exec(count_of(rows))).one()
            page = await session.exec(rows.order_by(col(ServerEvent.id)).limit(limit).offset(offset))
            return list(page.all()), total

    async def logs(
        self, caller: Principal, instance_id: str, after: str | None, since_ms: int | None, limit: int
    ) -> tuple[Server, LogPage]:
        """Up to `limit` lines after the token, else from `since_ms`, else from the beginning."""
        server = await self.get(caller, instance_id)
        return server, await self._regions.logs(server, after, since_ms, limit)

    async def project_logs(
        self, caller: Principal, start: Position, end_ms: int, limit: int
    ) -> tuple[list[Said], Position | None]:
        """Lines of all the project's servers in the order of time, and where to go on."""
        return await self._project_log.page(caller.project_id, start, end_ms, limit)

    async def usage(self, caller: Principal, instance_id: str, period_s: int, step_s: int) -> UsageSeries:
        """What the server's present run used over the last `period_s`."""
        return await self._regions.usage(await self.get(caller, instance_id), period_s, step_s)

    def follow(self, server: Server, after: str | None) -> AsyncIterator[list[LogLine]]:
        """Lines of a server that `get` gave, as they come."""
        return self._regions.follow_logs(server, after)
