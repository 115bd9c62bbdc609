"""The project itself: settings, logs, budget, warm pools, usage."""

from decimal import Decimal
from typing import Any, Literal, Unpack

from fleet.client._async.transport import AsyncResource, part
from fleet.client.errors import NotFound
from fleet.client.models import (
    BudgetOut,
    PoolListOut,
    PoolOut,
    ProjectLogOut,
    SecretListOut,
    SecretOut,
    SettingsOut,
    UsageOut,
)
from fleet.client.requests import SettingsIn

_SETTINGS = "/api/v3/projects/settings"
_BUDGET = "/api/v3/projects/budget"
_SECRETS = "/api/v3/projects/secrets"


class AsyncProjects(AsyncResource):
    async def settings(self) -> SettingsOut:
        return await self._api.get(SettingsOut, _SETTINGS)

    async def change_settings(self, **parts: Unpack[SettingsIn]) -> SettingsOut:
        """Each part that is given replaces what was there, whole."""
        return await self._api.write(SettingsOut, "POST", _SETTINGS, body=parts)

    async def logs(self, start_time: str, *, end_time: str | None = None, limit: int = 500) -> ProjectLogOut:
        """Lines of all servers in the order of time. `start_time`: ISO 8601, `-1h`, or a `next_token`."""
        return await self._api.get(
            ProjectLogOut, "/api/v3/projects/logs", start_time=start_time, end_time=end_time, limit=limit
        )

    async def budget(self) -> BudgetOut | None:
        """The monthly budget and where the month stands; None if there is none."""
        try:
            return await self._api.get(BudgetOut, _BUDGET)
        except NotFound:
            return None

    async def set_budget(
        self, monthly_limit: Decimal | int | str, *, alerts: list[int] | None = None, hard_stop: bool = False
    ) -> BudgetOut:
        """`alerts`: percentages to be told of. `hard_stop`: refuse new starts once the limit is reached."""
        body = {"monthly_limit": str(monthly_limit), "hard_stop": hard_stop}
        return await self._api.write(
            BudgetOut, "PUT", _BUDGET, body=body if alerts is None else body | {"alerts": alerts}
        )

    async def remove_budget(self) -> None:
        await self._api.send("DELETE", _BUDGET)


class AsyncSecrets(AsyncResource):
    """What games are told and nobody is shown. Values go in only."""

    async def list(self) -> SecretListOut:
        """Their names, and when each was last used."""
        return await self._api.get(SecretListOut, _SECRETS)

    async def put(self, name: str, value: str, *, given_as: Literal["file", "variable"] = "file") -> SecretOut:
        """Make it, or replace it: a file in /run/secrets, or a variable, of servers that are launched from now on."""
        body = {"value": value, "given_as": given_as}
        return await self._api.write(SecretOut, "PUT", f"{_SECRETS}/{part(name)}", body=body)

    async def delete(self, name: str) -> None:
        """Servers that run keep what they were launched with."""
        await self._api.send("DELETE", f"{_SECRETS}/{part(name)}")


class AsyncPools(AsyncResource):
    async def list(self) -> PoolListOut:
        """Every warm pool: what stands ready, what is wanted, and why."""
        return await self._api.get(PoolListOut, "/api/v3/pools")

    async def get(self, region: str, size: str, *, build: str | None = None) -> PoolOut:
        return await self._api.get(PoolOut, f"/api/v3/pools/{part(region)}/{part(size)}", build=build)


class AsyncUsage(AsyncResource):
    """Times are ISO 8601 (UTC)."""

    async def get(
        self,
        *,
        start: str | None = None,
        end: str | None = None,
        group: Literal["hour", "day", "month"] = "day",
    ) -> UsageOut:
        """Time and money; default: this month until now."""
        params: dict[str, Any] = {"from": start, "to": end}
        return await self._api.get(UsageOut, "/api/v3/usage", group=group, **params)

    async def csv(
        self,
        *,
        start: str | None = None,
        end: str | None = None,
        group: Literal["hour", "day", "month"] = "day",
    ) -> str:
        params = {"from": start, "to": end, "group": group, "format": "csv"}
        return (await self._api.send("GET", "/api/v3/usage", params=params)).text

    async def invoice(self, month: str | None = None) -> str:
        """A page of HTML to print, of `2026-01`."""
        return (await self._api.send("GET", "/api/v3/usage/invoice", params={"month": month})).text
