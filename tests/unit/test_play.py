"""The page at /play as it is served, the demo's lobby config, and the ports of a config's servers."""

import re
from typing import Any

import pytest

from fleet.cli_demo import LOBBIES, play_url
from fleet.lobbies.config import check_lobby_configs, find_config
from fleet.ops.home import Access
from fleet.servers.limits import Unprocessable
from tests.unit.api_kit import Api

GAME = {"name": "game", "internal_port": 7777, "protocol": "udp"}
WEB = {"name": "web", "internalPort": 7780, "protocol": "tcp"}


def config(*ports: dict[str, Any]) -> dict[str, Any]:
    return {"name": "demo", "serverSettings": {"portConfigs": list(ports)}}


def test_ports_of_a_config_come_in_either_spelling_with_defaults() -> None:
    check_lobby_configs([config(GAME, WEB)])
    assert find_config([config(GAME, WEB)], "demo").server_settings.ports == [
        {"name": "game", "internal_port": 7777, "protocol": "udp", "tls_enabled": False},
        {"name": "web", "internal_port": 7780, "protocol": "tcp", "tls_enabled": False},
    ]
    assert find_config([], "demo").server_settings.ports is None, "the project's"


@pytest.mark.parametrize(
    "ports",
    [(GAME, GAME), (GAME, {**WEB, "name": "game"}), ({**GAME, "tls_enabled": True},), ({**WEB, "internalPort": 0},)],
)
def test_ports_that_no_server_could_have_are_refused_with_their_place(ports: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(Unprocessable, match=r"^lobby_configs\.0\.serverSettings\.portConfigs"):
        check_lobby_configs([config(*ports)])


def test_the_demos_config_is_valid_and_has_a_port_for_browsers() -> None:
    check_lobby_configs([LOBBIES])
    demo = find_config([LOBBIES], "demo")
    assert "1v1" in demo.modes
    assert {"web"} == {port["name"] for port in demo.server_settings.ports or () if port["protocol"] == "tcp"}


def test_the_key_is_behind_the_hash() -> None:
    url = play_url(Access("http://127.0.0.1:8000", "pf_secret", "pfclient_open", "p"))
    assert url == "http://127.0.0.1:8000/play#key=pfclient_open"


async def test_the_page_may_run_its_own_script_only(api: Api) -> None:
    for path in ("/play", "/play/", "/play/play.js", "/play/play.css"):
        answer = await api.call("GET", path, key=None)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"\son\w+=|<script>|style=|innerHTML|https?:", answer.text)
    for path in ("/play/play.html", "/play/..%2fplay.py", "/play/x"):
        assert (await api.call("GET", path, key=None)).status_code == 404
