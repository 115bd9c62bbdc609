"""The outermost layer, plain ASGI so that streams stay streams.

It refuses who passes for our proxy, gives each request its id, counts it against its key's limit, answers repeated
reads from the cache, bounds JSON bodies while they stream in, takes paths with a trailing slash, measures, logs, and
turns a fault into the one error shape.
"""

import time
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet.errors import FleetError
from fleet.idempotency.service import IdempotencyService
from fleet.limits.limiter import Gate
from fleet.players.service import PlayerService
from fleet.projects.model import Principal
from fleet.proxy_secret import SCHEME_HEADER
from fleet.telemetry.metrics import HttpMetrics
from fleet.telemetry.request_id import accept_request_id, bind_request_id
from serve_app.cors import cors_headers, may_call, preflight
from serve_app.errors import error_response, told, unavailable
from serve_app.idempotency import HEADER, Idempotent, is_write
from serve_app.identity import PLAYER, Identities
from serve_app.limits import ADMIN, FREE, Gatekeeper
from serve_app.read_cache import Kept, Key, ReadCache
from serve_app.stream_query import Tickets, is_player_stream
from serve_app.trusted_proxy import TrustedProxy

log = structlog.get_logger(__name__)

MAX_BODY = 1024 * 1024
BODY_S = 60.0  # for a body that comes little by little
UPLOAD_RATE = 1024  # bytes per second that an upload makes in the mean, after the first `BODY_S`
KEEP = "fleet.keep_until"  # set in the scope by handlers whose answer depends on the database alone
UPLOAD_PREFIX = "/upload/"
UPLOAD_V2 = "/api/v2/builds/builds/upload"
_SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
_HSTS = (b"strict-transport-security", b"max-age=31536000")
_SCHEME = SCHEME_HEADER.encode()
_NOT_NAMED = "The project's allowed_origins do not have the web page that this client key was used from."
_CLOSE = {"connection": "close"}
_LIVE = (b"wait_for", b"follow")  # reads that wait for what comes
_STREAMS = ("/v3/events", "/me/events")  # paths of streams end so


class Edge:
    """`echo_id`: put x-request-id on the response; off where the server before us (Ray Serve) does."""

    def __init__(
        self,
        app: ASGIApp,
        cache: ReadCache,
        metrics: HttpMetrics,
        gatekeeper: Gatekeeper,
        idempotency: IdempotencyService,
        players: PlayerService,
        tickets: Tickets,
        proxy: TrustedProxy,
        echo_id: bool,
    ) -> None:
        self.app = app
        self.proxy = proxy
        self.idempotent = Idempotent(app, idempotency)
        self.identities = Identities(players)
        self.cache = cache
        self.gatekeeper = gatekeeper
        self.tickets = tickets
        self.metrics = metrics
        self.echo_id = echo_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stranger = self.proxy.check(scope)
        exchange = _Exchange(scope, send, self.metrics, self.echo_id)
        try:
            if stranger is not None:
                await exchange.refuse(stranger)
            else:
                await self._admit(exchange, receive)
        except Exception as error:  # at the door; what serves a request has told its own already
            if exchange.status:
                raise
            await exchange.fault(error)

    async def _admit(self, exchange: "_Exchange", receive: Receive) -> None:
        scope = exchange.scope
        refusal = preflight(scope)
        if refusal is None and is_player_stream(scope["path"]):
            refusal = self.tickets.adopt(scope)
        key = _header(scope, b"api-key")
        origin = _header(scope, b"origin")
        if refusal is None and key is not None and not scope["path"].startswith(FREE):
            paged = origin is not None
            exchange.gate, refusal = await self.gatekeeper.admit(scope, key, exchange.extra, fresh=paged)
        elif refusal is None and scope["path"].startswith(ADMIN):
            exchange.is_admin, refusal = self.gatekeeper.admit_admin(scope, _header(scope, b"admin-key"))
        if origin is not None and scope["method"] != "OPTIONS":
            exchange.extra += cors_headers(origin, exchange.gate)
            if not may_call(origin, exchange.gate):
                refusal = error_response(403, "Origin not allowed", _NOT_NAMED)
        if refusal is not None:
            await exchange.refuse(refusal)
            return
        await self._answer(exchange, receive, key)

    async def _answer(self, exchange: "_Exchange", receive: Receive, api_key: bytes | None) -> None:
        key = _cache_key(exchange.scope, api_key)
        version = self.cache.look() if key else None
        if key is None or version is None:
            await self._serve(exchange, receive)
            return
        kept = self.cache.get(key) or await self.cache.join(key, version)
        if kept is not None:
            await exchange.replay(kept)
            return
        await self._compute(exchange, receive, key, version)

    async def _compute(self, exchange: "_Exchange", receive: Receive, key: Key, version: int) -> None:
        """Serve a read, and let those who ask the same meanwhile have the answer too."""
        flight = self.cache.begin(key, version)
        kept: Kept | None = None
        try:
            await self._serve(exchange, receive)
            kept = exchange.keepable()
            if kept is not None:
                self.cache.put(key, kept, version)
        finally:
            self.cache.end(key, flight, kept)

    async def _serve(self, exchange: "_Exchange", receive: Receive) -> None:
        scope = exchange.scope
        _strip_slash(scope)
        bind_request_id(exchange.request_id)
        upload = scope["path"].startswith(UPLOAD_PREFIX) or scope["path"] == UPLOAD_V2
        receive = _paced(receive, None, UPLOAD_RATE) if upload else _paced(receive, MAX_BODY, None)
        try:
            await self._call(exchange, receive)
        except Exception as error:
            await exchange.fault(error)
        exchange.finish(_route_of(scope))

    async def _call(self, exchange: "_Exchange", receive: Receive) -> None:
        scope = exchange.scope
        key = _header(scope, HEADER)
        if key is not None and is_write(scope) and scope["path"] != UPLOAD_V2:
            try:
                owner = await self.identities.owner(scope, exchange.gate, is_admin=exchange.is_admin)
            except FleetError as error:  # who it is not, it is told, whatever was answered under this key before
                await told(error)(scope, receive, exchange.send)
                return
            if owner is not None:
                await self.idempotent.serve(scope, receive, exchange.send, owner, key)
                return
        await self.app(scope, receive, exchange.send)


