"""Whether a caller is the player it says, by the project's `auth_config`.

What was good a moment ago is believed for a while, or each call of a game would be a call to Steam; so is what was not,
for some seconds, or a broken client would hammer it. Tokens are kept as hashes.
"""

import hashlib
import time
from collections.abc import Callable
from typing import Any

from fleet.actors.single_flight import SingleFlight
from fleet.errors import FleetError, Unauthorized, Unavailable
from fleet.players.custom_jwt import CustomJwt
from fleet.players.model import MAX_TOKEN, Proof, Provider, bad_token, not_this_player
from fleet.players.outside import Outside, SocketFactory
from fleet.players.playfab import PlayFab
from fleet.players.steam import Steam
from fleet.projects.model import Principal
from fleet.projects.settings import opened_auth
from fleet.sealing import Sealer

BELIEVED_S = 300.0
REFUSED_S = 5.0
MAX_KEPT = 20_000
_Make = Callable[[dict[str, Any], Outside], Provider]
PROVIDERS: dict[str, _Make] = {"custom_jwt": CustomJwt, "steam": Steam, "playfab": PlayFab}


class PlayerService:
    """One per replica. `providers` are made of a project's auth_config when it is first needed or has changed."""

    def __init__(
        self,
        sealer: Sealer,
        socket_factory: SocketFactory | None = None,
        providers: dict[str, _Make] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sealer = sealer
        self._outside = Outside(socket_factory)
        self._makers = PROVIDERS if providers is None else providers
        self._clock = clock
        self._providers: dict[str, tuple[dict[str, Any], Provider]] = {}
        self._kept: dict[tuple[str, bytes], tuple[float, Proof | FleetError]] = {}
        self._asking = SingleFlight[tuple[tuple[str, bytes], Provider], Proof]()

    async def check(self, caller: Principal, player_id: str, token: str | None) -> None:
        """Return if the caller may act as this player. The project's own back end may act as any."""
        if caller.is_server:
            return
        provider = self._provider(caller)
        if provider is None:
            return
        if not token:
            raise Unauthorized(
                "This project wants its players to prove who they are: send x-player-token.",
                error="Missing player token",
            )
        if len(token) > MAX_TOKEN:
            raise bad_token(f"it is over {MAX_TOKEN} characters")
        proof = await self._proof(caller.project_id, provider, token)
        if player_id not in proof.ids:
            raise not_this_player(player_id)

    async def proven(self, caller: Principal, token: str) -> tuple[str, ...]:
        """The ids of the player whom the token proves; none if it proves nobody, or the project believes its players.
        `Unavailable` if that cannot be found out now."""
        provider = None if caller.is_server else self._provider(caller)
        if provider is None:
            return ()
        try:
            return (await self._proof(caller.project_id, provider, token)).ids
        except Unauthorized:
            return ()

    async def close(self) -> None:
        await self._asking.close()
        await self._outside.close()

    def _provider(self, caller: Principal) -> Provider | None:
        """None: this project believes its players."""
        stored: dict[str, Any] = caller.settings.get("auth_config") or {}
        name = str(stored.get("provider") or "none")
        if name == "none":
            return None
        made = self._providers.get(caller.project_id)
        if made is not None and made[0] == stored:
            return made[1]
        maker = self._makers.get(name)
        if maker is None:
            raise Unavailable(f"This fleet does not know the player provider '{name[:64]}'.")
        provider = maker(opened_auth(caller.settings, self._sealer), self._outside)
        self._forget(caller.project_id)
        if len(self._providers) >= MAX_KEPT:
            self._providers.pop(next(iter(self._providers)))
        self._providers[caller.project_id] = (stored, provider)
        return provider

    def _forget(self, project_id: str) -> None:
        """What the project's former settings accepted says nothing any more."""
        for key in [key for key in self._kept if key[0] == project_id]:
            del self._kept[key]

    async def _proof(self, project_id: str, provider: Provider, token: str) -> Proof:
        key = (project_id, hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest())
        until, kept = self._kept.get(key, (0.0, None))
        if kept is not None and until > self._clock():
            if isinstance(kept, Proof):
                return kept
            raise type(kept)(kept.detail, error=kept.error, status=kept.status)
        return await self._asking.do((key, provider), lambda: self._ask(key, provider, token))

    async def _ask(self, key: tuple[str, bytes], provider: Provider, token: str) -> Proof:
        now = self._clock()
        try:
            proof = await provider.proof(token)
        except Unauthorized as error:
            self._keep(key, provider, now + REFUSED_S, error)
            raise
        self._keep(key, provider, min(proof.until or now + BELIEVED_S, now + BELIEVED_S), proof)
        return proof

    def _keep(self, key: tuple[str, bytes], provider: Provider, until: float, what: Proof | FleetError) -> None:
        made = self._providers.get(key[0])
        if made is None or made[1] is not provider:
            return  # the project's settings have changed meanwhile
        self._kept.pop(key, None)
        if len(self._kept) >= MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = (until, what)
