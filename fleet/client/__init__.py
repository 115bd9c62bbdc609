"""A studio's way to its fleet, typed, with repetitions that are safe: docs/client.md.

    from fleet.client import FleetClient

    with FleetClient("https://fleet.example", "pf_…") as fleet:
        server = fleet.servers.start(name="match-1", region="eu-west", wait_running=60)

`AsyncFleetClient` is the same for asyncio. Needs neither Ray nor a fleet on this machine.
"""

from fleet.client._async.client import AsyncAdminClient, AsyncFleetClient
from fleet.client._sync.client import AdminClient, FleetClient
from fleet.client.errors import (
    ApiError,
    BadRequest,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    RateLimited,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unreachable,
    WaitFailed,
)
from fleet.client.events import Event, LobbyEvent, verify_webhook
from fleet.client.retry import NO_RETRIES, RetryPolicy

__all__ = [
    "NO_RETRIES",
    "AdminClient",
    "ApiError",
    "AsyncAdminClient",
    "AsyncFleetClient",
    "BadRequest",
    "Conflict",
    "Event",
    "FleetClient",
    "Forbidden",
    "Invalid",
    "LobbyEvent",
    "NotFound",
    "RateLimited",
    "RetryPolicy",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "Unreachable",
    "WaitFailed",
    "verify_webhook",
]
