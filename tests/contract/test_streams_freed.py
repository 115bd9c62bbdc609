"""Streams through a real HAProxy: when their client is gone, the replica lets go of them."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from fleet.ops.haproxy import find_haproxy, frontend_lines
from fleet.ops.haproxy_shim import mend
from fleet.ops.home import free_ports
from fleet.settings import FleetSettings
from tests.live_api import live
from tests.unit.api_kit import Api
from tests.unit.test_api_lobbies import create

FREED_S = 5.0  # docs/timeouts.md
# As Serve's, whose own timeouts are longer than a stream's pings are apart.
CONFIG = """defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option abortonclose
frontend http_frontend
    bind 127.0.0.1:{plain}
    default_backend replica
backend replica
    server one 127.0.0.1:{behind}
"""


def test_serves_own_configuration_has_what_frees_them() -> None:
    """Without it, only the second ping after the client has gone would (a minute)."""
    source = find_spec("ray.serve._private.haproxy_templates")
    assert source is not None
    assert source.origin is not None
    assert "option abortonclose" in Path(source.origin).read_text()


@asynccontextmanager
async def proxied(folder: Path, behind: int) -> AsyncIterator[int]:
    """The port of a proxy before that replica."""
    haproxy = find_haproxy()
    if haproxy is None:
        pytest.skip("no HAProxy for this platform")
    (plain,) = free_ports(1)
    config = folder / "haproxy.cfg"
    lines = "\n".join(frontend_lines(folder, FleetSettings(home=folder, port=plain)))
    config.write_text(mend(CONFIG.format(plain=plain, behind=behind), "/dev/null", lines))
    process = await asyncio.create_subprocess_exec(haproxy, "-db", "-f", str(config))
    try:
        async with asyncio.timeout(20):
            while not await _listens(plain):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield plain
    finally:
        process.terminate()
        await process.wait()


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
    async with live(api.app, {}) as direct, proxied(tmp_path, httpx.URL(direct.base_url).port or 0) as port:
        clients = [await opened(port, f"GET {path} HTTP/1.1\r\n{key}".encode()) for path in paths]
        assert len(context.player_streams._open) == 1
        assert len(context.tail._live) == 1
        for client in clients:
            leave(client, how)
        async with asyncio.timeout(FREED_S):
            while context.player_streams._open or context.tail._live:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert server["instance_id"]
