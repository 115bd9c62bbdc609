"""What a match needs of the world: a server of its own, one however often it is asked for, and an end of it.

The server's id follows from the match and the region, so a start that is repeated after a kill is the same server, hot
or cold. Every call has an end; a `TimeoutError` is like any other error: the caller asks again.
"""

import asyncio
import uuid
from typing import Any, Protocol

import structlog
from sqlmodel import col

from fleet.errors import FleetError, Unavailable
from fleet.faults import crash_point
from fleet.lobbies.config import LobbyConfig
from fleet.lobbies.match import Match
from fleet.operation import new_id, operation
from fleet.projects.model import Principal
from fleet.projects.scope import owned
from fleet.servers.model import StartRequest
from fleet.store.engine import Store
from fleet.store.tables import Server
from fleet.times import now_ms

log = structlog.get_logger(__name__)

_MATCH = uuid.UUID("6f1b0c5e-5d0b-4b53-8d5c-0d7b6f2a9f11")
START_S = 75.0  # a little longer than a region's own answer may take
STOP_S = 75.0
TELL_S = 75.0
READ_S = 20.0
ANNOUNCE_S = 5.0
_LOOK_S = 60.0  # a server's row is read at least so often: news of it that got lost are found then
_SLACK_S = 10.0
_PENDING_MS = 70_000  # a start that nobody waits for any more may still become a server within this
_AGAIN_S = 0.5


class Starts(Protocol):
    """The part of `ServerService` that matches need."""

    async def start(self, caller: Principal, request: StartRequest) -> Server: ...
    async def update(self, caller: Principal, instance_id: str, custom_data: dict[str, Any] | None) -> Server: ...


class Regions(Protocol):
    """The part of the region managers that matches need."""

    async def stop(self, region: str, instance_id: str, reason: str, detail: str | None) -> Server: ...
    async def wait(self, region: str, instance_id: str, statuses: set[str], timeout_s: float) -> None: ...
    async def announce(
        self, region: str, project_id: str, size: str, build: str, expected: list[tuple[float, float]]
    ) -> None: ...


def server_op(match: Match) -> str:
    """The write that starts this match's server in its present region."""
    return str(uuid.uuid5(_MATCH, f"{match.project_id}/{match.id}/{match.region}"))


def server_id_of(match: Match) -> str:
    """The id that this write gives: a cold server's own, and the operation of a warm one's claim."""
    with operation(server_op(match)):
        return new_id()


class World:
    def __init__(self, store: Store, starts: Starts, regions: Regions) -> None:
        self._store = store
        self._starts = starts
        self._regions = regions

    async def start(self, caller: Principal, match: Match, config: LobbyConfig, data: dict[str, Any]) -> Server:
        """The match's server in its region; FleetError says why there is none."""
        wanted = config.server_settings
        request = StartRequest(
            name=f"{match.config[:100]} {match.id}",
            region=match.region,
            compute_size=wanted.server_size,
            version_tag=wanted.game_build,
            version=wanted.game_build_version,
            ttl=wanted.ttl,
            port_configs=wanted.ports,
            custom_data=data,
            match_id=match.id,
        )
        crash_point("lobby.starting")
        with operation(server_op(match)):
            async with asyncio.timeout(START_S):
                server = await self._starts.start(caller, request)
        crash_point("lobby.started")
        return server

    async def find(self, match: Match) -> Server | None:
        """The server that the match has, or that a start of it has made."""
        known = match.server_id or server_id_of(match)
        mine = owned(Server, match.project_id)
        async with asyncio.timeout(READ_S):
            found = await self._store.first(mine.where(col(Server.instance_id) == known))
            if found is not None or match.server_id is not None:
                return found
            async with self._store.read() as session:  # a warm one, claimed before its claim was heard of
                warm = mine.where(col(Server.match_id) == match.id, col(Server.last_op) == known)
                return (await session.exec(warm)).first()

    async def stop(self, match: Match, why: str, *, sure: bool) -> None:
        """Returns once the match's server is stopped, or there is and will be none. `sure`: if there is none now, none
        will come."""
        while True:
            server = await self.find(match)
            if server is None and (sure or now_ms() - match.updated_at > _PENDING_MS):
                return
            if server is not None and server.status == "stopped":
                return
            if server is not None:
                await self._try_stop(server, why)
            await asyncio.sleep(_AGAIN_S)

    async def _try_stop(self, server: Server, why: str) -> None:
        try:
            async with asyncio.timeout(STOP_S):
                await self._regions.stop(server.region, server.instance_id, "requested", why)
        except (Unavailable, TimeoutError) as error:
            log.warning("match_server_stopped_later", server=server.instance_id, error=repr(error))

    async def changed(self, match: Match) -> Server | None:
        """The match's server once its status is another than the match knows; None if there is no such server."""
        seen, region = match.server_status or "", match.region
        awaited = {"launching", "running", "stopped"} - {seen}
        query = owned(Server, match.project_id).where(col(Server.instance_id) == match.server_id)
        while True:
            async with asyncio.timeout(READ_S):
                found = await self._store.first(query)
            if found is None or found.status != seen:
                return found
            try:
                async with asyncio.timeout(_LOOK_S + _SLACK_S):
                    await self._regions.wait(region, found.instance_id, awaited, _LOOK_S)
            except (FleetError, TimeoutError) as error:
                log.warning("server_not_watched", server=found.instance_id, error=repr(error))
                await asyncio.sleep(_AGAIN_S)

    async def tell(self, caller: Principal, match: Match, data: dict[str, Any]) -> None:
        """The running game's custom_data."""
        if match.server_id is not None:
            async with asyncio.timeout(TELL_S):
                await self._starts.update(caller, match.server_id, data)

    async def announce(
        self, region: str, project_id: str, size: str, build: str, expected: list[tuple[float, float]]
    ) -> bool:
        """Whether the region has heard it. Never raises."""
        try:
            async with asyncio.timeout(ANNOUNCE_S):
                await self._regions.announce(region, project_id, size, build, expected)
        except Exception as error:  # said again with the next announcement
            log.warning("queue_not_announced", region=region, error=repr(error))
            return False
        return True


def why_stopped(server: Server) -> str:
    detail = f" ({server.stop_detail})" if server.stop_detail else ""
    return f"{server.stop_reason or server.shutdown_reason or 'stopped'}{detail}"[:500]
