"""What happens in the project: the stream, and webhooks."""

from collections.abc import AsyncIterator, Sequence
from typing import Literal, Unpack

from fleet.client._async.transport import AsyncResource, part
from fleet.client.events import Event
from fleet.client.models import (
    DeliveryListOut,
    DeliveryOut,
    NewWebhookOut,
    ResentOut,
    WebhookListOut,
    WebhookOut,
)
from fleet.client.requests import WebhookChange, WebhookIn

_PATH = "/api/v3/webhooks"
_OF_THE_STREAM = frozenset({"open", "end", "dropped", "error"})


class AsyncEvents(AsyncResource):
    async def follow(
        self, *, after: str | None = None, only: Sequence[str] = (), include_pool: bool = False
    ) -> AsyncIterator[Event]:
        """Everything that happens from now on, or after the `position` of an event; it ends only with an error.

        Breaks of the connection are bridged: nothing twice, nothing left out. `only`: kinds (`server`) or types
        (`server.running`)."""
        params = {"type": list(only) or None, "include_pool": include_pool}
        async for event in self._api.stream("/api/v3/events", params, after, frozenset()):
            if event.event not in _OF_THE_STREAM:
                yield Event.model_validate_json(event.data).model_copy(update={"position": event.id})


class AsyncWebhooks(AsyncResource):
    """What receives them checks each with `fleet.client.verify_webhook`."""

    async def list(self) -> WebhookListOut:
        return await self._api.get(WebhookListOut, _PATH)

    async def create(self, **webhook: Unpack[WebhookIn]) -> NewWebhookOut:
        """The answer holds the secret, for the only time."""
        return await self._api.write(NewWebhookOut, "POST", _PATH, body=webhook)

    async def get(self, webhook_id: str) -> WebhookOut:
        return await self._api.get(WebhookOut, f"{_PATH}/{part(webhook_id)}")

    async def change(self, webhook_id: str, **change: Unpack[WebhookChange]) -> WebhookOut:
        return await self._api.write(WebhookOut, "PATCH", f"{_PATH}/{part(webhook_id)}", body=change)

    async def delete(self, webhook_id: str) -> None:
        await self._api.send("DELETE", f"{_PATH}/{part(webhook_id)}")

    async def rotate_secret(self, webhook_id: str) -> NewWebhookOut:
        return await self._api.write(NewWebhookOut, "POST", f"{_PATH}/{part(webhook_id)}/rotate-secret")

    async def test(self, webhook_id: str) -> DeliveryOut:
        """Send a message of type `webhook.test`."""
        return await self._api.write(DeliveryOut, "POST", f"{_PATH}/{part(webhook_id)}/test")

    async def deliveries(
        self,
        webhook_id: str,
        *,
        state: Literal["pending", "delivered", "dead"] | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> DeliveryListOut:
        """What was sent, waits, or was given up, newest first."""
        path = f"{_PATH}/{part(webhook_id)}/deliveries"
        return await self._api.get(DeliveryListOut, path, state=state, limit=limit, offset=offset)

    async def resend(self, webhook_id: str, delivery_id: int) -> DeliveryOut:
        return await self._api.write(DeliveryOut, "POST", f"{_PATH}/{part(webhook_id)}/deliveries/{delivery_id}/resend")

    async def resend_dead(self, webhook_id: str) -> int:
        """All that were given up; how many."""
        return (await self._api.write(ResentOut, "POST", f"{_PATH}/{part(webhook_id)}/resend-dead")).resent
