"""What streams and webhooks tell, and whether a webhook is genuine."""

from collections.abc import Mapping
from typing import Any, Literal

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from fleet.client.base import Model
from fleet.client.models import LobbyOut, QueueStatsOut
from fleet.errors import Unauthorized


class Event(Model):
    """Something that happened in the project."""

    id: str
    """The same in every stream and webhook, however often it is told."""
    type: str
    """For example `server.running`."""
    kind: str = ""
    subject: str = ""
    """The id of the server, build, pool, … that it is about."""
    at: str
    project_id: str
    region: str | None = None
    data: dict[str, Any]
    position: str | None = None
    """Where a stream goes on after this event; webhooks have none."""


class LobbyEvent(Model):
    """`connected` and `lobby_updated` have the lobby, `queue_stats` the stats, `lobby_deleted` nothing."""

    type: Literal["connected", "lobby_updated", "queue_stats", "lobby_deleted"]
    lobby: LobbyOut | None = None
    stats: QueueStatsOut | None = None


def verify_webhook(secret: str, headers: Mapping[str, str], body: bytes | str) -> Event:
    """The event of a received webhook. `Unauthorized` if its signature is wrong, or it is older than five minutes.

    `body` as it came, byte by byte. The same event may come twice: know it by its `id`."""
    plain = {name.lower(): value for name, value in headers.items()}
    try:
        found: dict[str, Any] = Webhook(secret).verify(body, plain)
        return Event.model_validate({**found, "at": found["timestamp"]})
    except (WebhookVerificationError, ValueError) as error:
        raise Unauthorized(f"This is no message of the fleet: {error}", error="Wrong signature") from error
