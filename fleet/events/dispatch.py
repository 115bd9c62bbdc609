"""Sends what is queued for webhooks. One replica at a time does it, for as long as it has the job.

Strategy: each webhook and each project have a few sends under way at most, places that become free go to the projects
with the fewest, and a quarter of them only to those that have none (`next_turns`): what is slow or dead of one project,
or of many, delays no other's. What is under way is only in
memory: a row stays `pending` until its answer is written down, so after a crash it is sent again (at least once;
receivers know repeats by `webhook-id`). An answer that cannot be written down now is kept and written later, by this
replica also in its next round: a database that is away makes no receiver hear the same over and over.
"""

import asyncio
import random
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

import aiohttp
import structlog
from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.sql.expression import SelectOfScalar

from fleet.actors.tasks import SupervisedTasks, first_done
from fleet.errors import FleetError
from fleet.events.deliveries import message, retry_ms
from fleet.events.feed import feed
from fleet.events.targets import ForbiddenTarget, guarded_socket
from fleet.faults import crash_point
from fleet.jobs import Lease
from fleet.limits.fair import Places, next_turns
from fleet.sealing import Sealer
from fleet.settings import WebhookSettings
from fleet.store.engine import Store
from fleet.store.tables import Webhook, WebhookDelivery
from fleet.times import now_ms

log = structlog.get_logger(__name__)

JOB = "webhooks"
STEP_S = 60.0  # one step with the database; then the round fails and another replica may take the job
WRITE_AGAIN_S = 5.0  # between two tries to write an outcome down, at most
_LOOK_S = 1.0
_REST_S = 0.1  # between two looks, however much is committed
_UNKNOWN = "The receiver did not answer."


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Of one attempt, after so many before. `wait_ms`: until the next; None: there is none."""

    hook: Webhook
    attempts: int
    status: int | None
    error: str | None
    wait_ms: int | None
    at: int

    def values(self) -> dict[str, object]:
        """Of the delivery's row."""
        values: dict[str, object] = {
            "attempts": self.attempts + 1,
            "last_status": self.status,
            "last_error": self.error,
            "updated_at": self.at,
        }
        if self.error is None:
            return values | {"state": "delivered"}
        if self.wait_ms is None:
            return values | {"state": "dead"}
        return values | {"next_at": self.at + self.wait_ms}


class Dispatcher:
    """`work` is the job's."""

    def __init__(self, store: Store, sealer: Sealer, settings: WebhookSettings) -> None:
        self._store = store
        self._sealer = sealer
        self._settings = settings
        every = settings.at_once_in_all
        self._places = Places(every, settings.at_once_per_project, every // 4)
        self._under_way: dict[int, Webhook] = {}
        self._unwritten: dict[int, _Outcome] = {}
        self._tasks = SupervisedTasks("webhooks")
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
                self._write_what_is_left()
                while True:
                    async with asyncio.timeout(STEP_S):
                        while await feed(self._store, lease):
                            pass
                        more = await self._send_due(http)
                    if not more and not self._under_way:
                        return
                    await self._pause()
            finally:
                await self._tasks.close()
                self._under_way.clear()

    async def _pause(self) -> None:
        """Until something is committed, a send ends, or a while has passed (something may be due)."""
        self._ended.clear()
        await asyncio.sleep(_REST_S)
        await first_done(self._store.changed(_LOOK_S), self._ended.wait())

    async def _send_due(self, http: aiohttp.ClientSession) -> bool:
        """Begin what may begin now. False if no webhook is enabled."""
        busy = Counter(hook.id for hook in self._under_way.values())
        due: dict[str, deque[tuple[Webhook, WebhookDelivery]]] = defaultdict(deque)
        async with self._store.read() as session:
            hooks = (await session.exec(select(Webhook).where(col(Webhook.enabled)))).all()
            free = self._settings.at_once_in_all - len(self._under_way)
            for hook in hooks if free > 0 else ():
                room = min(self._settings.at_once - busy[hook.id], free)
                if room > 0:
                    found = (await session.exec(self._due_of(hook, room))).all()
                    due[hook.project_id].extend((hook, sent) for sent in found)
        under_way = Counter(hook.project_id for hook in self._under_way.values())
        for project in next_turns(self._places, under_way, {project: len(found) for project, found in due.items()}):
            hook, sent = due[project].popleft()
            self._begin(http, hook, sent)
        return bool(hooks)

    def _due_of(self, hook: Webhook, room: int) -> SelectOfScalar[WebhookDelivery]:
        mine = [delivery for delivery, of in self._under_way.items() if of.id == hook.id]
        return (
            select(WebhookDelivery)
            .where(
                col(WebhookDelivery.webhook_id) == hook.id,
                col(WebhookDelivery.state) == "pending",
                col(WebhookDelivery.next_at) <= now_ms(),
                col(WebhookDelivery.id).not_in(mine),
            )
            .order_by(col(WebhookDelivery.next_at), col(WebhookDelivery.id))
            .limit(room)
        )

    def _begin(self, http: aiohttp.ClientSession, hook: Webhook, sent: WebhookDelivery) -> None:
        self._under_way[sent.id or 0] = hook
        self._tasks.keep("deliver", partial(self._deliver, http, hook, sent), most_s=WRITE_AGAIN_S, webhook=hook.id)

    def _write_what_is_left(self) -> None:
        """Of the round before, which may have ended because the database was away."""
        for delivery, outcome in self._unwritten.items():
            self._under_way[delivery] = outcome.hook
            self._tasks.keep("deliver", partial(self._write, delivery, outcome), most_s=WRITE_AGAIN_S)

    async def _deliver(self, http: aiohttp.ClientSession, hook: Webhook, sent: WebhookDelivery) -> None:
        """Begun again while its outcome cannot be written; sent once all the same."""
        delivery = sent.id or 0
        if delivery not in self._unwritten:
            status, error, asked_s = await self._attempt(http, hook, sent)
            crash_point("webhook.sent")
            wait = retry_ms(sent.attempts + 1, random.random(), asked_s, int(self._settings.retry_first_s * 1000))
            self._unwritten[delivery] = _Outcome(hook, sent.attempts, status, error, wait, now_ms())
        await self._write(delivery, self._unwritten[delivery])

    async def _write(self, delivery: int, outcome: "_Outcome") -> None:
        mine = (
            col(WebhookDelivery.id) == delivery,
            col(WebhookDelivery.state) == "pending",
            col(WebhookDelivery.attempts) == outcome.attempts,
        )
        async with asyncio.timeout(STEP_S), self._store.write() as session:
            await session.exec(update(WebhookDelivery).where(*mine).values(outcome.values()))
            if outcome.status == HTTPStatus.GONE:  # the receiver's way to say: never again
                off = {"enabled": False, "disabled_reason": "its receiver answered 410 Gone", "updated_at": now_ms()}
                await session.exec(update(Webhook).where(col(Webhook.id) == outcome.hook.id).values(off))
        self._unwritten.pop(delivery, None)
        self._under_way.pop(delivery, None)
        self._ended.set()

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
        except Exception:  # ours, and of this delivery alone: it counts as an attempt, so it is not tried for ever
            log.exception("webhook_attempt_failed", webhook=hook.id, delivery=sent.id)
            return None, "The fleet could not send it.", None


def _retry_after(answer: aiohttp.ClientResponse) -> float | None:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
