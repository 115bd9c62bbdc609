"""Streams for a browser's EventSource, which can set no headers: who asks may stand in the query of the stream's URL.

`?ticket=…` (from `POST …/me/events-token`) says it all, sealed, for an hour, and opens nothing but this stream; so it
may be seen in a proxy's log. `?api-key=…&player-id=…&player-token=…` is for those who want one call less; only a client
key, which is public anyway, may stand there. Both become headers here, before anybody looks at them.
"""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import orjson
from cryptography.fernet import InvalidToken
from starlette.responses import Response
from starlette.types import Scope

from fleet.projects.service import PREFIX
from fleet.sealing import Sealer
from fleet.times import now_ms
from serve_app.errors import error_response

TICKET_S = 3600
MAX_TICKET = 2048
PROVEN = "fleet.proven_player"  # in the scope: the player whose ticket this is
_MAX_QUERY = 16 * 1024
_HEADERS = {
    "api-key": b"api-key",
    "player-id": b"x-player-id",
    "player-token": b"x-player-token",
    "client-auth-token": b"client-auth-token",
}
_ENDS = ("/me/events", "/events")
_BEGINS = ("/api/v3/lobbies/", "/api/v2/lobbies-sse/")


def is_player_stream(path: str) -> bool:
    return path.startswith(_BEGINS) and path.rstrip("/").endswith(_ENDS)


@dataclass(frozen=True, slots=True)
class Ticket:
    """Opens one player's stream. The key is in it, so that a key that is revoked takes its tickets along."""

    api_key: str
    config: str
    player_id: str


class Tickets:
    def __init__(self, home: Path) -> None:
        self._sealer = Sealer(home, "events")

    def issue(self, ticket: Ticket, now: float | None = None) -> tuple[str, float]:
        """The sealed ticket, and until when it is good."""
        now = now_ms() / 1000 if now is None else now
        text = orjson.dumps([ticket.api_key, ticket.config, ticket.player_id])
        return self._sealer.cipher().encrypt_at_time(text, int(now)).decode(), int(now) + TICKET_S

    def read(self, sealed: str, now: float | None = None) -> Ticket | None:
        now = now_ms() / 1000 if now is None else now
        if len(sealed) > MAX_TICKET or not sealed.isascii():
            return None
        try:
            text = self._sealer.cipher().decrypt_at_time(sealed, TICKET_S, int(now))
        except InvalidToken:
            return None
        return Ticket(*orjson.loads(text))

    def adopt(self, scope: Scope) -> Response | None:
        """Let the query's words count as headers; a refusal if they may not."""
        if scope["method"] != "GET" or len(scope["query_string"]) > _MAX_QUERY:
            return None
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        sealed = query.get("ticket")
        if sealed is not None:
            return self._adopt_ticket(scope, sealed)
        key = query.get("api-key")
        if key is not None and not key.startswith(PREFIX["client"]):
            return error_response(403, "Forbidden", "Only a client key may stand in a URL; send others as a header.")
        present = {name for name, _ in scope["headers"]}
        for name, header in _HEADERS.items():
            if name in query and header not in present:
                scope["headers"] = [*scope["headers"], (header, query[name].encode("utf-8"))]
        return None

    def _adopt_ticket(self, scope: Scope, sealed: str) -> Response | None:
        ticket = self.read(sealed)
        if ticket is None or scope["path"].rstrip("/") != f"/api/v3/lobbies/{ticket.config}/me/events":
            detail = "This ticket is not of this stream, or is over an hour old. Get another: POST …/me/events-token."
            return error_response(401, "Invalid ticket", detail)
        replaced = (b"api-key", b"x-player-id", b"x-player-token")
        scope["headers"] = [
            *(header for header in scope["headers"] if header[0] not in replaced),
            (b"api-key", ticket.api_key.encode()),
            (b"x-player-id", ticket.player_id.encode()),
        ]
        scope[PROVEN] = ticket.player_id
        return None
