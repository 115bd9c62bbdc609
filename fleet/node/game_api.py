"""What a running game may ask of its node over HTTP, on an address that only this game can reach.

    POST <PLAYFLOW_AGENT_URL>/ready | /players | /health | /stop       what it says of itself (`words.py`)
    GET <PLAYFLOW_CONFIG_URL>?after=<revision>&timeout=<seconds>   →  {"revision": "…", "config": {playflow.json}}

It is answered at once if the revision is another one than `after`, else when the config changes or the timeout (30 s,
at most 60) has passed. A revision is a digest of the content, so it means the same after a restart of the agent.

A `Door` is where one game knocks; who knocks is known by the door, so there is nothing a game could say to be taken
for another. What outlasts the agent (that it is ready, that it promised to beat, that it wants to be stopped) is kept
in a file beside its config, which the game cannot write, and said again when its door is opened anew.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson
import structlog
from aiohttp import web

from fleet.node.listening import stop_accepting
from fleet.node.runtime import RunKey
from fleet.node.server_folder import CONFIG_FILE
from fleet.node.words import Heard, Word, to_keep, word_of

log = structlog.get_logger(__name__)

CONFIG_PATH = "/config"
TOLD_FILE = "told.json"
MOST_CONNECTIONS = 16
MOST_BODY = 1024
# A game that asks without end costs its node no more than this.
CALLS_PER_S, CALLS_AT_ONCE = 20.0, 60.0
_BODY_S = 5.0
_DEFAULT_WAIT_S, _LONGEST_WAIT_S = 30.0, 60.0
_LONGEST_REVISION = 64
SHUT_S = 0.01  # 0 would mean for ever


@dataclass(slots=True, eq=False)
class Door:
    """One game's. `changed` is set, and replaced by a new event, whenever its config was rewritten."""

    key: RunKey
    config: Path
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    listening: "Listening | None" = None
    heard: Heard = lambda _key, _word: None
    calls_left: float = CALLS_AT_ONCE
    called_at: float = 0.0
    kept: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    def may_call(self, now: float) -> bool:
        self.calls_left = min(CALLS_AT_ONCE, self.calls_left + (now - self.called_at) * CALLS_PER_S)
        self.called_at = now
        if self.calls_left < 1:
            return False
        self.calls_left -= 1
        return True

    def say(self, word: Word) -> None:
        """Keep what must be kept, then tell it."""
        kept = to_keep(word)
        if kept is not None and self.kept.get(kept[0]) != kept[1]:
            self.kept[kept[0]] = kept[1]
            draft = self.config.with_name(f".{TOLD_FILE}")
            draft.write_bytes(orjson.dumps(self.kept))
            draft.replace(self.config.with_name(TOLD_FILE))
        self.heard(self.key, word)

    def say_again(self) -> None:
        """What was said to an earlier agent."""
        try:
            self.kept = orjson.loads(self.config.with_name(TOLD_FILE).read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return
        for path, body in self.kept.items():
            if (word := word_of(path, body)) is not None:
                self.heard(self.key, word)

    def connections(self) -> int:
        return self.listening.connections() if self.listening else 0


class GameApi:
    """The doors of one node's games."""

    def __init__(self) -> None:
        self._doors: dict[RunKey, Door] = {}
        self.heard: Heard = lambda _key, _word: None

    def door(self, key: RunKey) -> Door | None:
        return self._doors.get(key)

    def connections(self, key: RunKey) -> int:
        """How many the game has to us now."""
        door = self._doors.get(key)
        return door.connections() if door is not None else 0

    def add(self, key: RunKey, folder: Path) -> Door:
        """A door without a listener of its own (see `enter`), to the config in `folder`."""
        door = self._doors.get(key)
        if door is None:
            door = self._doors[key] = Door(key, folder / CONFIG_FILE, heard=self.heard)
            door.say_again()
        return door

    async def listen(
        self, key: RunKey, folder: Path, bind: Callable[[Callable[[], asyncio.Protocol]], Awaitable[asyncio.Server]]
    ) -> None:
        """Open a door; `bind` makes its listener for a protocol factory. Nothing to do if it is open."""
        door = self.add(key, folder)
        if door.listening is not None:
            return

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return await answer(door, request.path, request)

        door.listening = Listening(handle, MOST_CONNECTIONS)
        try:
            await door.listening.open(bind)
        except OSError:
            door.listening = None
            raise

    def changed(self, key: RunKey) -> None:
        """The config was rewritten: whoever waits is answered."""
        if (door := self._doors.get(key)) is not None:
            door.changed.set()
            door.changed = asyncio.Event()

    def say(self, key: RunKey, word: Word) -> None:
        """As if the game had said it; nothing if it has no door (any more)."""
        if (door := self._doors.get(key)) is not None:
            door.say(word)

    async def shut(self, key: RunKey) -> None:
        door = self._doors.pop(key, None)
        if door is not None and door.listening is not None:
            await door.listening.close()

    async def close(self) -> None:
        for key in list(self._doors):
            await self.shut(key)


class _Refused(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class Listening:
    """An HTTP server of at most `most` connections: further ones are ended at once.

    It is bounded in what it reads: lines of 8 KB; bodies by `_body`.
    """

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], most: int) -> None:
        self._server = web.Server(
            handler, access_log=None, keepalive_timeout=75.0, lingering_time=1.0, handler_cancellation=True
        )
        self._most = most
        self._listener: asyncio.Server | None = None
        self._closed = False

    def connections(self) -> int:
        return len(self._server.connections)

    async def open(self, bind: Callable[[Callable[[], asyncio.Protocol]], Awaitable[asyncio.Server]]) -> None:
        """`bind` makes the listener for a protocol factory. Closed meanwhile: nothing is left open."""
        listener = await bind(lambda: self._server() if self.connections() < self._most else _Refused())
        self._listener = listener
        if self._closed:
            await self.close()

    async def close(self) -> None:
        self._closed = True
        if self._listener is not None:
            await stop_accepting(self._listener)
        await self._server.shutdown(timeout=SHUT_S)


