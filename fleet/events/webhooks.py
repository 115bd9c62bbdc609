"""A project's webhooks: where its events are sent. All calls are scoped to the caller's project."""

import secrets
from typing import Any

from sqlalchemy import delete, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from fleet.errors import Conflict, NotFound
from fleet.events.deliveries import SECRET_BYTES, secret_of
from fleet.events.model import EventFilter
from fleet.events.targets import check_url
from fleet.operation import new_id
from fleet.projects.scope import count_of, owned
from fleet.sealing import Sealer
from fleet.settings import WebhookSettings
from fleet.store.engine import Store
from fleet.store.tables import Webhook, WebhookDelivery
from fleet.times import iso, now_ms


class WebhookService:
    def __init__(self, store: Store, sealer: Sealer, settings: WebhookSettings) -> None:
        self._store = store
        self._sealer = sealer
        self._settings = settings

    async def create(self, project_id: str, url: str, events: list[str] | None, enabled: bool) -> tuple[Webhook, str]:
        """The webhook and its secret, in clear for the only time."""
        self._check(url, events)
        now, secret = now_ms(), secret_of(secrets.token_bytes(SECRET_BYTES))
        hook = Webhook(
            id=new_id(),
            project_id=project_id,
            url=url,
            secret=self._sealer.seal(secret),
            events=events or None,
            enabled=enabled,
            created_at=now,
            updated_at=now,
        )
        async with self._store.write() as session:
            if (known := await session.get(Webhook, hook.id)) is not None:  # the same write, repeated after a crash
                return known, self._sealer.open(known.secret)
            number = (await session.exec(count_of(owned(Webhook, project_id)))).one()
            if number >= self._settings.max_per_project:
                raise Conflict(f"The project has {number} webhooks, its limit; delete one.", error="Too many webhooks")
            session.add(hook)
        return hook, secret

    async def all_of(self, project_id: str) -> list[Webhook]:
        query = owned(Webhook, project_id).order_by(col(Webhook.created_at), col(Webhook.id))
        async with self._store.read() as session:
            return list((await session.exec(query)).all())

    async def get(self, project_id: str, webhook_id: str) -> Webhook:
        async with self._store.read() as session:
            return await self._find(session, project_id, webhook_id)

    async def change(self, project_id: str, webhook_id: str, change: dict[str, Any]) -> Webhook:
        """Any of url, events, enabled. Enabled again, it goes on with what waits."""
        async with self._store.write() as session:
            hook = await self._find(session, project_id, webhook_id)
            self._check(change.get("url", hook.url), change.get("events", hook.events))
            for name, value in change.items():
                setattr(hook, name, value)
            hook.events = hook.events or None
            hook.disabled_reason = None if hook.enabled else hook.disabled_reason or "by its owner"
            hook.updated_at = now_ms()
            session.add(hook)
        return hook

    async def rotate(self, project_id: str, webhook_id: str) -> tuple[Webhook, str]:
        """Another secret; the old one signs nothing from now on."""
        secret = secret_of(secrets.token_bytes(SECRET_BYTES))
        async with self._store.write() as session:
            hook = await self._find(session, project_id, webhook_id)
            hook.secret, hook.updated_at = self._sealer.seal(secret), now_ms()
            session.add(hook)
        return hook, secret

    async def delete(self, project_id: str, webhook_id: str) -> None:
        """With all that waits."""
        async with self._store.write() as session:
            hook = await self._find(session, project_id, webhook_id)
            await session.exec(delete(WebhookDelivery).where(col(WebhookDelivery.webhook_id) == hook.id))
            await session.delete(hook)

    async def test(self, project_id: str, webhook_id: str) -> WebhookDelivery:
        """A message of type `webhook.test`, on its way as any other."""
        now, event_id = now_ms(), f"evt_test_{new_id()}"
        payload: dict[str, Any] = {"type": "webhook.test", "timestamp": iso(now), "id": event_id}
        payload |= {"project_id": project_id, "data": {}}
        async with self._store.write() as session:
            hook = await self._find(session, project_id, webhook_id)
            if not hook.enabled:
                raise Conflict("The webhook is disabled; enable it first.", error="Webhook disabled")
            sent = WebhookDelivery(
                webhook_id=hook.id,
                project_id=project_id,
                event_id=event_id,
                type="webhook.test",
                payload=payload,
                state="pending",
                next_at=now,
                created_at=now,
                updated_at=now,
            )
            session.add(sent)
        return sent

    # Deliveries --------------------------------------------------------------------------------------------------

    async def deliveries(
        self, project_id: str, webhook_id: str, state: str | None, limit: int, offset: int
    ) -> tuple[list[WebhookDelivery], int]:
        """One page, newest first, and the number of all."""
        rows = owned(WebhookDelivery, project_id).where(col(WebhookDelivery.webhook_id) == webhook_id)
        if state is not None:
            rows = rows.where(col(WebhookDelivery.state) == state)
        page = rows.order_by(col(WebhookDelivery.id).desc()).limit(limit).offset(offset)
        async with self._store.read() as session:
            await self._find(session, project_id, webhook_id)
            total = (await session.exec(count_of(rows))).one()
            return list((await session.exec(page)).all()), total

    async def resend(self, project_id: str, webhook_id: str, delivery_id: int) -> WebhookDelivery:
        """Send it (again), with as many attempts as a new one."""
        async with self._store.write() as session:
            mine = owned(WebhookDelivery, project_id).where(
                col(WebhookDelivery.webhook_id) == webhook_id, col(WebhookDelivery.id) == delivery_id
            )
            sent = (await session.exec(mine)).first()
            if sent is None:
                raise NotFound("There is no such delivery of this webhook.", error="Delivery not found")
            sent.state, sent.attempts, sent.next_at, sent.updated_at = "pending", 0, now_ms(), now_ms()
            session.add(sent)
        return sent

    async def resend_dead(self, project_id: str, webhook_id: str) -> int:
        """Send all again that were given up; how many."""
        async with self._store.write() as session:
            hook = await self._find(session, project_id, webhook_id)
            dead = (col(WebhookDelivery.webhook_id) == hook.id, col(WebhookDelivery.state) == "dead")
            values = {"state": "pending", "attempts": 0, "next_at": now_ms(), "updated_at": now_ms()}
            return (await session.exec(update(WebhookDelivery).where(*dead).values(values))).rowcount

    async def _find(self, session: AsyncSession, project_id: str, webhook_id: str) -> Webhook:
        hook = (await session.exec(owned(Webhook, project_id).where(col(Webhook.id) == webhook_id))).first()
        if hook is None:
            raise NotFound(f"There is no webhook '{webhook_id[:64]}' in this project.", error="Webhook not found")
        return hook

    def _check(self, url: str, events: list[str] | None) -> None:
        check_url(url, self._settings.networks, http=self._settings.allow_http)
        EventFilter.of(events)


async def any_work(store: Store) -> bool:
    """Whether the dispatcher is needed: an enabled webhook, or something on its way to one."""
    query = select(Webhook.id).where(col(Webhook.enabled)).limit(1)
    async with store.read() as session:
        return (await session.exec(query)).first() is not None
