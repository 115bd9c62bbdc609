"""`Idempotency-Key` on writes: around everything that serves them, so that no route can forget it.

The write runs in a task of its own: a client that goes away has its answer when it asks again. The second of two that
arrive together waits for the first, whichever replica has it.
"""

import asyncio
import hashlib
import time
from functools import partial

import structlog
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet.actors.tasks import SupervisedTasks
from fleet.faults import crash_point
from fleet.idempotency.service import LEASE_MS, MAX_BODY, RENEW_S, Answer, Ask, IdempotencyService, Mismatch, Turn
from fleet.operation import operation
from serve_app.errors import NAMES, error_response, unavailable
from serve_app.identity import Owner

log = structlog.get_logger(__name__)

HEADER = b"idempotency-key"
MAX_KEY = 255
WAIT_S = 60.0
RELEASE_S = 5.0  # for letting go of a key whose write failed; then its lease runs out by itself
KEEP_S = 10.0  # for keeping the answer of a write that is done; its client waits for that
_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_TOO_MANY = 429
_NOT_YOU = frozenset({401, 403})  # no word on the write, and may be otherwise the next time


def is_write(scope: Scope) -> bool:
    return scope["method"] in _WRITES


class Idempotent:
    """`app` with one effect for each key."""

    def __init__(self, app: ASGIApp, service: IdempotencyService) -> None:
        self._app = app
        self._service = service
        self._tasks = SupervisedTasks("idempotency")

    async def serve(self, scope: Scope, receive: Receive, send: Send, owner: Owner, key: bytes) -> None:
        """Serve a write of `owner`, who has been proven to be that, with this key."""
        try:
            body = await _whole(receive)
            response = await self._answer(scope, body, owner, key)
        except HTTPException as error:
            response = error_response(error.status_code, NAMES.get(error.status_code, "Request failed"), error.detail)
        except Exception as error:
            found = unavailable(error)
            if found is None:
                raise
            response = found
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, body: bytes, owner: Owner, key: bytes) -> Response:
        if not 0 < len(key) <= MAX_KEY or not key.isascii() or not key.decode("ascii").isprintable():
            detail = f"An Idempotency-Key has 1 to {MAX_KEY} printable ASCII characters."
            return error_response(400, "Bad Idempotency-Key", detail)
        ask = _ask(scope, body, owner, key)
        try:
            found = await self._turn_or_answer(ask)
        except Mismatch:
            text = "This Idempotency-Key was used for another request within the last 24 hours. Use a new one."
            issue = {"loc": ["header", "idempotency-key"], "msg": text, "type": "custom"}
            return error_response(422, "Idempotency key reused", [issue])
        if found is None:
            detail = "The first request with this Idempotency-Key is still being served. Ask again."
            return error_response(409, "Request under way", detail, {"retry-after": "2"})
        if isinstance(found, Answer):
            return _response(found, {"idempotency-replayed": "true"})
        # Who sent it, or sends it again, has the error, and the lease lets the next try begin.
        task = self._tasks.once("carry_out", self._carry_out(scope, body, ask, found), op_id=found.op_id)
        return _response(await asyncio.shield(task), {})

    async def _turn_or_answer(self, ask: Ask) -> Turn | Answer | None:
        deadline = time.monotonic() + WAIT_S
        while (found := await self._service.begin(ask)) is None and time.monotonic() < deadline:
            await self._service.settled(1.0)
        return found

    async def _carry_out(self, scope: Scope, body: bytes, ask: Ask, turn: Turn) -> Answer:
        crash_point("idempotency.begun")
        # If it goes on unrenewed, another carries the write out too: under the same op_id, so it is one effect.
        lease = SupervisedTasks("idempotency", op_id=turn.op_id)
        lease.every("renew", partial(self._service.renew, ask, turn), RENEW_S, limit_s=LEASE_MS / 1000)
        caught = _Caught()
        try:
            with operation(turn.op_id, repeated=turn.repeated):
                await self._app(scope, _again(body), caught.send)
        except BaseException:
            await self._release(ask, turn)
            raise
        finally:
            await lease.close()
        crash_point("idempotency.served")
        answer = Answer(caught.status, caught.headers, b"".join(caught.body))
        if caught.status in _NOT_YOU:
            # Nothing was done, unless by an earlier try: then the next one has to go on under its op_id.
            await self._release(ask, turn, forget=not turn.repeated)
        elif caught.status >= 500 or caught.status == _TOO_MANY or len(answer.body) > MAX_BODY:
            await self._release(ask, turn)
        else:
            await self._keep(ask, turn, answer)
            crash_point("idempotency.kept")
        return answer

    async def _release(self, ask: Ask, turn: Turn, *, forget: bool = False) -> None:
        """Let the next try begin at once; where that cannot be written now, it may when the lease has run out."""
        try:
            async with asyncio.timeout(RELEASE_S):
                await (self._service.forget if forget else self._service.release)(ask, turn)
        except Exception as error:
            log.warning("idempotency_not_released", op_id=turn.op_id, error=repr(error))

    async def _keep(self, ask: Ask, turn: Turn, answer: Answer) -> None:
        """The write is done, and its client is told so even if the answer cannot be kept now: whoever asks again then
        carries it out under the same op_id, which is one effect with this one."""
        try:
            async with asyncio.timeout(KEEP_S):
                await self._service.finish(ask, turn, answer)
        except Exception as error:
            log.warning("idempotency_not_kept", op_id=turn.op_id, error=repr(error))


class _Caught:
    """An answer on its way out."""

    def __init__(self) -> None:
        self.status = 500
        self.headers: dict[str, str] = {}
        self.body: list[bytes] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {
                name.decode("latin-1"): value.decode("latin-1")
                for name, value in message.get("headers", ())
                if name.lower() != b"content-length"
            }
        elif message["type"] == "http.response.body":
            self.body.append(message.get("body", b""))


def _ask(scope: Scope, body: bytes, owner: Owner, key: bytes) -> Ask:
    whose = _hash(*(part.encode() for part in owner.proof), key)
    return Ask(owner.scope, whose, _hash(scope["method"].encode(), scope["path"].encode(), scope["query_string"], body))


def _hash(*parts: bytes) -> str:
    """Each with its length before it: no two lists of parts are one text, whatever ids and keys are made of."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8))
        whole.update(part)
    return whole.hexdigest()


def _response(answer: Answer, more: dict[str, str]) -> Response:
    return Response(answer.body, answer.status, {**answer.headers, **more})


async def _whole(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "The request's body did not arrive whole.")
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _again(body: bytes) -> Receive:
    """Gives the body to the app; then nothing ever comes, since the write goes on without its client."""
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
