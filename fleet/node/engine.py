"""A thin client of the Docker engine's HTTP API on its local socket.

The runtime needs the engine of its own machine (it reads /proc and bind-mounts folders), so a Unix socket is all
there is to support, and a launch is three requests: this costs a third of a millisecond of CPU per request.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from fleet.node.runtime import EngineUnavailable

DEFAULT_SOCKET = "/var/run/docker.sock"
LONGEST_JSON = 4 << 20
CALL_S = 60.0  # the longest call that is none of the slow ones; a busy engine takes seconds
CONNECT_S = 10.0


class EngineError(Exception):
    """The engine refused: `status` is its HTTP status, `message` its own words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"engine {status}: {message}")
        self.status = status
        self.message = message


def socket_path(environ: Mapping[str, str] = os.environ) -> str:
    """Path of the engine's socket: DOCKER_HOST if it names one, else the usual place. ValueError for others."""
    host = environ.get("DOCKER_HOST", "")
    if not host:
        return DEFAULT_SOCKET
    if host.startswith("unix://"):
        return host.removeprefix("unix://")
    raise ValueError(f"DOCKER_HOST={host}: only a local engine (unix://…) can run game servers of this node")


class Engine:
    """One connection pool. Calls raise EngineError (it refused) or EngineUnavailable (it does not answer)."""

    def __init__(self, socket: str | None = None) -> None:
        self.socket = socket or socket_path()
        self._session: aiohttp.ClientSession | None = None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            # No limit: every log follower holds a connection, and must never starve a launch.
            connector = aiohttp.UnixConnector(self.socket, limit=0)
            self._session = aiohttp.ClientSession("http://engine", connector=connector)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        json: Any = None,
        data: AsyncIterable[bytes] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = CALL_S,
        decode: bool = True,
    ) -> Any:
        """One request; the decoded JSON answer, or None where there is none (or it is not wanted)."""
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        body, sent = data, dict(headers or {})
        if json is not None:
            body = orjson.dumps(json)
            sent["Content-Type"] = "application/json"
        try:
            async with self._client().request(
                method, path, params=params, data=body, headers=sent, timeout=timeout
            ) as answer:
                content = await answer.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise EngineUnavailable(f"the engine at {self.socket} does not answer: {error!r}") from error
        if answer.status >= 400:
            raise EngineError(answer.status, _message(content))
        return orjson.loads(content) if content and decode else None

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        silence_s: float | None,
        open_s: float | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """An answer that may last for long (events, logs, a pull): read it from `.content`. `silence_s`: how long it
        may say nothing; None where silence is its nature. `open_s`: by when it must begin."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence_s)
        asked = self._client().request(method, path, params=params, headers=headers, timeout=timeout)
        try:
            async with asyncio.timeout(open_s):
                answer = await asked
            async with answer:
                if answer.status >= 400:
                    raise EngineError(answer.status, _message(await answer.read()))
                yield answer
        except TimeoutError as error:
            raise EngineUnavailable(f"the engine at {self.socket} has stood still, asked for {path}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineUnavailable(f"the engine at {self.socket} went away: {error!r}") from error


async def json_lines(answer: aiohttp.ClientResponse) -> AsyncGenerator[dict[str, Any]]:
    """The JSON objects of a stream, one per line. EngineUnavailable for a line beyond 4 MB (labels may be long)."""
    buffer = bytearray()
    async for chunk in answer.content.iter_any():
        *lines, rest = (bytes(buffer) + chunk).split(b"\n")
        buffer[:] = rest
        if len(buffer) > LONGEST_JSON:
            raise EngineUnavailable("the engine sent a line without end")
        for line in lines:
            if line.strip():
                yield orjson.loads(line)


def _message(content: bytes) -> str:
    try:
        return str(orjson.loads(content)["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return content.decode(errors="replace")[:500]
