"""Servers: start, claim, watch, change, stop, and what they wrote."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Literal, Unpack

from fleet.client._async.transport import AsyncResource, part
from fleet.client.errors import WaitFailed
from fleet.client.models import (
    EventListOut,
    LogListOut,
    LogOut,
    ServerListOut,
    ServerMetricsOut,
    ServerOut,
    StoppedOut,
)
from fleet.client.requests import ClaimIn, RestartIn, StartIn

Status = Literal["launching", "running", "stopped"]
PAGE = 100
LOG_PAGE = 1000
LONGEST_WAIT_S = 60.0
_PATH = "/api/v3/servers"


class AsyncServers(AsyncResource):
    async def list(
        self,
        *,
        limit: int = PAGE,
        offset: int = 0,
        status: Sequence[Status] | None = None,
        include_launching: bool | None = None,
        include_pool: bool | None = None,
    ) -> ServerListOut:
        """One page, newest first: what runs, or exactly those of the statuses."""
        return await self._api.get(
            ServerListOut,
            _PATH,
            limit=limit,
            offset=offset,
            status=status,
            include_launching=include_launching,
            include_pool=include_pool,
        )

    async def iterate(
        self,
        *,
        status: Sequence[Status] | None = None,
        include_launching: bool | None = None,
        include_pool: bool | None = None,
    ) -> AsyncIterator[ServerOut]:
        """All of them, over all pages, none twice. One that stops meanwhile may hide another at the edge of a page."""
        seen: set[str] = set()
        offset, more = 0, True
        while more:
            page = await self.list(
                offset=offset, status=status, include_launching=include_launching, include_pool=include_pool
            )
            for server in page.servers:
                if server.instance_id not in seen:
                    seen.add(server.instance_id)
                    yield server
            offset += PAGE
            more = page.has_more

    async def start(
        self,
        *,
        wait_running: float | None = None,
        idempotency_key: str | None = None,
        **server: Unpack[StartIn],
    ) -> ServerOut:
        """A new server, or one of a warm pool. `wait_running`: answer once it runs, or after so many seconds (120 at
        most) as it is then."""
        held = {} if wait_running is None else {"wait_for": "running", "timeout": wait_running}
        return await self._api.write(
            ServerOut,
            "POST",
            f"{_PATH}/start",
            body=server,
            key=idempotency_key,
            within=wait_running or 0.0,
            **held,
        )

    async def claim(self, *, idempotency_key: str | None = None, **wanted: Unpack[ClaimIn]) -> ServerOut:
        """A server of a warm pool; `Conflict` if none stands ready."""
        return await self._api.write(ServerOut, "POST", f"{_PATH}/claim", body=wanted, key=idempotency_key)

    async def get(self, instance_id: str) -> ServerOut:
        return await self._api.get(ServerOut, f"{_PATH}/{part(instance_id)}")

    async def wait(
        self, instance_id: str, status: Literal["running", "stopped"] = "running", *, within: float = 120.0
    ) -> ServerOut:
        """The server once it has the status. `WaitFailed` when it stopped instead, or did neither within so long."""
        until = time.monotonic() + within
        while True:
            held = max(0.0, min(until - time.monotonic(), LONGEST_WAIT_S))
            server = await self._api.get(
                ServerOut, f"{_PATH}/{part(instance_id)}", within=held, wait_for=status, timeout=held
            )
            if server.status == status:
                return server
            if server.status == "stopped":
                raise WaitFailed(f"Server {instance_id} has stopped.", server, error="No running server")
            if time.monotonic() >= until:
                raise WaitFailed(f"Server {instance_id} is still {server.status} after {within:.0f} s.", server)

    async def update(self, instance_id: str, custom_data: dict[str, object] | None) -> ServerOut:
        """`custom_data` replaces what was there."""
        body = {"custom_data": custom_data}
        return await self._api.write(ServerOut, "POST", f"{_PATH}/{part(instance_id)}/update", body=body)

    async def restart(self, instance_id: str, **changes: Unpack[RestartIn]) -> ServerOut:
        """A new run under the same id, with new ports. What is left out stays as it is."""
        return await self._api.write(ServerOut, "POST", f"{_PATH}/{part(instance_id)}/restart", body=changes)

    async def stop(self, instance_id: str, reason: str | None = None) -> None:
        """Gracefully; stopping twice is no error."""
        await self._api.write(StoppedOut, "DELETE", f"{_PATH}/{part(instance_id)}", shutdown_reason=reason)

    async def events(self, instance_id: str, *, limit: int = 200, offset: int = 0) -> EventListOut:
        """Every step of its life, oldest first."""
        return await self._api.get(EventListOut, f"{_PATH}/{part(instance_id)}/events", limit=limit, offset=offset)

    async def logs(self, instance_id: str, *, start_time: str | None = None, limit: int = 200) -> LogListOut:
        """One page of what it wrote, oldest first. `start_time`: ISO 8601, `-30m`, or the last page's `next_token`."""
        path = f"{_PATH}/{part(instance_id)}/logs"
        return await self._api.get(LogListOut, path, start_time=start_time, limit=limit)

    async def all_logs(self, instance_id: str, *, start_time: str | None = None) -> AsyncIterator[LogOut]:
        """Every line until now."""
        while True:
            page = await self.logs(instance_id, start_time=start_time, limit=LOG_PAGE)
            for line in page.logs:
                yield line
            start_time = page.next_token
            if not start_time or len(page.logs) < LOG_PAGE:
                return

    async def follow_logs(self, instance_id: str, *, start_time: str | None = None) -> AsyncIterator[LogOut]:
        """Lines as they come, until the run has ended; over breaks of the connection too, each line once."""
        path = f"{_PATH}/{part(instance_id)}/logs"
        params = {"follow": True, "start_time": start_time}
        async for event in self._api.stream(path, params, None, frozenset({"end"})):
            if event.event == "log":
                yield LogOut.model_validate_json(event.data)

    async def metrics(
        self,
        instance_id: str,
        *,
        period: Literal["5m", "15m", "1h", "6h", "24h"] = "1h",
        step: Literal["15s", "30s", "60s", "300s"] = "60s",
    ) -> ServerMetricsOut:
        """What it used over time."""
        return await self._api.get(ServerMetricsOut, f"{_PATH}/{part(instance_id)}/metrics", period=period, step=step)
