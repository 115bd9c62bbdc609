"""Slow and silent clients on a real HAProxy with Serve's configuration: each is ended within its bound, and who makes
progress or waits for an answer is not."""

import json
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest

from fleet.ops import proxy_rules
from fleet.ops.home import free_ports
from fleet.settings import FleetSettings, RateLimits, TlsSettings
from fleet.tls.dev_ca import ca_file
from tests.proxy import proxied
from tests.waiting import eventually

HEADER_S, BODY_S, SILENCE_S = 2, 3, 4  # in place of 10, 20 and 30
SLACK_S = 2.0
SAFE = ("x-content-type-options", "x-frame-options", "referrer-policy")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HEADER_S", HEADER_S), ("BODY_S", BODY_S), ("SILENCE_S", SILENCE_S)):
        monkeypatch.setattr(proxy_rules, name, value)


@pytest.fixture
def settings(tmp_path: Path, impatient: None) -> FleetSettings:
    plain, secure = free_ports(2)
    limits = RateLimits(connections_per_address=4)
    return FleetSettings(home=tmp_path, port=plain, tls=TlsSettings(api_port=secure), limits=limits)


def up(settings: FleetSettings) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{settings.port}/", trust_env=False).is_success
    except httpx.TransportError:
        return False


def listens(settings: FleetSettings) -> bool:
    try:
        socket.create_connection(("127.0.0.1", settings.port)).close()
    except ConnectionRefusedError:
        return False
    return True


def until_ended(connection: socket.socket) -> tuple[float, bytes]:
    """Seconds until the other side closed, and what it said before."""
    began = time.monotonic()
    said = b""
    connection.settimeout(30)
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionError:
            part = b""
        if not part:
            return time.monotonic() - began, said
        said += part


def error_of(said: bytes, status: int) -> dict[str, str]:
    """Asserts that this is an error in the API's shape, with the headers that every answer has; returns its headers."""
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    assert first.split()[1] == str(status), said
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert headers["content-type"] == "application/json"
    assert all(name in headers for name in SAFE)
    told = json.loads(body)
    assert set(told) == {"error", "detail", "status"}
    assert told["status"] == status
    return headers


