"""TLS of the API: the mended configuration in a real HAProxy, with a certificate of the development CA."""

import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from fleet.ops.api import local_url, render
from fleet.ops.haproxy import find_haproxy, tls_bind
from fleet.ops.haproxy_shim import mend
from fleet.ops.home import free_ports
from fleet.settings import FleetSettings, TlsSettings
from fleet.tls.dev_ca import ca_file
from tests.waiting import eventually

CONFIG = """defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend http_frontend
    bind 127.0.0.1:{plain}
    default_backend replica
backend replica
    server one 127.0.0.1:{behind}
"""


class Replica(BaseHTTPRequestHandler):
    """Tells what it was told."""

    def do_GET(self) -> None:
        said = f"{self.headers.get('x-fleet-scheme')} {self.headers.get('x-fleet-client')}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def proxied(folder: Path, settings: FleetSettings, plain: int) -> Iterator[None]:
    haproxy = find_haproxy()
    if haproxy is None:
        pytest.skip("no HAProxy for this platform")
    with ThreadingHTTPServer(("127.0.0.1", 0), Replica) as replica:
        threading.Thread(target=replica.serve_forever, daemon=True).start()
        config = folder / "haproxy.cfg"
        text = CONFIG.format(plain=plain, behind=replica.server_port)
        config.write_text(mend(text, "/dev/null", tls_bind(folder, settings)))
        process = subprocess.Popen([haproxy, "-db", "-f", config])
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)
            replica.shutdown()


def answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).is_success
    except httpx.TransportError:
        return False


def test_the_api_speaks_tls_with_the_development_ca(tmp_path: Path) -> None:
    plain, secure = free_ports(2)
    settings = FleetSettings(home=tmp_path, port=plain, tls=TlsSettings(api_port=secure))
    with (
        proxied(tmp_path, settings, plain),
        httpx.Client(verify=ssl.create_default_context(cafile=ca_file(tmp_path)), trust_env=False) as client,
    ):
        url = f"https://127.0.0.1:{secure}/"
        eventually(lambda: answers(client, url), 20, "the proxy answers")
        assert client.get(url).text == "https 127.0.0.1"
        assert client.get(url, headers={"x-fleet-client": "192.0.2.9"}).text == "https 127.0.0.1"
        lie = {"x-fleet-scheme": "https"}
        assert client.get(f"http://127.0.0.1:{plain}/", headers=lie).text == "None 127.0.0.1"
    assert settings.base_url == f"https://127.0.0.1:{secure}"


def test_with_tls_the_plain_port_is_for_this_machine_only() -> None:
    settings = FleetSettings(host="0.0.0.0", port=1234, tls=TlsSettings(api_port=8443))
    assert render(settings)["http_options"] == {"host": "127.0.0.1", "port": 1234}
    assert local_url(settings) == "http://127.0.0.1:1234"


def test_mending_twice_changes_nothing(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "127.0.0.1"):
        bind = tls_bind(tmp_path, FleetSettings(home=tmp_path, host=host, tls=TlsSettings(api_port=8443)))
        once = mend(CONFIG, "/dev/null", bind)
        assert mend(once, "/dev/null", bind) == once
        assert f"    bind {bind}\n" in once
