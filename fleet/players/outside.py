"""Asking other companies' servers: bounded in time and size, redirects refused, faults told as `Unavailable`."""

import asyncio
from collections.abc import Callable, Mapping
from socket import socket
from typing import Any

import aiohttp
import orjson
import structlog

from fleet.errors import Unavailable

log = structlog.get_logger(__name__)
TIMEOUT_S = 5.0
MAX_ANSWER = 256 * 1024
SocketFactory = Callable[[Any], socket]


class Outside:
    """`socket_factory` may refuse addresses. Connections are kept while there is work."""

    def __init__(self, socket_factory: SocketFactory | None = None) -> None:
        self._socket_factory = socket_factory
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self,
        who: str,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        json: object = None,
    ) -> tuple[int, Any]:
        """The status and the JSON of the answer (None if it has none). `who` names it in errors, which hold no URL:
        that may carry the studio's key."""
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._opened().request(
                    method, url, params=params, headers=headers, json=json, allow_redirects=False
                ) as answer,
            ):
                body = await answer.content.read(MAX_ANSWER)
                while not answer.content.at_eof() and len(body) < MAX_ANSWER:
                    body += await answer.content.read(MAX_ANSWER - len(body))
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            log.warning("provider_unreachable", who=who, error=type(error).__name__)
            raise Unavailable(f"{who} does not answer now. Try again.", error="Player provider unavailable") from None
        if answer.status >= 500 or answer.status == 429:
            log.warning("provider_failed", who=who, status=answer.status)
            raise Unavailable(f"{who} cannot answer now. Try again.", error="Player provider unavailable")
        try:
            return answer.status, orjson.loads(body)
        except orjson.JSONDecodeError:
            return answer.status, None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            connector = aiohttp.TCPConnector(limit=64, socket_factory=self._socket_factory)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def field(answer: Any, *path: str) -> Any:
    """What lies at that path of a JSON answer; None if there is nothing."""
    for name in path:
        answer = answer.get(name) if isinstance(answer, dict) else None  # pyright: ignore[reportUnknownVariableType]
    return answer  # pyright: ignore[reportUnknownVariableType]
