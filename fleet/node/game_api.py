"""What a running game may ask of its node over HTTP, on an address that only this game can reach.

    GET <PLAYFLOW_CONFIG_URL>?after=<revision>&timeout=<seconds>   →  {"revision": "…", "config": {playflow.json}}

It is answered at once if the revision is another one than `after`, else when the config changes or the timeout (30 s,
at most 60) has passed. A revision is a digest of the content, so it means the same after a restart of the agent.

A `Door` is where one game knocks; who knocks is known by the door, so there is nothing a game could say to be taken
for another. More that games may say (ready, players, stop me) becomes another row in `_ROUTES`.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import structlog
from aiohttp import web

from fleet.node.runtime import RunKey
from fleet.node.server_folder import CONFIG_FILE

log = structlog.get_logger(__name__)

CONFIG_PATH = "/config"
MOST_CONNECTIONS = 16
_DEFAULT_WAIT_S, _LONGEST_WAIT_S = 30.0, 60.0
_LONGEST_REVISION = 64
SHUT_S = 0.01  # 0 would mean for ever


@dataclass(slots=True, eq=False)
class Door:
    """One game's. `changed` is set, and replaced by a new event, whenever its config was rewritten."""

    key: RunKey
    config: Path
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    listener: asyncio.Server | None = None
    server: web.Server | None = None

    def connections(self) -> int:
        return len(self.server.connections) if self.server else 0


class GameApi:
    """The doors of one node's games."""

    def __init__(self) -> None:
        self._doors: dict[RunKey, Door] = {}

    def door(self, key: RunKey) -> Door | None:
        return self._doors.get(key)

    def connections(self, key: RunKey) -> int:
        """How many the game has to us now."""
        door = self._doors.get(key)
        return door.connections() if door is not None else 0

    def add(self, key: RunKey, folder: Path) -> Door:
        """A door without a listener of its own (see `enter`), to the config in `folder`."""
        return self._doors.setdefault(key, Door(key, folder / CONFIG_FILE))

    async def listen(
        self, key: RunKey, folder: Path, bind: Callable[[Callable[[], asyncio.Protocol]], Awaitable[asyncio.Server]]
    ) -> None:
        """Open a door; `bind` makes its listener for a protocol factory. Nothing to do if it is open."""
        door = self.add(key, folder)
        if door.listener is not None:
            return

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return await answer(door, request.path, request)

        door.server = make_server(handle)
        door.listener = await bind(bounded(door.server))

    def changed(self, key: RunKey) -> None:
        """The config was rewritten: whoever waits is answered."""
        if (door := self._doors.get(key)) is not None:
            door.changed.set()
            door.changed = asyncio.Event()

    async def shut(self, key: RunKey) -> None:
        door = self._doors.pop(key, None)
        if door is not None and door.listener is not None:
            door.listener.close()
        if door is not None and door.server is not None:
            await door.server.shutdown(timeout=SHUT_S)

    async def close(self) -> None:
        for key in list(self._doors):
            await self.shut(key)


def make_server(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> web.Server:
    """Bounded in what it reads: lines of 8 KB, no bodies."""
    return web.Server(handler, access_log=None, keepalive_timeout=75.0, lingering_time=1.0, handler_cancellation=True)


class _Refused(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def bounded(server: web.Server, most: int = MOST_CONNECTIONS) -> Callable[[], asyncio.Protocol]:
    """A protocol factory that closes connections beyond `most` at once."""
    return lambda: server() if len(server.connections) < most else _Refused()


async def answer(door: Door, path: str, request: web.BaseRequest) -> web.StreamResponse:
    """What the game of `door` gets."""
    methods = _ROUTES.get(path)
    if methods is None:
        return problem(404, "Not found", f"There is no {path}; ask GET {CONFIG_PATH}.")
    handler = methods.get(request.method)
    if handler is None:
        return problem(405, "Method not allowed", f"{path} takes {', '.join(methods)}.")
    return await handler(door, request)


async def _config(door: Door, request: web.BaseRequest) -> web.StreamResponse:
    try:
        after, wait_s = _question(request)
    except ValueError as error:
        return problem(400, "Bad request", str(error))
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    while True:
        changed = door.changed  # taken before the file is read, so that no rewrite is slept through
        try:
            content = door.config.read_bytes()
        except FileNotFoundError:
            return problem(404, "Server gone", "This run has ended.")
        revision = revision_of(content)
        left_s = deadline - loop.time()
        if revision != after or left_s <= 0:
            body = b'{"revision":"%s","config":%s}' % (revision.encode(), content)
            return web.Response(body=body, content_type="application/json")
        try:
            async with asyncio.timeout(left_s):
                await changed.wait()
        except TimeoutError:
            continue


def revision_of(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _question(request: web.BaseRequest) -> tuple[str | None, float]:
    after = request.query.get("after")
    if after is None:
        return None, 0.0
    if len(after) > _LONGEST_REVISION:
        raise ValueError("`after` is the revision of an earlier answer.")
    wait_s = float(request.query.get("timeout", _DEFAULT_WAIT_S))
    if not 0 <= wait_s <= _LONGEST_WAIT_S:
        raise ValueError(f"`timeout` is a number of seconds, 0 to {_LONGEST_WAIT_S:.0f}.")
    return after, wait_s


def problem(status: int, error: str, detail: str) -> web.Response:
    body = orjson.dumps({"error": error, "detail": detail})
    return web.Response(body=body, status=status, content_type="application/json")


_Handler = Callable[[Door, web.BaseRequest], Awaitable[web.StreamResponse]]
_ROUTES: dict[str, dict[str, _Handler]] = {CONFIG_PATH: {"GET": _config}}