async def answer(door: Door, path: str, request: web.BaseRequest) -> web.StreamResponse:
    """What the game of `door` gets."""
    if not door.may_call(time.monotonic()):
        return problem(429, "Too many calls", f"At most {CALLS_PER_S:.0f} calls a second.")
    method = _METHODS.get(path)
    if method is None:
        return problem(404, "Not found", f"There is no {path}; there are {', '.join(_METHODS)}.")
    if request.method != method:
        return problem(405, "Method not allowed", f"{path} takes {method}.")
    return await (_config(door, request) if method == "GET" else _said(door, path, request))


async def _said(door: Door, path: str, request: web.BaseRequest) -> web.StreamResponse:
    try:
        word = word_of(path, await _body(request))
    except ValueError as error:
        return problem(400, "Bad request", str(error))
    assert word is not None, "the path is one of _METHODS"
    try:
        door.say(word)
    except FileNotFoundError:
        return problem(404, "Server gone", "This run has ended.")
    return web.Response(body=b'{"ok":true}', content_type="application/json")


async def _body(request: web.BaseRequest) -> dict[str, Any]:
    """The JSON object that was sent; {} for nothing. ValueError says what is wrong with it."""
    read = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            while len(read) <= MOST_BODY and (part := await request.content.read(MOST_BODY + 1)):
                read += part
    except TimeoutError:
        raise ValueError("The body did not come.") from None
    if len(read) > MOST_BODY:
        raise ValueError(f"A body has at most {MOST_BODY} bytes.")
    try:
        found: Any = orjson.loads(read) if read.strip() else {}
    except orjson.JSONDecodeError:
        raise ValueError("The body is not JSON.") from None
    if not isinstance(found, dict):
        raise ValueError("The body is a JSON object, or empty.")
    return cast(dict[str, Any], found)


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


_METHODS = {CONFIG_PATH: "GET", "/ready": "POST", "/players": "POST", "/health": "POST", "/stop": "POST"}
