"""Only the fleet's own proxy may say who called: what a replica believes, and what the proxy is told to send."""

import json
import stat
from pathlib import Path

import httpx
import pytest

from fleet.ops.api import local_url, render
from fleet.ops.haproxy import changes, find_haproxy
from fleet.ops.proxy_rules import binds, error_pages, frontend_lines
from fleet.proxy_secret import SECRET_HEADER, ensure_secret, secret_file
from fleet.settings import FleetSettings, RateLimits, TlsSettings
from serve_app.trusted_proxy import TrustedProxy
from tests.unit.api_kit import PROXY_SECRET, Api, by_proxy, open_api

PATH = "/api/v3/servers"


@pytest.mark.parametrize(
    "claims",
    [
        {"x-fleet-client": "9.9.9.9"},
        {"x-fleet-scheme": "https"},
        {"x-fleet-anything": "1"},
        {"x-fleet-client": "9.9.9.9", SECRET_HEADER: "guessed"},
        {SECRET_HEADER: ""},
        {SECRET_HEADER: PROXY_SECRET + "x"},
    ],
)
async def test_who_passes_for_the_proxy_is_refused_whatever_he_asks(api: Api, claims: dict[str, str]) -> None:
    for path in (PATH, "/api/health", "/metrics", "/v2/servers", "/nowhere"):
        answer = await api.call("GET", path, headers=claims)
        assert answer.status_code == 403
        assert answer.json()["error"] == "Forbidden"
        assert "x-fleet-" in answer.json()["detail"]
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_two_secrets_are_none(api: Api) -> None:
    twice = [(SECRET_HEADER, PROXY_SECRET), (SECRET_HEADER, PROXY_SECRET), ("x-fleet-client", "9.9.9.9")]
    transport = httpx.ASGITransport(api.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://fleet.test", headers=twice) as client:
        assert (await client.get("/api/health")).status_code == 403


async def test_guessing_with_another_address_each_time_runs_into_the_limit(tmp_path: Path) -> None:
    api = await open_api(tmp_path, limits=RateLimits(unknown_keys_per_minute=5))

    async def guess(number: int, headers: dict[str, str]) -> int:
        return (await api.call("GET", PATH, key=f"pf_guess{number}", headers=headers)).status_code

    spoofed = [await guess(n, {"x-fleet-client": f"9.9.9.{n}"}) for n in range(10)]
    assert set(spoofed) == {403}
    straight = [await guess(n, {}) for n in range(10)]
    assert straight == [401] * 5 + [429] * 5
    told = [await guess(n, by_proxy(client=f"9.9.9.{n}")) for n in range(10)]
    assert told == [401] * 10, "the proxy is believed"
    await api.close()


def test_the_secret_goes_no_further_than_the_door() -> None:
    scope = {"headers": [(b"x-fleet-proxy", b"s"), (b"x-fleet-client", b"1.2.3.4"), (b"api-key", b"k")]}
    assert TrustedProxy("s").check(scope) is None
    assert scope["headers"] == [(b"x-fleet-client", b"1.2.3.4"), (b"api-key", b"k")]


def test_without_a_proxy_of_ours_nobody_is_believed() -> None:
    assert TrustedProxy(None).check({"headers": [(b"x-fleet-proxy", b""), (b"x-fleet-client", b"1.2.3.4")]}) is not None
    assert TrustedProxy(None).check({"headers": [(b"api-key", b"k")]}) is None


def test_the_secret_is_private_and_stays(tmp_path: Path) -> None:
    secret = ensure_secret(tmp_path)
    assert len(secret) == 64
    assert ensure_secret(tmp_path) == secret
    assert stat.S_IMODE(secret_file(tmp_path).stat().st_mode) == 0o600
    wanted = changes(tmp_path / "proxy", FleetSettings(home=tmp_path))
    assert f"http-request set-header x-fleet-proxy {secret}" in wanted.frontend


def test_what_a_client_says_is_removed_before_the_proxy_says_it() -> None:
    lines = frontend_lines(FleetSettings(), "s")
    removed = lines.index("http-request del-header x-fleet- -m beg")
    said = [n for n, line in enumerate(lines) if line.startswith("http-request set-header x-fleet-")]
    assert len(said) == 3
    assert removed < min(said)


def test_the_api_is_never_said_not_to_be_there(tmp_path: Path) -> None:
    """Serve's configuration says 404 while no application is known, as after a start; its own proxy answers so, too."""
    assert changes(tmp_path / "proxy", FleetSettings(home=tmp_path)).nowhere == ["http-request deny deny_status 503"]
    lines = frontend_lines(FleetSettings(), "s")
    assert any(
        "deny_status 503 if { status 404 } { res.fhdr(content-type) -m beg text/plain }" in line for line in lines
    )


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", ["127.0.0.1:80"]),
        ("localhost", ["127.0.0.1:80"]),
        ("0.0.0.0", ["0.0.0.0:80"]),
        ("*", ["0.0.0.0:80"]),
        ("::", ["0.0.0.0:80", "[::]:80 v6only"]),
        ("10.0.0.7", ["127.0.0.1:80", "10.0.0.7:80"]),
        ("fd00::7", ["127.0.0.1:80", "[fd00::7]:80"]),
    ],
)
def test_the_proxy_listens_where_the_operator_says_and_replicas_on_loopback(host: str, expected: list[str]) -> None:
    settings = FleetSettings(host=host, port=80)
    assert binds(settings, "") == expected
    assert binds(settings, f"{host}:443 ssl") == ["127.0.0.1:80", f"{host}:443 ssl"], "with TLS, plain is private"
    if find_haproxy():
        assert render(settings)["http_options"] == {"host": "127.0.0.1", "port": 80}
        assert local_url(settings) == "http://127.0.0.1:80"


@pytest.mark.parametrize(("host", "seen"), [("0.0.0.0", "127.0.0.1"), ("10.1.2.3", "10.1.2.3")])
def test_without_haproxy_serves_own_proxy_listens_there(monkeypatch: pytest.MonkeyPatch, host: str, seen: str) -> None:
    monkeypatch.setattr("fleet.ops.api.find_haproxy", lambda: None)
    settings = FleetSettings(host=host, port=8000)
    assert render(settings)["http_options"] == {"host": host, "port": 8000}
    assert local_url(settings) == f"http://{seen}:8000"
    assert local_url(FleetSettings(host=host, port=8000, tls=TlsSettings(api_port=1))) == "http://127.0.0.1:8000"


def test_every_page_of_the_proxy_has_the_shape_of_api_errors() -> None:
    pages = error_pages()
    assert set(pages) == {400, 403, 408, 413, 425, 429, 500, 501, 502, 503, 504}
    for status, page in pages.items():
        head, body = page.split("\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ")
        assert f"content-length: {len(body)}" in head
        assert "x-content-type-options: nosniff" in head
        assert ("retry-after" in head) == (status in (408, 429, 502, 503, 504))
        told = json.loads(body)
        assert set(told) == {"error", "detail", "status"}
        assert told["status"] == status