class _Exchange:
    """One request and what is sent back for it."""

    def __init__(self, scope: Scope, send: Send, metrics: HttpMetrics, echo_id: bool) -> None:
        self.scope = scope
        self.request_id = accept_request_id((_header(scope, b"x-request-id") or b"").decode("latin-1"))
        self.status = 0
        self.gate: Gate | None = None
        self.is_admin = False
        self._send = send
        self._metrics = metrics
        self.extra = [*_SAFE, (b"x-request-id", self.request_id.encode())] if echo_id else [*_SAFE]
        if _header(scope, _SCHEME) == b"https":
            scope["scheme"] = "https"
            self.extra.append(_HSTS)
        self._started = time.perf_counter()
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: bytes | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._headers = list(message.get("headers", []))
            message = {**message, "headers": [*self._headers, *self.extra]}
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self._body = message.get("body", b"")
        await self._send(message)

    def keepable(self) -> Kept | None:
        until = self.scope.get(KEEP)
        if until is None or self.status != 200 or self._body is None:
            return None
        return Kept(self._headers, self._body, _route_of(self.scope), until)

    async def replay(self, kept: Kept) -> None:
        self.status = 200
        await self._send({"type": "http.response.start", "status": 200, "headers": [*kept.headers, *self.extra]})
        await self._send({"type": "http.response.body", "body": kept.body})
        self._metrics.observe(self.scope["method"], kept.route, 200, time.perf_counter() - self._started)

    async def refuse(self, response: Response) -> None:
        """Answer without serving. Not logged: a key that asks too often would fill the disk."""
        await response(self.scope, _no_receive, self.send)
        self._metrics.observe(self.scope["method"], "refused", self.status, time.perf_counter() - self._started)

    async def fault(self, error: Exception) -> None:
        if self.status:
            log.error("request_failed", path=self.scope["path"], method=self.scope["method"], exc_info=error)
            raise error  # the answer has begun; only cutting the connection is honest
        if (passing := unavailable(error)) is not None:
            await passing(self.scope, _no_receive, self.send)
            return
        log.error("request_failed", path=self.scope["path"], method=self.scope["method"], exc_info=error)
        detail = f"The request failed inside the fleet. Its id {self.request_id} finds it in the logs."
        response = error_response(500, "Internal error", detail)
        await response(self.scope, _no_receive, self.send)

    def finish(self, route: str) -> None:
        seconds = time.perf_counter() - self._started
        method = self.scope["method"]
        self._metrics.observe(method, route, self.status, seconds)
        if method != "GET" or self.status >= 400:
            log.info("request", method=method, route=route, status=self.status, ms=round(seconds * 1000, 2))


def _cache_key(scope: Scope, api_key: bytes | None) -> Key | None:
    query = scope["query_string"]
    path = scope["path"]
    live = path.rstrip("/").endswith(_STREAMS) or is_player_stream(path) or any(word in query for word in _LIVE)
    if api_key is None or scope["method"] != "GET" or live or _header(scope, PLAYER) is not None:
        return None
    return api_key, path, query


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    for name, value in scope["headers"]:
        if name == wanted:
            return value
    return None


def _strip_slash(scope: Scope) -> None:
    path = scope["path"]
    if len(path) > 1 and path.endswith("/"):
        scope["path"] = path.rstrip("/") or "/"
        scope.pop("raw_path", None)


def _route_of(scope: Scope) -> str:
    """The route's template, so that ids never become labels."""
    route: Any = scope.get("route")
    return getattr(route, "path_format", None) or getattr(route, "path", None) or "unmatched"


def _paced(receive: Receive, most: int | None, rate: int | None) -> Receive:
    """A body of at most so many bytes, here in `BODY_S`, or later at so many bytes a second. The proxy ends who sends
    nothing (`fleet/ops/proxy_rules.py`); this ends who sends a byte now and then."""
    seen, began, complete = 0, time.monotonic(), False

    async def paced() -> Message:
        nonlocal seen, complete
        message = await receive()
        seen += len(message.get("body", b""))
        if most is not None and seen > most:
            raise HTTPException(413, f"The body is over {most} bytes.", headers=_CLOSE)
        if not complete and time.monotonic() - began > BODY_S + (seen / rate if rate else 0):
            raise HTTPException(408, "The body comes too slowly. Send the request again.", headers=_CLOSE)
        complete = not message.get("more_body", False)
        return message

    return paced


async def _no_receive() -> Message:
    return {"type": "http.disconnect"}


def keep_answer(request: Request, caller: Principal) -> None:
    """Say that this answer depends on the database alone, so it may be kept while that does not change."""
    request.scope[KEEP] = caller.valid_until