# `None`: closed without a word, or with HAProxy's own; before a request is whole, HAProxy 2.8 has no pages of ours
# (haproxy/haproxy#3032).
SILENT = {
    "nothing": (b"", HEADER_S, None),
    "half a header": (b"POST /api/v3/servers/start HTTP/1.1\r\nhost: x\r\napi-", HEADER_S, None),
    "half a small body": (b"POST /api/v3/x HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{", BODY_S, 408),
    "half a big body": (
        b"POST /api/v3/x HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n" + b"x" * 300_000, SILENCE_S, None,
    ),
    "half an upload": (b"PUT /upload/x HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nPK", SILENCE_S, None),
    "a chunk's head": (b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nff\r\n", BODY_S, 408),
}  # fmt: skip


def test_who_sends_nothing_or_half_of_something_is_ended(settings: FleetSettings) -> None:
    with proxied(settings.home, settings), ThreadPoolExecutor(len(SILENT)) as threads, ExitStack() as stack:
        eventually(lambda: up(settings), 20, "the proxy answers")
        waits = {}
        for name, (sent, _, _) in SILENT.items():
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", settings.port)))
            connection.sendall(sent)
            waits[name] = threads.submit(until_ended, connection)
        for name, (_, bound_s, status) in SILENT.items():
            took_s, said = waits[name].result(60)
            assert bound_s - 1 < took_s < bound_s + SLACK_S, (name, took_s, said)
            if status is not None:
                assert error_of(said, status)["retry-after"], name


def test_over_tls_the_same(settings: FleetSettings) -> None:
    with proxied(settings.home, settings):
        eventually(lambda: up(settings), 20, "the proxy answers")
        trust = ssl.create_default_context(cafile=ca_file(settings.home))
        address = ("127.0.0.1", settings.tls.api_port)
        with closing(socket.create_connection(address)) as no_handshake:
            assert until_ended(no_handshake)[0] < SILENCE_S + SLACK_S
        for protocol, sent in (("http/1.1", b"GET / HTTP"), ("http/1.1", b""), ("h2", b""), ("h2", b"PRI * HTTP/2.0")):
            trust.set_alpn_protocols([protocol])
            with closing(socket.create_connection(address)) as plain:
                connection = trust.wrap_socket(plain, server_hostname="127.0.0.1")
                with closing(connection):
                    assert connection.selected_alpn_protocol() == protocol
                    connection.sendall(sent)
                    assert until_ended(connection)[0] < SILENCE_S + SLACK_S, (protocol, sent)


def test_who_waits_for_an_answer_or_makes_progress_is_served(settings: FleetSettings) -> None:
    base = f"http://127.0.0.1:{settings.port}"
    waits_s = SILENCE_S + 2.5

    def slow_upload() -> Iterator[bytes]:
        for _ in range(6):
            time.sleep(SILENCE_S / 4)
            yield b"x" * 1000

    def streams(client: httpx.Client) -> int:
        with client.stream("GET", f"{base}/stream?every=1") as answer:
            began, got = time.monotonic(), 0
            for part in answer.iter_bytes():
                got += len(part)
                if time.monotonic() - began > waits_s:
                    return got
        return 0

    with (
        proxied(settings.home, settings) as replica,
        httpx.Client(trust_env=False, timeout=60) as client,
        ThreadPoolExecutor(3) as threads,
    ):
        eventually(lambda: up(settings), 20, "the proxy answers")
        waiting = threads.submit(client.get, f"{base}/wait?s={waits_s}")
        upload = threads.submit(
            client.put, f"{base}/upload/x", content=slow_upload(), headers={"content-length": "6000"}
        )
        stream = threads.submit(streams, client)
        assert waiting.result(60).status_code == 200
        assert upload.result(60).text == "6000 bytes"
        assert stream.result(60) > 6
        assert replica.left.wait(SILENCE_S + SLACK_S), "a stream whose client is gone is freed"


def test_an_address_holds_so_many_connections_and_is_told_so(settings: FleetSettings) -> None:
    most = settings.limits.connections_per_address

    def connect(source: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", settings.port), source_address=(source, 0))

    with proxied(settings.home, settings), ExitStack() as stack:
        eventually(lambda: up(settings), 20, "the proxy answers")
        for _ in range(most):
            stack.enter_context(connect("127.0.0.77"))
        with connect("127.0.0.77") as one_more:
            one_more.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            took_s, said = until_ended(one_more)
            assert took_s < HEADER_S, "it is closed, so that the place is free"
            assert error_of(said, 429)["retry-after"] == "5"
        for _ in range(most):
            stack.enter_context(connect("127.0.0.77"))
        with connect("127.0.0.77") as far_too_many:
            assert until_ended(far_too_many)[0] < 1, "not even read"
        with connect("127.0.0.78") as other:
            other.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert until_ended(other)[1].startswith(b"HTTP/1.1 200"), "nobody else is hurt"


def test_the_proxys_own_errors_are_the_apis(settings: FleetSettings) -> None:
    def asked(sent: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", settings.port)) as connection:
            connection.sendall(sent)
            return until_ended(connection)[1]

    with proxied(settings.home, settings):
        eventually(lambda: up(settings), 20, "the proxy answers")
        assert asked(b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400"), "in HAProxy's words, as said above"
        said = asked(b"GET /broken HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert error_of(said, 502)["retry-after"] == "2"
    with proxied(settings.home, settings, deployed=False):
        eventually(lambda: listens(settings), 20, "the proxy listens")
        said = asked(b"GET /api/v3/servers HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert error_of(said, 503)["retry-after"] == "2"


def test_statistics_are_closed_and_a_clients_claims_removed(settings: FleetSettings) -> None:
    with proxied(settings.home, settings) as replica:
        eventually(lambda: up(settings), 20, "the proxy answers")
        claims = {"x-fleet-proxy": "guess", "x-fleet-client": "9.9.9.9", "x-fleet-more": "1", "X-Fleet-Scheme": "https"}
        meddling = {"x-request-disconnect-disabled": "?1", "x-request-timeout-seconds": "-1"}
        httpx.get(f"http://127.0.0.1:{settings.port}/", headers=claims | meddling, trust_env=False)
        seen = {name.lower(): value for name, value in replica.seen[-1].items()}
        told = {name: value for name, value in seen.items() if name.startswith("x-fleet-")}
        assert told == {
            "x-fleet-client": "127.0.0.1",
            "x-fleet-proxy": (settings.home / "proxy-secret").read_text(),
        }
        assert not meddling.keys() & seen.keys()
        config = (settings.home / "haproxy.cfg").read_text()
        assert "stats enable" not in config
        assert "prometheus" not in config
