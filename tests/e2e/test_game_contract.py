"""What games and players are promised, through the public API: TLS ports, live data, the project's own settings."""

import asyncio
import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from fleet.tls.dev_ca import ca_file
from tests import games
from tests.conftest import RunningFleet
from tests.player import WAIT_S, Studio, ask, stopped_after
from tests.pools import pool_of
from tests.python_games import WEBSOCKET_ECHO, python_game
from tests.waiting import eventually

pytestmark = [pytest.mark.fleet, pytest.mark.docker]

REGION = "eu-west"
TLS = {"name": "web", "internal_port": 8080, "protocol": "tcp", "tls_enabled": True}
GAME = {"name": "game", "internal_port": 7777, "protocol": "udp"}
SETTINGS = ("environment_variables", "port_configs")


@pytest.fixture(scope="module")
def web(studio: Studio) -> str:
    build = studio.push(games.make_zip(python_game(WEBSOCKET_ECHO, "websockets")), "contract-web")
    assert build["status"] == "ready", build
    return "contract-web"


@pytest.fixture
def settings(studio: Studio) -> Iterator[Any]:
    """Sets the project's settings; they are as before afterwards."""

    def put(**values: Any) -> None:
        studio.call("POST", "/projects/settings", json=values)

    yield put
    put(**dict.fromkeys(SETTINGS))


def echoed(fleet: RunningFleet, server: dict[str, Any], word: str) -> str:
    """What a browser game gets back: by wss, trusting the fleet's development CA and nothing else."""
    port = next(p for p in server["network_ports"] if p["name"] == "web")
    assert port["tls_enabled"]

    async def play() -> str:
        context = ssl.create_default_context(cafile=str(ca_file(Path(fleet.home))))
        url = f"wss://{port['host']}:{port['external_port']}"
        async with asyncio.timeout(WAIT_S), connect(url, ssl=context, proxy=None) as socket:
            await socket.send(word)
            return str(await socket.recv())

    return asyncio.run(play())


def test_a_browser_game_starts_a_server_and_plays_by_wss(fleet: RunningFleet, studio: Studio, web: str) -> None:
    """The Godot client of docs: a client key, one TLS port, polling until it runs."""
    body = {"name": "g", "region": REGION, "compute_size": "small", "version_tag": web, "port_configs": [TLS]}
    with fleet.client(fleet.client_key) as client:
        answer = client.post("/api/v3/servers/start", json=body)
        assert answer.status_code == 201, answer.text
        server = answer.json()
        with stopped_after(studio, server):
            eventually(
                lambda: client.get(f"/api/v3/servers/{server['instance_id']}").json()["status"] == "running",
                WAIT_S,
                "the server runs",
            )
            server = client.get(f"/api/v3/servers/{server['instance_id']}").json()
            assert echoed(fleet, server, "hello") == "echo hello"


def test_pools_and_cold_starts_have_the_projects_ports_and_variables(
    fleet: RunningFleet, studio: Studio, web: str, settings: Any
) -> None:
    settings(environment_variables={"MODE": "ranked"}, port_configs=[TLS])
    with pool_of(studio, REGION, web) as pool:
        pool.wish(count=1, max=1)
        pool.full(1)
        hot = pool.start(wait=False)
        cold = pool.start(environment_variables={"MODE": "casual"})
        with stopped_after(studio, hot, cold):
            assert (hot["start_kind"], cold["start_kind"]) == ("hot", "cold")
            for server in (hot, cold):
                assert [(p["name"], p["tls_enabled"]) for p in server["network_ports"]] == [("web", True)]
                assert echoed(fleet, server, "x") == "echo x"
            plain = pool.start(wait=False, port_configs=[{**TLS, "tls_enabled": False}])
            with stopped_after(studio, plain):
                assert plain["start_kind"] == "cold", "an entry with TLS is no entry without"


def test_the_projects_variables_reach_the_game(studio: Studio, settings: Any) -> None:
    build = studio.push(games.demo_zip(), "contract-demo")
    assert build["status"] == "ready"
    settings(environment_variables={"MODE": "ranked", "LEVEL": "1"}, port_configs=[{**GAME, "name": "play"}])
    with pool_of(studio, REGION, "contract-demo") as pool:
        pool.wish(count=1, max=1)
        pool.full(1)
        hot, cold = pool.start(wait=False), pool.start(environment_variables={"LEVEL": "2"})
        with stopped_after(studio, hot, cold):
            assert (hot["start_kind"], cold["start_kind"]) == ("hot", "cold")
            for server, level in ((hot, "1"), (cold, "2")):
                assert [p["name"] for p in server["network_ports"]] == ["play"]
                assert ask(server, "env MODE") == "env MODE=ranked"
                assert ask(server, "env LEVEL") == f"env LEVEL={level}"


def test_an_update_reaches_the_running_game_by_file_and_by_long_poll(studio: Studio) -> None:
    assert studio.push(games.make_zip(games.long_poller()), "contract-poll")["status"] == "ready"
    server = studio.start("contract-poll", custom_data={"map": "old"})
    with stopped_after(studio, server):
        assert json.loads(ask(server, "ask "))["config"]["custom_data"] == {"map": "old"}
        began = time.monotonic()
        studio.call("POST", f"/servers/{server['instance_id']}/update", json={"custom_data": {"map": "new"}})

        def told() -> bool:
            return any('"custom_data":{"map":"new"}' in line.replace(" ", "") for line in studio.log(server))

        eventually(told, 30, "the waiting game was told")
        assert time.monotonic() - began < 30, "sooner than its poll would have run out"
        assert json.loads(ask(server, "ask "))["config"]["custom_data"] == {"map": "new"}


def test_a_build_may_ask_for_the_games_word_and_a_game_may_ask_to_stop(studio: Studio) -> None:
    """The sample of docs/game-contract.md, driven by packets as a player would."""
    from tests.contract.test_game_words import talker

    link = studio.call("POST", "/builds/upload-url", 201, params={"name": "contract-word", "ready_by": "game"})
    assert studio.http.put(link["upload_url"], content=games.make_zip(talker())).status_code == 200
    assert studio.processed(link["build_id"])["status"] == "ready"
    server = studio.start("contract-word", wait=False)
    with stopped_after(studio, server):

        def said(path: str, **body: Any) -> str:
            return ask(server, json.dumps({"path": path, "body": body}))

        server = studio.until(server, lambda s: s["network_ports"][0]["external_port"])
        eventually(lambda: studio.events(server)[-1]["type"] == "booting", WAIT_S, "it boots")
        assert said("/players", count=0, capacity=8) == "ok"
        assert studio.server(server)["status"] == "launching", "its port is open, and it has not said that it is ready"
        assert said("/ready") == "ok"
        assert studio.server(server, "running")["status"] == "running"
        assert said("/players", count=3, capacity=8) == "ok"
        players = studio.call("GET", f"/servers/{server['instance_id']}/metrics")["players"]
        assert (players["count"], players["capacity"]) == (3, 8)
        assert said("/stop", reason="match over") == "ok"
        assert studio.server(server, "stopped")["status"] == "stopped"
        end = studio.last_stop(server)
        assert (end["reason"], end["shutdown_reason"]) == ("exited", "PROCESS_EXITED")
        assert "match over" in end["detail"]
