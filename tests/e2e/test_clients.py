"""What real clients of PlayFlow's servers and builds send, step by step, with what each needs of the answers.

The sequences follow section 6 of the API page; the clients are in tests/clients. Those of lobbies and matchmaking
(the Unity kit's v3 lobbies, its v2 lobbies, Unreal's) belong into tests/e2e/test_lobby_clients.py, with the lobbies.
"""

import os
import ssl
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from websockets.sync.client import connect

from fleet.tls.dev_ca import ca_file
from tests import games
from tests.clients.godot import GodotGame, Refused
from tests.clients.mcp import Mcp, ToolError
from tests.clients.nakama import Nakama
from tests.clients.reading import read
from tests.clients.unity_v2 import UNREAL, ApiError, UnityV2
from tests.conftest import RunningFleet
from tests.player import Studio, ask, stopped_after
from tests.python_games import websocket_echo
from tests.waiting import eventually

pytestmark = [pytest.mark.fleet, pytest.mark.docker]

CI = Path(__file__).parent.parent / "clients" / "ci_upload.sh"


@pytest.fixture(scope="module")
def demo(studio: Studio) -> str:
    assert studio.push(games.demo_zip(), "client-demo")["status"] == "ready"
    return "client-demo"


Client = TypeVar("Client", UnityV2, Mcp, Nakama, GodotGame)


@contextmanager
def closed_after(client: Client) -> Iterator[Client]:
    try:
        yield client
    finally:
        client.http.close()


@pytest.fixture(scope="module")
def unity(fleet: RunningFleet) -> Iterator[UnityV2]:
    with closed_after(UnityV2(fleet.url, fleet.server_key)) as client:
        yield client


@pytest.fixture(scope="module")
def mcp(fleet: RunningFleet) -> Iterator[Mcp]:
    with closed_after(Mcp(fleet.url, fleet.server_key)) as client:
        yield client


@pytest.fixture(scope="module")
def nakama(fleet: RunningFleet) -> Iterator[Nakama]:
    with closed_after(Nakama(fleet.url, fleet.server_key)) as client:
        yield client


@pytest.fixture(scope="module")
def godot(fleet: RunningFleet) -> Iterator[GodotGame]:
    with closed_after(GodotGame(fleet.url, fleet.client_key, "godot")) as game:
        yield game


@contextmanager
def stopped_in_the_end(studio: Studio) -> Iterator[list[str]]:
    """Stops the servers whose ids are put into the list."""
    ids: list[str] = []
    try:
        yield ids
    finally:
        for instance_id in ids:
            studio.call("DELETE", f"/servers/{instance_id}")


def test_unitys_v2_server_client(unity: UnityV2, fleet: RunningFleet, studio: Studio, demo: str) -> None:
    assert unity.project_id() == fleet.project_id
    with stopped_in_the_end(studio) as ids:
        started = unity.start("match 1", "us-east", version_tag=demo, version=1, ttl=600, custom_data={"map": "dust"})
        ids.append(started["instance_id"])
        assert started["status"] == "launching"
        assert started["network_ports"][0]["external_port"] > 0
        assert started["instance_id"] in [one["instance_id"] for one in unity.list(include_launching=True)["servers"]]
        eventually(lambda: unity.get(started["instance_id"])["status"] == "running", 60, "the server runs")
        server = unity.get(started["instance_id"])
        assert ask(server, "ping 1").startswith("pong")
        assert server["custom_data"] == {"map": "dust"}
        assert unity.report(started["instance_id"], "running")["status"] == "running"
        listed = unity.list(include_launching=False)
        assert started["instance_id"] in [one["instance_id"] for one in listed["servers"]]
        assert listed["total_servers"] == len(listed["servers"])
        assert unity.stop(started["instance_id"])["status"]
        assert unity.get(started["instance_id"])["status"] == "stopped"


def test_unity_reads_our_errors(unity: UnityV2) -> None:
    with pytest.raises(ApiError, match=r"Field required \(body -> region, missing\)"):
        unity.send("POST", "/v2/servers/start", {"name": "x"})
    with pytest.raises(ApiError, match="There is no server"):
        unity.get(str(uuid.uuid4()))
    with pytest.raises(ApiError, match="No ready build"):
        unity.start("x", "us-east", version_tag="never-uploaded")


def test_unitys_editor_uploads_a_build_and_calls_nothing_more(unity: UnityV2, studio: Studio) -> None:
    link = unity.upload(games.demo_zip(), "unity-upload")
    assert studio.processed(link["build_id"])["status"] == "ready"


def test_unreal_reads_a_running_server_without_looking(unity: UnityV2, studio: Studio, demo: str) -> None:
    server = studio.start(demo)  # neither a ttl nor arguments: the fields that it must not meet as null
    with stopped_after(studio, server):
        seen = read(UNREAL, unity.send("GET", f"/v2/servers/{server['instance_id']}"))
        assert seen["status"] == "running"
        assert seen["network_ports"][0]["tls_enabled"] is False
        assert "ttl" not in seen
        assert "startup_args" not in seen


