"""The clients: one for a project's key, one for the operator's."""

import os
from typing import Self

import httpx

from fleet.client._async.account import AsyncPools, AsyncProjects, AsyncSecrets, AsyncUsage
from fleet.client._async.admin import AsyncAdmin
from fleet.client._async.builds import AsyncBuilds
from fleet.client._async.events import AsyncEvents, AsyncWebhooks
from fleet.client._async.lobbies import AsyncLobbies
from fleet.client._async.servers import AsyncServers
from fleet.client._async.transport import AsyncTransport
from fleet.client.address import address
from fleet.client.models import HealthOut
from fleet.client.retry import RetryPolicy
from fleet.errors import BadRequest

_POLICY = RetryPolicy()


class AsyncBaseClient:
    """Connections to one fleet. `http`: a client of your own, for proxies and certificates; it is not closed here."""

    def __init__(
        self,
        url: str,
        headers: dict[str, str],
        retry: RetryPolicy = _POLICY,
        timeout_s: float = 30.0,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._owned = http is None
        # Proxies of the environment are for the outside world, the fleet is addressed as it is.
        self._http = http or httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_connections=100))
        self._transport = AsyncTransport(address(url), headers, retry, timeout_s, self._http)

    async def health(self) -> HealthOut:
        """`ok` while the fleet's database answers."""
        return await self._transport.get(HealthOut, "/api/health")

    async def aclose(self) -> None:
        if self._owned:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AsyncFleetClient(AsyncBaseClient):
    """A project's way to its fleet; `url` and `api_key` default to FLEET_URL and FLEET_API_KEY."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retry: RetryPolicy = _POLICY,
        timeout_s: float = 30.0,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        found = url or os.environ.get("FLEET_URL"), api_key or os.environ.get("FLEET_API_KEY")
        if not (found[0] and found[1]):
            raise BadRequest("Give the fleet's url and an api_key, or set FLEET_URL and FLEET_API_KEY.")
        super().__init__(found[0], {"api-key": found[1]}, retry, timeout_s, http)
        self.servers = AsyncServers(self._transport)
        self.builds = AsyncBuilds(self._transport)
        self.projects = AsyncProjects(self._transport)
        self.secrets = AsyncSecrets(self._transport)
        self.pools = AsyncPools(self._transport)
        self.usage = AsyncUsage(self._transport)
        self.events = AsyncEvents(self._transport)
        self.webhooks = AsyncWebhooks(self._transport)

    def lobbies(
        self, config: str = "default", *, player_id: str | None = None, player_token: str | None = None
    ) -> AsyncLobbies:
        """The lobbies of a config, as a player sees them. `player_token`: where the project checks who players are."""
        who = {"x-player-id": player_id, "x-player-token": player_token}
        headers = {name: value for name, value in who.items() if value is not None}
        return AsyncLobbies(self._transport.asking_as(headers), config)


class AsyncAdminClient(AsyncBaseClient):
    """The operator's way; `url` and `admin_key` default to FLEET_URL and FLEET_ADMIN_KEY."""

    def __init__(
        self,
        url: str | None = None,
        admin_key: str | None = None,
        *,
        retry: RetryPolicy = _POLICY,
        timeout_s: float = 30.0,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        found = url or os.environ.get("FLEET_URL"), admin_key or os.environ.get("FLEET_ADMIN_KEY")
        if not (found[0] and found[1]):
            raise BadRequest("Give the fleet's url and an admin_key, or set FLEET_URL and FLEET_ADMIN_KEY.")
        super().__init__(found[0], {"admin-key": found[1]}, retry, timeout_s, http)
        self.projects = AsyncAdmin(self._transport)
