"""What is sent, how it is signed (https://www.standardwebhooks.com), and when it is tried again. Pure."""

import base64
from datetime import UTC, datetime
from typing import Any

import orjson
from standardwebhooks.webhooks import Webhook as Signer

from fleet.events.model import Event

MAX_ATTEMPTS = 12  # over about a day: 5 s, 15 s, 45 s, … at most 6 h
FIRST_MS, _FACTOR, _MOST_MS = 5_000, 3, 6 * 3_600_000
SECRET_BYTES = 32


def secret_of(random: bytes) -> str:
    """A webhook's secret in the standard's form."""
    return "whsec_" + base64.b64encode(random).decode()


def payload_of(event: Event) -> dict[str, Any]:
    view = event.view()
    return {"type": view.pop("type"), "timestamp": view.pop("at"), **view}


def message(secret: str, event_id: str, payload: dict[str, Any], now: int) -> tuple[bytes, dict[str, str]]:
    """Body and headers of one attempt. The id stays the same in every attempt: receivers know repeats by it."""
    body = orjson.dumps(payload)
    moment = datetime.fromtimestamp(now // 1000, UTC)
    return body, {
        "content-type": "application/json",
        "user-agent": "fleet-webhooks/1",
        "webhook-id": event_id,
        "webhook-timestamp": str(now // 1000),
        "webhook-signature": Signer(secret).sign(event_id, moment, body.decode()),
    }


def retry_ms(attempts: int, chance: float, asked_s: float | None = None, first_ms: int = FIRST_MS) -> int | None:
    """How long to wait after so many attempts; None: no more. `chance` in [0, 1) spreads what failed together.

    `asked_s`: what the receiver's Retry-After says.
    """
    if attempts >= MAX_ATTEMPTS:
        return None
    wait = min(first_ms * _FACTOR ** (attempts - 1), _MOST_MS)
    wait = int(wait * (0.8 + 0.4 * chance))
    return max(wait, min(int((asked_s or 0) * 1000), _MOST_MS))