def test_playflow_mcps_tools(mcp: Mcp, studio: Studio, tmp_path: Path) -> None:
    archive = tmp_path / "server.zip"
    archive.write_bytes(games.demo_zip())
    build_id = mcp.upload_build(archive, "mcp")["build_id"]
    assert studio.processed(build_id)["status"] == "ready"
    assert mcp.get_build(build_id)["name"] == "mcp"
    assert [build["build_id"] for build in mcp.list_builds("mcp")["builds"]] == [build_id]
    assert mcp.get_build_logs(build_id)["logs"]

    with stopped_in_the_end(studio) as ids:
        started = mcp.start_server("arena", "us-east", "mcp", ttl=600, match_id="m-7")
        ids.append(started["instance_id"])
        assert (started["match_id"], started["auto_restart"]) == ("m-7", False)
        eventually(lambda: mcp.get_server(ids[0])["status"] == "running", 60, "the server runs")
        assert ids[0] in [one["instance_id"] for one in mcp.list_servers(include_pool=True)["servers"]]
        assert mcp.update_server_custom_data(ids[0], {"players": 3})["custom_data"] == {"players": 3}
        assert "logs" in mcp.get_server_logs(ids[0], start_time="-1h")
        assert mcp.get_server_metrics(ids[0])["instance_id"] == ids[0]
        again = mcp.restart_server(ids[0])
        assert (again["instance_id"], again["custom_data"]) == (ids[0], {"players": 3})
        assert mcp.stop_server(ids[0], "SHUTDOWN_SIGNAL")["status"] == "Server stopped successfully"
    assert mcp.delete_build(build_id)["status"] == "success"
    assert mcp.get_build(build_id)["status"] == "deleted"
    with pytest.raises(ToolError, match="There is no ready build 'mcp'"):
        mcp.start_server("arena", "us-east", "mcp")


def test_playflow_mcp_registers_an_image_and_reads_the_settings(mcp: Mcp) -> None:
    login = {"username": "studio", "password": "secret"}
    accepted = mcp.create_build_from_docker("127.0.0.1:9/studio/game:1", "mcp-image", login)
    assert accepted["status"] == "accepted"
    assert mcp.delete_build(accepted["build_id"])["status"] == "success"
    parts = {"port_configs", "auth_config", "environment_variables", "pool_config", "lobby_configs"}
    assert parts <= set(mcp.get_project_settings())


def test_nakama_finds_the_server_whose_start_was_never_answered(nakama: Nakama, studio: Studio, demo: str) -> None:
    correlation = str(uuid.uuid4())
    assert nakama.find(correlation) == []
    with stopped_in_the_end(studio) as ids:
        nakama.start("fleet-1", "us-east", correlation, version_tag=demo, ttl=600, environment_variables={"A": "b"})
        found = nakama.find(correlation)  # as if the answer had been lost: it is not asked again
        ids += [one["instance_id"] for one in found]
        assert len(found) == 1
        assert "environment_variables" not in found[0]
        eventually(lambda: nakama.get(ids[0])["status"] == "running", 60, "the server runs")
        nakama.stop(ids[0])
        nakama.stop(ids[0])
        nakama.stop(str(uuid.uuid4()))
        assert nakama.get(ids[0])["status"] == "stopped"
        assert nakama.find(correlation) == []


def test_the_godot_game_starts_the_one_server_or_joins_it(
    godot: GodotGame, fleet: RunningFleet, studio: Studio
) -> None:
    web_game = games.make_zip(websocket_echo())
    assert studio.push(web_game, "godot")["status"] == "ready"
    before = studio.call("GET", "/servers", params={"include_launching": True})
    assert before["total"] == 0, "another test left a server, which the game would join"
    with stopped_in_the_end(studio) as ids:
        port = godot.join()
        servers = studio.call("GET", "/servers")["servers"]
        ids += [one["instance_id"] for one in servers]
        assert len(servers) == 1
        trusting = ssl.create_default_context(cafile=str(ca_file(fleet.home)))  # made with the first such game
        with connect(f"wss://{port['host']}:{port['external_port']}", ssl=trusting, proxy=None) as player:
            player.send("hello")
            assert player.recv(timeout=30) == "echo hello"
        assert godot.join() == port
        assert studio.call("GET", "/servers")["total"] == 1
        with pytest.raises(Refused):
            godot.stop(ids[0])

        newer = studio.push(web_game, "godot")
        restarted = studio.call("POST", f"/servers/{ids[0]}/restart", json={"version_tag": "godot"})
        assert (restarted["instance_id"], restarted["version"]) == (ids[0], newer["version"])


def run_ci(fleet: RunningFleet, archive: Path, key: str, name: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(CI), f"{fleet.url}/api", key, str(archive), name]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"POLL_S": "0.3"})


def test_the_shell_script_of_a_ci_uploads_a_build(fleet: RunningFleet, studio: Studio, tmp_path: Path) -> None:
    archive = tmp_path / "server.zip"
    archive.write_bytes(games.demo_zip())
    done = run_ci(fleet, archive, fleet.server_key, "ci")
    assert done.returncode == 0, done.stderr
    assert studio.call("GET", f"/builds/{done.stdout.strip()}")["status"] == "ready"


def test_the_shell_script_prints_the_log_of_a_failed_build(fleet: RunningFleet, tmp_path: Path) -> None:
    archive = tmp_path / "server.zip"
    archive.write_bytes(games.make_zip({"README.txt": (b"no game in here", 0o644)}))
    done = run_ci(fleet, archive, fleet.server_key, "ci-failed")
    assert done.returncode == 1
    assert "Server.x86_64" in done.stdout


def test_the_shell_script_cannot_upload_with_a_client_key(fleet: RunningFleet, tmp_path: Path) -> None:
    archive = tmp_path / "server.zip"
    archive.write_bytes(games.demo_zip())
    done = run_ci(fleet, archive, fleet.client_key, "ci")
    assert done.returncode != 0
    assert "403" in done.stdout + done.stderr
