"""Who sends a write, proven before anybody looks at what was said under its Idempotency-Key.

A kept answer is somebody's: of a project, a kind of key and, where players act, of the player who has just proven to be
that one. A caller who proves nothing can only meet what another such caller was told.
"""

from dataclasses import dataclass

from starlette.types import Scope

from fleet.limits.limiter import Gate
from fleet.players.model import MAX_TOKEN, is_player_id
from fleet.players.service import PlayerService
from fleet.projects.model import Principal
from serve_app.limits import LOBBIES

PLAYER = b"x-player-id"
_TOKENS = (b"client-auth-token", b"x-player-token")  # v2 looks at the first one first, and v3 has the second alone
_NEWER = "/api/v3/"
ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose an Idempotency-Key is: `scope` is the project, or "admin"; `proof` tells callers of one scope apart."""

    scope: str
    proof: tuple[str, ...]


class Identities:
    def __init__(self, players: PlayerService) -> None:
        self._players = players

    async def owner(self, scope: Scope, gate: Gate | None, *, is_admin: bool) -> Owner | None:
        """None if the caller is nobody, which the app then says. An error of `PlayerService.check` if the caller is not
        the player that it names."""
        if gate is None:
            return Owner(ADMIN, (ADMIN,)) if is_admin else None
        caller = gate.caller
        named = _header(scope, PLAYER)
        if not scope["path"].startswith(LOBBIES):
            return Owner(caller.project_id, (caller.kind, "" if named is None else named))
        if scope["path"].startswith(_NEWER):
            if named is None or not is_player_id(named):
                return Owner(caller.project_id, (caller.kind, "nobody"))  # whatever it is, no player did it
            await self._players.check(caller, named, _header(scope, _TOKENS[1]))
            return Owner(caller.project_id, (caller.kind, "player", named))
        return Owner(caller.project_id, (caller.kind, "proven", *await self._proven(scope, caller)))

    async def _proven(self, scope: Scope, caller: Principal) -> tuple[str, ...]:
        """v2 names players in bodies. Whoever the token proves may be one of them; the route looks which."""
        token = _header(scope, _TOKENS[0]) or _header(scope, _TOKENS[1])
        return await self._players.proven(caller, token) if token and len(token) <= MAX_TOKEN else ()


def _header(scope: Scope, wanted: bytes) -> str | None:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), None)
