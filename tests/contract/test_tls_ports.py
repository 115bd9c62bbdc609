"""Games whose TLS the node ends: players come by wss, whatever dies in between."""

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from fleet.node import tls_config
from fleet.node.runtime import Port
from fleet.node.tls_config import ports_in
from fleet.node.tls_proxy import CONFIG, proxies
from fleet.settings import NodeSettings, TlsSettings
from fleet.tls.dev_ca import ca_file, ensure_ca, issue
from tests.browser import page
from tests.contract.node_bench import HABITS, Bench, open_bench
from tests.contract.runtime_stage import HOST, PATIENCE
from tests.python_games import websocket_echo
from tests.waiting import eventually

WEB = Port("web", 8080, 0, "tcp", True)


@pytest.fixture(params=["docker", "process"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, HABITS, request.param, tls_ports=4) as bench:
        yield bench


def trusting(bench: Bench) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca_file(bench.stage.folder)))


def player(bench: Bench, port: Port, context: ssl.SSLContext | None = None) -> Any:
    return connect(f"wss://{HOST}:{port.external}", ssl=context or trusting(bench), proxy=None)


async def says(socket: ClientConnection, word: str) -> None:
    async with asyncio.timeout(PATIENCE):
        await socket.send(word)
        assert await socket.recv() == f"echo {word}"


def proxy_of(bench: Bench) -> list[int]:
    assert bench.tls is not None
    return proxies(bench.tls._place.folder)


async def proxied_again(bench: Bench, before: list[int]) -> None:
    await asyncio.to_thread(eventually, lambda: proxy_of(bench) not in ([], before), PATIENCE, "the proxy is back")


async def test_players_come_by_wss_and_the_game_itself_is_on_the_loopback(bench: Bench) -> None:
    key, (port,) = await bench.running(websocket_echo(), WEB)
    assert port.plain == port.external + bench.share.tls_ports
    async with player(bench, port) as socket_of_player:
        await says(socket_of_player, "hello")
    with pytest.raises(ssl.SSLCertVerificationError):
        async with player(bench, port, ssl.create_default_context()):
            pass
    with socket.create_connection((HOST, port.external), timeout=10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"101" not in plain.recv(1024), "no plain text on the TLS port"
    bench.node.stop(1, key, 0)


async def test_an_address_that_holds_many_connections_gets_no_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_config, "MOST_PER_ADDRESS", 3)
    _, (port,) = await bench.running(websocket_echo(), WEB)
    silent = [socket.create_connection((HOST, port.external), source_address=("127.0.0.77", 0)) for _ in range(3)]
    with socket.create_connection((HOST, port.external), 10, source_address=("127.0.0.77", 0)) as one_more:
        assert await asyncio.to_thread(ended, one_more)
    async with player(bench, port) as socket_of_another:
        await says(socket_of_another, "hello")
    for one in silent:
        one.close()


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


async def test_connections_outlive_the_agent_and_the_proxy_is_started_again(bench: Bench) -> None:
    _, (port,) = await bench.running(websocket_echo(), WEB)
    before = proxy_of(bench)
    assert len(before) == 1
    async with player(bench, port) as socket_of_player:
        await bench.node.close()  # what kill -9 of the agent leaves
        await says(socket_of_player, "agent gone")
        await bench.open()
        await says(socket_of_player, "agent back")
        assert proxy_of(bench) == before, "it was taken over, not replaced"
    os.kill(before[0], signal.SIGKILL)
    await proxied_again(bench, before)
    async with player(bench, port) as socket_of_player:
        await says(socket_of_player, "proxy back")
    await bench.node.close()
    os.kill(proxy_of(bench)[0], signal.SIGKILL)
    await asyncio.to_thread(eventually, lambda: not proxy_of(bench), PATIENCE, "the proxy is dead")
    await bench.open()  # a game that runs needs it, though nothing is launched
    await proxied_again(bench, [])
    async with player(bench, port) as socket_of_player:
        await says(socket_of_player, "both back")


async def test_a_renewed_certificate_is_shown_and_cuts_nobody_off(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bench.stage.folder
    folder.mkdir(parents=True, exist_ok=True)
    paths = TlsSettings(certificate=folder / "cert.pem", key=folder / "key.pem")

    def renew() -> int:
        made = issue(folder, [HOST])
        assert paths.certificate is not None
        assert paths.key is not None
        paths.key.write_bytes(made.key)
        paths.certificate.write_bytes(made.chain)
        return made.leaf.serial_number

    first = renew()
    assert bench.tls is not None
    object.__setattr__(bench.tls._place, "settings", paths)
    monkeypatch.setattr("fleet.node.tls_proxy.LOOK_S", 0.1)
    _, (port,) = await bench.running(websocket_echo(), WEB)

    def shown() -> int:
        from cryptography import x509

        pem = ssl.get_server_certificate((HOST, port.external), timeout=10)
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    assert await asyncio.to_thread(shown) == first
    before = proxy_of(bench)
    async with player(bench, port) as socket_of_player:
        second = renew()
        await asyncio.to_thread(eventually, lambda: shown() == second, PATIENCE, "the new certificate")
        await says(socket_of_player, "still here")
        (folder / "cert.pem").write_bytes(b"broken by a half-done renewal")
        await asyncio.sleep(0.5)
        assert await asyncio.to_thread(shown) == second
        await says(socket_of_player, "and now")
    assert proxy_of(bench) == before


async def test_a_port_that_something_else_has_is_left_to_it(bench: Bench) -> None:
    taken = bench.share.port_last - 2 * bench.share.tls_ports
    with socket.create_server((HOST, taken)):
        _, (port,) = await bench.running(websocket_echo(), WEB)
        assert port.external != taken
        assert bench.tls is not None
        assert taken not in ports_in((bench.tls._place.folder / CONFIG).read_text())
        async with player(bench, port) as socket_of_player:
            await says(socket_of_player, "around it")


async def test_networks_made_ahead_have_tls_too(tmp_path: Path) -> None:
    habits = NodeSettings(health_every_s=0.1, warm_networks=1, usage_every_s=0)
    async with open_bench(tmp_path, habits, tls_ports=4) as bench:
        await bench.running(websocket_echo(), WEB)
        await asyncio.to_thread(eventually, lambda: bench.node._warm._ready, PATIENCE, "a network made ahead")
        (network,) = bench.node._warm._ready.values()
        _, (port,) = await bench.running(websocket_echo(), WEB)
        assert (port.external, port.plain) == (network.ports[0].external, network.ports[0].plain)
        async with player(bench, port) as socket_of_player:
            await says(socket_of_player, "warm")


PAGE = """<script>
const tell = word => fetch("/said", {method: "POST", body: word});
const game = new WebSocket("wss://HOST:PORT/");
game.onopen = () => game.send("from a browser");
game.onmessage = event => tell(event.data);
game.onerror = () => tell("error");
</script>"""


async def test_a_browser_game_connects(tmp_path: Path) -> None:
    async with open_bench(tmp_path, HABITS, tls_ports=4) as bench:
        _, (port,) = await bench.running(websocket_echo(), WEB)
        html = PAGE.replace("HOST", HOST).replace("PORT", str(port.external))

        def said(ca: Path, folder: Path) -> str:
            folder.mkdir()
            with page(html, folder, ca) as words:
                return words.get(timeout=PATIENCE)

        ours, stranger = ca_file(bench.stage.folder), ensure_ca(tmp_path / "stranger")
        assert await asyncio.to_thread(said, ours, tmp_path / "trusting") == "echo from a browser"
        assert await asyncio.to_thread(said, stranger, tmp_path / "not trusting") == "error"
