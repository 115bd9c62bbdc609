"""From the journals to the webhooks' queues: each event becomes one delivery per webhook that wants it.

Deliveries and the position after them are one transaction, so none is made twice or left out. What cannot be queued for
one webhook (`webhook_not_fed` in the log) stops none of the others.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import structlog
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from fleet.events.deliveries import payload_of
from fleet.events.model import Cursor, Event, EventFilter, Position
from fleet.events.read import horizon, read_page, since_about
from fleet.jobs import Lease
from fleet.store.engine import Store, may_pass
from fleet.store.tables import Webhook, WebhookDelivery
from fleet.times import now_ms

log = structlog.get_logger(__name__)

MAX_WAITING = 10_000  # undelivered messages of one webhook; then it is disabled


def stored_cursor(lease: Lease) -> Cursor:
    text = lease.state.get("cursor")
    return Cursor.parse(text) if text else Cursor(Position(0, 0), Position(0, 0))


async def feed(store: Store, lease: Lease) -> bool:
    """Queue what is new; False once there is no more. Nothing from before the oldest webhook is looked at."""
    async with store.read() as session:
        hooks = (await session.exec(select(Webhook))).all()  # for disabled ones it waits
        until = await horizon(store, session)
        if not hooks:
            return False
        projects, since = {hook.project_id for hook in hooks}, min(hook.created_at for hook in hooks)
        after = stored_cursor(lease) if "cursor" in lease.state else await since_about(session, since)
        events, end = await read_page(store, session, after, until, projects, since)
    rows = _rows(hooks, events, now_ms())
    if rows or end != until or _far(end, after) or "cursor" not in lease.state:
        async with store.write() as session:
            for name, mine in rows.items():
                await _queue_well(store, session, name, mine)
            await lease.save(session, 0, lease.state | {"cursor": str(end)})
    return end != until


def _far(end: Cursor, after: Cursor) -> bool:
    """Whether it is worth a commit to write down that there was nothing for anyone."""
    return abs(end.server.id - after.server.id) > 1000 or end.server.tx - after.server.tx > 1000


def _rows(hooks: Iterable[Webhook], events: list[Event], now: int) -> dict[str, list[dict[str, Any]]]:
    """By webhook: the deliveries of what came since the webhook is there."""
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for hook in hooks:
        wanted = EventFilter(frozenset(hook.events or ()))
        for event in events:
            if event.project_id == hook.project_id and event.at >= hook.created_at and wanted.passes(event):
                try:
                    found[hook.id].append(_row(hook, event, now))
                except Exception:
                    log.exception("webhook_not_fed", webhook=hook.id, project_id=hook.project_id, event_id=event.id)
    return found


def _row(hook: Webhook, event: Event, now: int) -> dict[str, Any]:
    return {
        "webhook_id": hook.id,
        "project_id": hook.project_id,
        "event_id": event.id,
        "type": event.type,
        "payload": payload_of(event),
        "state": "pending",
        "attempts": 0,
        "next_at": now,
        "created_at": now,
        "updated_at": now,
    }


async def _queue_well(store: Store, session: AsyncSession, webhook_id: str, rows: list[dict[str, Any]]) -> None:
    try:
        async with session.begin_nested():
            await _queue(store, session, webhook_id, rows)
    except Exception as error:
        if may_pass(error):  # it is not about this webhook
            raise
        log.exception("webhook_not_fed", webhook=webhook_id, deliveries=len(rows))


async def _queue(store: Store, session: AsyncSession, webhook_id: str, rows: list[dict[str, Any]]) -> None:
    hook = await session.get(Webhook, webhook_id)
    if hook is None:
        return
    pending = (col(WebhookDelivery.webhook_id) == webhook_id, col(WebhookDelivery.state) == "pending")
    waiting = (await session.exec(select(func.count()).select_from(WebhookDelivery).where(*pending))).one()
    if waiting + len(rows) > MAX_WAITING and not hook.enabled:
        return
    if waiting + len(rows) > MAX_WAITING:
        hook.enabled, hook.disabled_reason, hook.updated_at = False, f"{waiting} messages are undelivered", now_ms()
        session.add(hook)
        log.warning("webhook_disabled", webhook=webhook_id, project_id=hook.project_id, waiting=waiting)
        return
    insert: Any = sqlite.insert if store.sqlite else postgresql.insert
    for begin in range(0, len(rows), 50):
        await session.exec(insert(WebhookDelivery).values(rows[begin : begin + 50]).on_conflict_do_nothing())
