"""How often a key may ask, at the door: before the cache, so that kept answers count too and say what is left."""

import math

import structlog
from starlette.responses import Response
from starlette.types import Scope

from fleet.errors import FleetError, Unauthorized
from fleet.limits.limiter import Count, Gate, Limiter
from fleet.limits.windows import Taken
from fleet.projects.admin_keys import AdminKeys
from fleet.projects.service import ProjectService
from fleet.proxy_secret import CLIENT_HEADER
from serve_app.errors import error_response

log = structlog.get_logger(__name__)

Headers = list[tuple[bytes, bytes]]
# These need no project's key; whoever sends one all the same is not counted.
FREE = ("/api/health", "/health", "/metrics", "/api/doc", "/api/reference", "/upload/", "/api/admin/")
ADMIN = "/api/admin/"
# Paths where players act; every route that asks who plays is under one of them (test_policy.py).
LOBBIES = ("/api/v3/lobbies", "/api/v2/lobbies", "/api/v2/matchmaker")
_PLAYER = b"x-player-id"
_CLIENT = CLIENT_HEADER.encode()
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


class Gatekeeper:
    """Lets a request in, or says why not."""

    def __init__(self, limiter: Limiter, projects: ProjectService, admin_keys: AdminKeys) -> None:
        self._limiter = limiter
        self._projects = projects
        self._admin_keys = admin_keys

    async def admit(
        self, scope: Scope, key: bytes, extra: Headers, *, fresh: bool
    ) -> tuple[Gate | None, Response | None]:
        """The key's gate, none if nobody's (the app then says so), and the refusal if there is one. Headers that tell
        the limit go into `extra`. `fresh`: with the project's settings as they are now, not as some seconds ago."""
        gate = None if fresh else self._limiter.gate(key)
        if gate is None:
            address = client_of(scope)
            wait = self._limiter.tried_too_often(key, address)
            if wait:
                return None, _refusal(wait, "Too many unknown keys have come from this address.")
            gate = await self._look_up(key, address)
            if gate is None:
                return None, None
        write = scope["method"] not in _READS
        if scope["path"].startswith(LOBBIES):
            return gate, await self._admit_player(gate, scope, write, extra)
        count = self._limiter.count(gate, write)
        return gate, await self._take(count, write, extra) if count.limit else None

    async def _admit_player(self, gate: Gate, scope: Scope, write: bool, extra: Headers) -> Response | None:
        """A call to a lobby, counted for its player first; headers tell that count."""
        address = client_of(scope).encode("latin-1", "replace")
        player = next((value for name, value in scope["headers"] if name == _PLAYER), address)
        told = extra
        for count in self._limiter.lobby_counts(gate, write, player[:256], address):
            refusal = await self._take(count, write, told)
            if refusal is not None:
                return refusal
            told = []
        return None

    async def _take(self, count: Count, write: bool, extra: Headers) -> Response | None:
        taken = self._limiter.try_take(count) or await self._limiter.take(count)
        extra += limit_headers(count.limit, taken)
        if taken.granted:
            return None
        what = "writes" if write else "reads"
        return _refusal(taken.retry_s, f"{count.who} may send {count.limit} {what} per second.")

    def admit_admin(self, scope: Scope, key: bytes | None) -> tuple[bool, Response | None]:
        """Whether it is an admin key, and the refusal if too many that are none came from the address."""
        if key is None:
            return False, None
        try:
            self._admin_keys.check(key.decode("latin-1"))
        except Unauthorized:
            address = client_of(scope)
            if wait := self._limiter.tried_too_often(key, address):
                return False, _refusal(wait, "Too many unknown keys have come from this address.")
            self._limiter.failed(address)
            return False, None
        return True, None

    async def _look_up(self, key: bytes, address: str) -> Gate | None:
        try:
            caller = await self._projects.authenticate(key.decode("latin-1"))
        except Unauthorized:
            self._limiter.shut(key)
            self._limiter.failed(address)
        except FleetError:
            self._limiter.shut(key)
        except Exception as error:
            # The app looks the key up too, and answers what then goes wrong.
            log.warning("key_not_looked_up", error=repr(error))
        else:
            return self._limiter.open(key, caller)
        return None


def limit_headers(limit: int, taken: Taken) -> Headers:
    return [
        (b"x-ratelimit-limit", b"%d" % limit),
        (b"x-ratelimit-remaining", b"%d" % taken.remaining),
        (b"x-ratelimit-reset", b"%d" % math.ceil(taken.reset_s)),
    ]


def client_of(scope: Scope) -> str:
    """The address that calls, as our proxy saw it; the peer's, if it came past the proxy (`trusted_proxy.py`)."""
    for name, value in scope["headers"]:
        if name == _CLIENT:
            return value.decode("latin-1")
    client = scope.get("client")
    return client[0] if client else ""


def _refusal(wait_s: float, why: str) -> Response:
    seconds = max(1, math.ceil(wait_s))
    headers = {"retry-after": str(seconds)}
    return error_response(429, "Too many requests", f"{why} Try again in {seconds} s.", headers)
