"""A provider's public keys, fetched when needed and kept.

A key that is not known is looked for again, but not more often than every ten seconds, or strangers' tokens would make
us hammer the provider. While it does not answer, the keys that it had stay good for a day.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import jwt

from fleet.errors import FleetError, Unavailable
from fleet.players.outside import Outside

FRESH_S = 600.0
RETRY_S = 10.0
STALE_S = 86_400.0


class KeySet:
    """The keys of one URL."""

    def __init__(self, url: str, outside: Outside, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._outside = outside
        self._clock = clock
        self._keys: list[jwt.PyJWK] = []
        self._fetched = self._tried = float("-inf")
        self._lock = asyncio.Lock()

    async def find(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key of that id; without an id the only one there is. `Unavailable` if no keys could ever be had."""
        if self._clock() - self._fetched > FRESH_S:
            await self._refresh(FRESH_S)
        found = self._pick(key_id)
        if found is None:
            await self._refresh(RETRY_S)
            found = self._pick(key_id)
        return found

    def _pick(self, key_id: str | None) -> jwt.PyJWK | None:
        if key_id is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.key_id == key_id), None)

    async def _refresh(self, unless_within_s: float) -> None:
        async with self._lock:
            now = self._clock()
            if now - self._fetched <= unless_within_s or (self._keys and now - self._tried <= RETRY_S):
                return
            self._tried = now
            try:
                status, answer = await self._outside.ask("The JWKS endpoint", "GET", self._url)
                if status != 200 or not isinstance(answer, dict):
                    raise Unavailable("The JWKS endpoint gave no keys.", error="Player provider unavailable")
            except FleetError:
                if now - self._fetched > STALE_S:
                    self._keys = []
                    raise
                return
            self._keys = _keys(answer)  # pyright: ignore[reportUnknownArgumentType]
            self._fetched = now


def _keys(answer: dict[str, Any]) -> list[jwt.PyJWK]:
    """Public signature keys. A shared key does not belong into a public list, so none is taken from there."""
    found: list[jwt.PyJWK] = []
    listed = answer.get("keys")
    for one in listed[:100] if isinstance(listed, list) else ():  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(one, dict) or one.get("kty") == "oct" or one.get("use", "sig") != "sig":  # pyright: ignore
            continue
        try:
            found.append(jwt.PyJWK(one))  # pyright: ignore[reportUnknownArgumentType]
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue  # of a kind that we do not know
    return found
