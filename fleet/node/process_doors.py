"""How a game that is a plain process reaches its node: one loopback port for all, and a secret path per run.

The port is written down, so that the addresses that running games have been told hold when the agent starts anew.
"""

import asyncio
import secrets
import socket
from pathlib import Path

import structlog
from aiohttp import web

from fleet.node.game_api import CONFIG_PATH, MOST_CONNECTIONS, GameApi, Listening, answer, problem
from fleet.node.runtime import RunKey

log = structlog.get_logger(__name__)

_MOST = 64 * MOST_CONNECTIONS


class ProcessDoors:
    """`port_file`: where the port is written down."""

    def __init__(self, api: GameApi, port_file: Path) -> None:
        self._api, self._port_file = api, port_file
        self._keys: dict[str, RunKey] = {}
        self._listening = Listening(self._handle, _MOST)
        self._port = 0

    async def open(self) -> None:
        made = _listener(self._last_port())
        self._port = made.getsockname()[1]
        self._port_file.parent.mkdir(parents=True, exist_ok=True)
        self._port_file.write_text(str(self._port))
        loop = asyncio.get_running_loop()
        await self._listening.open(lambda protocol: loop.create_server(protocol, sock=made))

    def _last_port(self) -> int:
        try:
            return int(self._port_file.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    async def close(self) -> None:
        await self._listening.close()

    def url(self) -> str:
        """The address of a new run's door; `serve` opens it."""
        return f"http://127.0.0.1:{self._port}/{secrets.token_urlsafe(18)}{CONFIG_PATH}"

    def serve(self, key: RunKey, url: str, folder: Path) -> None:
        token = url.removesuffix(CONFIG_PATH).rpartition("/")[2]
        self._keys[token] = key
        self._api.add(key, folder)

    async def shut(self, key: RunKey) -> None:
        self._keys = {token: known for token, known in self._keys.items() if known != key}
        await self._api.shut(key)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        token, _, rest = request.path.removeprefix("/").partition("/")
        key = self._keys.get(token)
        door = self._api.door(key) if key is not None else None
        if door is None:
            return problem(404, "Not found", "No run has this address.")
        return await answer(door, f"/{rest}", request)


def _listener(port: int) -> socket.socket:
    """On the port, or on another one if it is taken: then games that run already ask in vain."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(("127.0.0.1", port))
    except OSError:
        log.warning("game_api_port_taken", port=port)
        made.bind(("127.0.0.1", 0))
    made.listen(64)
    made.setblocking(False)
    return made
