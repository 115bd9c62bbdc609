"""Usage for a billing service outside, which turns it into invoices. Off unless the operator sets it up.

One meter event per project and hour, when the hour has long been over. Its value is what the month has cost by then
less what was sent before, so what came late into the journal is made good by the next hour. Each value is written down
before it is sent and sent under the same identifier until it is taken: the service counts it once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

import httpx
import structlog

from fleet.billing.intervals import HOUR_MS
from fleet.billing.service import UsageService
from fleet.billing.statement import month_begin
from fleet.config_files import ConfigFile, Invalid, kept_file, read_config
from fleet.errors import FleetError, Unavailable
from fleet.jobs import Lease
from fleet.settings import StripeSettings
from fleet.store.engine import Store
from fleet.times import now_ms

log = structlog.get_logger(__name__)

JOB = "meters"
SETTLE_MS = HOUR_MS  # after an hour's end: nodes that were out of reach have told what they knew
_LATE_MS = 30 * 24 * HOUR_MS  # Stripe takes nothing older than 35 days


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """`value`: whole millionths of the currency; `at`: seconds since the epoch."""

    customer: str
    value: int
    identifier: str
    at: int


class Meters(Protocol):
    """Where meter events go. `send` returns once it is taken (again); `Unavailable`: try later."""

    async def send(self, event: MeterEvent) -> None: ...


class StripeMeters:
    """Stripe's billing meters: POST /v1/billing/meter_events."""

    def __init__(self, http: httpx.AsyncClient, key: str, event_name: str) -> None:
        self._http = http
        self._key = key
        self._event_name = event_name

    async def send(self, event: MeterEvent) -> None:
        form = {
            "event_name": self._event_name,
            "payload[stripe_customer_id]": event.customer,
            "payload[value]": str(event.value),
            "identifier": event.identifier,
            "timestamp": str(event.at),
        }
        try:
            answer = await self._http.post(
                "/v1/billing/meter_events", data=form, headers={"authorization": f"Bearer {self._key}"}
            )
        except httpx.TransportError as error:
            raise Unavailable(f"Stripe cannot be reached: {type(error).__name__}.") from None
        if answer.is_success or _is_repeat(answer):
            return
        if answer.status_code in (409, 429) or answer.status_code >= 500:
            raise Unavailable(f"Stripe answered {answer.status_code}; it is tried again.")
        raise FleetError(f"Stripe refused a meter event: {answer.status_code} {_message(answer)}", error="Stripe")


def _error(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    return dict(error) if isinstance(error, dict) else {}  # pyright: ignore[reportUnknownArgumentType]


def _message(answer: httpx.Response) -> str:
    return str(_error(answer).get("message", ""))[:200]


def _is_repeat(answer: httpx.Response) -> bool:
    """An identifier that is known already: the event has been counted."""
    return answer.status_code == 400 and "identifier" in _message(answer) and "already" in _message(answer)


def _customers_of(content: Any) -> dict[str, str]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise Invalid("it must map project ids to customer ids")
    return {str(key): str(value) for key, value in cast("dict[Any, Any]", content).items()}


def read_customers(path: Path) -> dict[str, str]:
    """`project id: customer id` of a YAML file; only these projects are metered. `BadConfig` says what is wrong."""
    return read_config(path, _customers_of)


@lru_cache(maxsize=4)
def _customers(path: Path) -> ConfigFile[dict[str, str]]:
    return ConfigFile(path, _customers_of, kept_file("customers.yaml"))


async def export_to_stripe(store: Store, usage: UsageService, settings: StripeSettings, lease: Lease) -> None:
    """The job's work. The key is read anew each time, the customers when their file has changed."""
    if settings.key_file is None or settings.customers is None:
        return
    key, customers = settings.key_file.read_text().strip(), _customers(settings.customers).now()
    async with httpx.AsyncClient(base_url=settings.url, timeout=30, trust_env=False) as http:
        await export(store, usage, StripeMeters(http, key, settings.event_name), customers, lease)


async def export(
    store: Store,
    usage: UsageService,
    meters: Meters,
    customers: Mapping[str, str],
    lease: Lease,
    now: int | None = None,
) -> None:
    """Send every hour that is over and not sent. Raises where a project's could not be; the others are sent."""
    now = now_ms() if now is None else now
    last = (now - SETTLE_MS) // HOUR_MS * HOUR_MS  # hours before this are sent
    failed: list[str] = []
    for project_id, customer in sorted(customers.items()):
        try:
            await _export_one(store, usage, meters, project_id, customer, last, lease)
        except Unavailable as error:
            failed.append(f"{project_id}: {error.detail}")
        except FleetError as error:
            log.error("meter_event_refused", project_id=project_id, error=error.detail)
            failed.append(f"{project_id}: {error.detail}")
    if failed:
        raise Unavailable("; ".join(failed)[:500])


async def _export_one(
    store: Store, usage: UsageService, meters: Meters, project_id: str, customer: str, last: int, lease: Lease
) -> None:
    state: dict[str, Any] = dict(lease.state.get(project_id) or {"hour": last - 2 * HOUR_MS, "month": 0, "sent": 0})
    if state.get("value") is not None:  # was to be sent when this stopped
        state = await _send(store, meters, project_id, customer, state, lease)
    hour = max(int(state["hour"]) + HOUR_MS, last - _LATE_MS)
    while hour < last:
        month = month_begin(hour)
        statement = await usage.statement(project_id, month, hour + HOUR_MS, "hour", hour + HOUR_MS)
        sent = int(state["sent"]) if state["month"] == month else 0
        value = max(0, statement.amount() - sent)
        state = {"hour": hour, "month": month, "sent": sent + value, "value": value or None}
        await _save(store, lease, project_id, state)
        if value:
            state = await _send(store, meters, project_id, customer, state, lease)
        hour += HOUR_MS


async def _send(
    store: Store, meters: Meters, project_id: str, customer: str, state: dict[str, Any], lease: Lease
) -> dict[str, Any]:
    hour = int(state["hour"])
    identifier = f"fleet-{project_id}-{hour // HOUR_MS}"
    await meters.send(MeterEvent(customer, int(state["value"]), identifier, (hour + HOUR_MS) // 1000 - 1))
    state = {**state, "value": None}
    await _save(store, lease, project_id, state)
    return state


async def _save(store: Store, lease: Lease, project_id: str, state: dict[str, Any]) -> None:
    async with store.write() as session:
        await lease.save(session, lease.position, {**lease.state, project_id: state})
