"""Streams through a real HAProxy: when their client is gone, the replica lets go of them."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from fleet.ops.home import free_ports
from fleet.proxy_secret import secret_file
from fleet.settings import FleetSettings
from serve_app.http import create_app
from tests.live_api import live
from tests.proxy import haproxy
from tests.unit.api_kit import Api
from tests.unit.test_api_lobbies import create

FREED_S = 5.0  # docs/timeouts.md


@asynccontextmanager
async def proxied(folder: Path, home: Path, behind: int) -> AsyncIterator[int]:
    """The port of the fleet's own proxy before that replica."""
    (plain,) = free_ports(1)
    with haproxy(folder, FleetSettings(home=home, port=plain), behind, "/api/health"):
        async with asyncio.timeout(20):
            while not await _listens(plain):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield plain


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def opened(port: int, request: bytes) -> socket.socket:
    """A stream of which something has arrived, on a socket of our own, so that its end can be chosen."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setblocking(False)
    await loop.sock_connect(client, ("127.0.0.1", port))
    await loop.sock_sendall(client, request)
    seen = b""
    async with asyncio.timeout(20):
        while b"\r\n\r\n" not in seen or not seen.partition(b"\r\n\r\n")[2]:
            seen += await loop.sock_recv(client, 65536)
    assert seen.startswith(b"HTTP/1.1 200"), seen[:500]
    return client


def leave(client: socket.socket, how: str) -> None:
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


@pytest.mark.parametrize("how", ["closed", "reset"])
async def test_a_stream_whose_client_is_gone_is_freed(api: Api, tmp_path: Path, how: str) -> None:
    context = api.app.state.context
    await create(api, "anna")
    server = await api.running()
    key = f"host: fleet.test\r\napi-key: {api.project.server_key}\r\nx-player-id: anna\r\n\r\n"
    paths = ("/api/v3/lobbies/default/me/events", "/api/v3/events")
    home = api.settings.home
    secret_file(home).write_text("f" * 64)  # the kit's is no word of HAProxy's
    app = create_app(context)
    async with live(app, {}) as direct, proxied(tmp_path, home, httpx.URL(direct.base_url).port or 0) as port:
        clients = [await opened(port, f"GET {path} HTTP/1.1\r\n{key}".encode()) for path in paths]
        async with asyncio.timeout(FREED_S):  # the first bytes may be ahead of the stream
            while not (context.player_streams._open and context.tail._live):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        for client in clients:
            leave(client, how)
        async with asyncio.timeout(FREED_S):
            while context.player_streams._open or context.tail._live:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert server["instance_id"]
