"""Sends what is queued for webhooks. One replica at a time does it, for as long as it has the job.

Strategy: each webhook has a few sends under way at most, so one that is slow or dead takes no place from another. What
is under way is only in memory: a row stays `pending` until its answer is written down, so after a crash it is sent
again (at least once; receivers know repeats by `webhook-id`).
"""

import asyncio
import random
from collections import Counter
from http import HTTPStatus

import aiohttp
import structlog
from sqlalchemy import update
from sqlmodel import col, select

from fleet.errors import FleetError
from fleet.events.deliveries import message, retry_ms
from fleet.events.feed import feed
from fleet.events.targets import ForbiddenTarget, guarded_socket
from fleet.faults import crash_point
from fleet.jobs import Lease
from fleet.sealing import Sealer
from fleet.settings import WebhookSettings
from fleet.store.engine import Store
from fleet.store.tables import Webhook, WebhookDelivery
from fleet.times import now_ms

log = structlog.get_logger(__name__)

JOB = "webhooks"
_LOOK_S = 1.0
_REST_S = 0.1  # between two looks, however much is committed
_UNKNOWN = "The receiver did not answer."


class Dispatcher:
    """`work` is the job's."""

    def __init__(self, store: Store, sealer: Sealer, settings: WebhookSettings) -> None:
        self._store = store
        self._sealer = sealer
        self._settings = settings
        self._under_way: dict[int, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()

    async def work(self, lease: Lease) -> None:
        """Until no webhook is left, or the lease is lost."""
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s, connect=self._settings.timeout_s / 2)
        factory = guarded_socket(self._settings.networks)
        connector = aiohttp.TCPConnector(socket_factory=factory, limit=0, use_dns_cache=False)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as http:
            try:
                while True:
                    while await feed(self._store, lease):
                        pass
                    if not await self._send_due(http) and not self._tasks:
                        return
                    await self._pause()
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                self._under_way.clear()

    async def _pause(self) -> None:
        """Until something is committed, a send ends, or a while has passed (something may be due)."""
        self._ended.clear()
        changed = asyncio.create_task(self._store.changed(_LOOK_S))
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.sleep(_REST_S)
            await asyncio.wait((changed, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
            ended.cancel()
            await asyncio.gather(changed, ended, return_exceptions=True)

    async def _send_due(self, http: aiohttp.ClientSession) -> bool:
        """Begin what may begin now. False if no webhook is enabled."""
        busy = Counter(self._under_way.values())
        async with self._store.read() as session:
            hooks = (await session.exec(select(Webhook).where(col(Webhook.enabled)))).all()
            for hook in hooks:
                room = min(self._settings.at_once - busy[hook.id], self._settings.at_once_in_all - len(self._under_way))
                if room <= 0:
                    continue
                due = (
                    select(WebhookDelivery)
                    .where(
                        col(WebhookDelivery.webhook_id) == hook.id,
                        col(WebhookDelivery.state) == "pending",
                        col(WebhookDelivery.next_at) <= now_ms(),
                        col(WebhookDelivery.id).not_in(self._mine(hook.id)),
                    )
                    .order_by(col(WebhookDelivery.next_at), col(WebhookDelivery.id))
                    .limit(room)
                )
                for sent in (await session.exec(due)).all():
                    self._begin(http, hook, sent)
        return bool(hooks)

    def _mine(self, webhook_id: str) -> list[int]:
        return [delivery for delivery, hook in self._under_way.items() if hook == webhook_id]

    def _begin(self, http: aiohttp.ClientSession, hook: Webhook, sent: WebhookDelivery) -> None:
        self._under_way[sent.id or 0] = hook.id
        task = asyncio.create_task(self._deliver(http, hook, sent))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(done, sent.id or 0))

    def _done(self, task: asyncio.Task[None], delivery: int) -> None:
        self._tasks.discard(task)
        self._under_way.pop(delivery, None)
        self._ended.set()
        if not task.cancelled() and (error := task.exception()):
            log.error("webhook_not_recorded", delivery=delivery, error=repr(error))  # it is sent again

    async def _deliver(self, http: aiohttp.ClientSession, hook: Webhook, sent: WebhookDelivery) -> None:
        status, error, asked_s = await self._attempt(http, hook, sent)
        crash_point("webhook.sent")
        now, attempts = now_ms(), sent.attempts + 1
        values: dict[str, object] = {
            "attempts": attempts,
            "last_status": status,
            "last_error": error,
            "updated_at": now,
        }
        wait = retry_ms(attempts, random.random(), asked_s, int(self._settings.retry_first_s * 1000))
        if error is None:
            values["state"] = "delivered"
        elif wait is None:
            values["state"] = "dead"
        else:
            values["next_at"] = now + wait
        mine = (
            col(WebhookDelivery.id) == sent.id,
            col(WebhookDelivery.state) == "pending",
            col(WebhookDelivery.attempts) == sent.attempts,
        )
        async with self._store.write() as session:
            await session.exec(update(WebhookDelivery).where(*mine).values(values))
            if status == HTTPStatus.GONE:  # the receiver's way to say: never again
                off = {"enabled": False, "disabled_reason": "its receiver answered 410 Gone", "updated_at": now}
                await session.exec(update(Webhook).where(col(Webhook.id) == hook.id).values(off))

    async def _attempt(
        self, http: aiohttp.ClientSession, hook: Webhook, sent: WebhookDelivery
    ) -> tuple[int | None, str | None, float | None]:
        """Status, what went wrong, and when the receiver wants to be asked again. Its answer's text is nobody's
        business: a webhook must not read pages for those who set it up."""
        try:
            body, headers = message(self._sealer.open(hook.secret), sent.event_id, sent.payload or {}, now_ms())
            async with http.post(hook.url, data=body, headers=headers, allow_redirects=False) as answer:
                if 200 <= answer.status < 300:
                    return answer.status, None, None
                return answer.status, f"The receiver answered {answer.status}.", _retry_after(answer)
        except TimeoutError:
            return None, f"The receiver took longer than {self._settings.timeout_s:g} s.", None
        except ForbiddenTarget as error:
            return None, str(error), None
        except aiohttp.ClientConnectorError as error:
            forbidden = isinstance(error.os_error, ForbiddenTarget)
            return None, str(error.os_error) if forbidden else "The receiver cannot be reached.", None
        except (aiohttp.ClientError, OSError, ValueError):
            return None, _UNKNOWN, None
        except FleetError as error:
            return None, error.detail, None


def _retry_after(answer: aiohttp.ClientResponse) -> float | None:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
