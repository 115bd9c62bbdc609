"""A real HAProxy with the configuration that Serve writes and the fleet mends, before a replica of the test's own."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from fleet.ops.haproxy import changes, find_haproxy
from fleet.ops.haproxy_shim import mend_file
from fleet.ops.home import free_ports
from fleet.settings import FleetSettings


class Replica(BaseHTTPRequestHandler):
    """Tells what it was told, takes bodies as they come, waits and streams."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.server.seen.append(dict(self.headers))  # type: ignore[attr-defined]
        if self.path == "/broken":
            self.wfile.write(b"not HTTP at all\r\n\r\n")
            self.close_connection = True
            return
        if self.path.startswith("/wait"):
            time.sleep(float(self.path.partition("=")[2]))
        if self.path.startswith("/stream"):
            self._stream(float(self.path.partition("=")[2]))
            return
        self._say(f"{self.headers.get('x-fleet-scheme')} {self.headers.get('x-fleet-client')}")

    def do_POST(self) -> None:
        got = 0
        length = int(self.headers.get("content-length", 0))
        while got < length and (part := self.rfile.read1(min(65536, length - got))):
            got += len(part)
        self._say(f"{got} bytes")

    do_PUT = do_POST

    def _say(self, text: str) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def _stream(self, pause_s: float) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"8\r\n: ping\n\n\r\n")
                self.wfile.flush()
                time.sleep(pause_s)
        except OSError:
            self.server.left.set()  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: object) -> None:
        return


class Replicas(ThreadingHTTPServer):
    """`seen`: headers of each GET. `left`: set once a stream's client is gone."""

    daemon_threads = True
    block_on_close = False  # a thread may wait for a client that the test has not let go yet

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Replica)
        self.seen: list[dict[str, str]] = []
        self.left = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Who is ended half-way by the proxy breaks off."""


def serve_config(folder: Path, host: str, port: int, behind: int | None, health: str = "/-/healthz") -> Path:
    """The file that Serve writes. `behind`: the replica's port, None while none is there; `health`: its path for it."""
    servers = [] if behind is None else [ServerConfig("one", "127.0.0.1", behind)]
    metrics, stats = free_ports(2)
    config = HAProxyConfig(
        http_options=HTTPOptions(host=host, port=port),
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        metrics_port=metrics,
        stats_port=stats,
        metrics_enabled=False,
        has_received_routes=True,
        is_head=True,
    )
    backend = BackendConfig("fleet", "/", servers=servers, app_name="fleet", http_health_check_path=health)
    backends = {"fleet": backend} if servers else {}
    file = folder / "haproxy.cfg"
    cast(Any, HAProxyApi(config, backends, str(file)))._generate_config_file_internal()
    return file


@contextmanager
def haproxy(folder: Path, settings: FleetSettings, behind: int | None, health: str = "/-/healthz") -> Iterator[None]:
    """The fleet's own proxy on `settings.port` before the replica at that port."""
    program = find_haproxy()
    if program is None:
        pytest.skip("no HAProxy for this platform")
    config = serve_config(folder, "127.0.0.1", settings.port, behind, health)
    mend_file(config, changes(folder / "proxy", settings))
    process = subprocess.Popen([program, "-db", "-f", config])
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


@contextmanager
def proxied(folder: Path, settings: FleetSettings, *, deployed: bool = True) -> Iterator[Replicas]:
    """The proxy, and what is behind it."""
    with Replicas() as replica:
        threading.Thread(target=replica.serve_forever, daemon=True).start()
        try:
            with haproxy(folder, settings, replica.server_port if deployed else None):
                yield replica
        finally:
            replica.shutdown()
