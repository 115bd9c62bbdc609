"""What our lines make of Serve's HAProxy, in a real one: TLS of the development CA, floods shed."""

import ssl
from pathlib import Path

import httpx

from fleet.ops.api import local_url, render
from fleet.ops.flood import floods
from fleet.ops.haproxy import changes
from fleet.ops.haproxy_shim import mend
from fleet.ops.home import free_ports
from fleet.settings import FleetSettings, RateLimits, TlsSettings
from fleet.tls.dev_ca import ca_file
from tests.proxy import proxied, serve_config
from tests.waiting import eventually


def answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).is_success
    except httpx.TransportError:
        return False


def test_the_api_speaks_tls_with_the_development_ca(tmp_path: Path) -> None:
    plain, secure = free_ports(2)
    settings = FleetSettings(home=tmp_path, port=plain, tls=TlsSettings(api_port=secure))
    with (
        proxied(tmp_path, settings),
        httpx.Client(verify=ssl.create_default_context(cafile=ca_file(tmp_path)), trust_env=False) as client,
    ):
        url = f"https://127.0.0.1:{secure}/"
        eventually(lambda: answers(client, url), 20, "the proxy answers")
        assert client.get(url).text == "https 127.0.0.1"
        assert client.get(url, headers={"x-fleet-client": "192.0.2.9"}).text == "https 127.0.0.1"
        assert "strict-transport-security" not in client.get(url).headers  # replicas say it
        lie = {"x-fleet-scheme": "https"}
        assert client.get(f"http://127.0.0.1:{plain}/", headers=lie).text == "None 127.0.0.1"
    assert settings.base_url == f"https://127.0.0.1:{secure}"


def test_with_tls_the_plain_port_is_for_this_machine_only() -> None:
    settings = FleetSettings(host="0.0.0.0", port=1234, tls=TlsSettings(api_port=8443))
    assert render(settings)["http_options"] == {"host": "127.0.0.1", "port": 1234}
    assert local_url(settings) == "http://127.0.0.1:1234"


def test_mending_twice_changes_nothing(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "127.0.0.1"):
        settings = FleetSettings(home=tmp_path, host=host, tls=TlsSettings(api_port=8443))
        wanted = changes(tmp_path / "proxy", settings)
        once = mend(serve_config(tmp_path, "127.0.0.1", 8000, None).read_text(), wanted)
        assert mend(once, wanted) == once
        shown = "[::]" if host == "::" else host
        assert f"    bind {shown}:8443 ssl crt {tmp_path}/proxy/api.pem" in once


def test_a_flood_is_shed_and_the_limit_still_gets_through(tmp_path: Path) -> None:
    plain = free_ports(1)[0]
    settings = FleetSettings(home=tmp_path, port=plain, limits=RateLimits(reads_per_s=20, writes_per_s=5))
    base = f"http://127.0.0.1:{plain}"
    with proxied(tmp_path, settings), httpx.Client(trust_env=False) as client:
        eventually(lambda: answers(client, base), 20, "the proxy answers")
        statuses = [client.get(f"{base}/api/v3/servers", headers={"api-key": "noisy"}).status_code for _ in range(300)]
        assert statuses[:44] == [200] * 44  # 2.2 times the limit: replicas count exactly
        assert statuses.count(429) > 100
        shed = client.get(f"{base}/api/v3/servers", headers={"api-key": "noisy"})
        assert shed.status_code == 429
        assert set(shed.json()) == {"error", "detail", "status"}
        assert (shed.headers["retry-after"], shed.headers["x-ratelimit-limit"]) == ("1", "20")
        v2 = client.get(f"{base}/v2/servers", headers={"api-key": "noisy"}).json()
        assert v2["message"].startswith("Too many requests")
        # Other keys, other classes and what needs no key pass.
        assert client.get(f"{base}/api/v3/servers", headers={"api-key": "quiet"}).status_code == 200
        assert client.get(f"{base}/api/health", headers={"api-key": "noisy"}).status_code == 200
        posted = client.post(f"{base}/api/v3/servers/start", headers={"api-key": "noisy"})
        assert posted.text == "0 bytes"


def test_nothing_is_shed_where_a_plan_has_no_limit(tmp_path: Path) -> None:
    plans = tmp_path / "plans.yaml"
    plans.write_text("plans: {free: {}, studio: {reads_per_s: 0, writes_per_s: 100}}")
    settings = FleetSettings(home=tmp_path, plans_config=plans)
    found = floods(settings)
    assert [(flood.what, flood.passes, flood.told) for flood in found] == [("writes", 220, None)]
