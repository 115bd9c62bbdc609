"""Starting and stopping: what runs, what is private, what survives, what is left behind (nothing)."""

import os
import signal
import socket
import sqlite3
import ssl
import stat
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from fleet.ops.head import read_head
from fleet.ops.home import Home, find_home, free_ports
from fleet.ops.processes import command_of, held, supervised, wait_ended
from fleet.ops.supervisor import lock_holder
from fleet.tls.dev_ca import ca_file
from tests import games
from tests.conftest import RunningFleet, fleet_environment, run_fleet, started_fleet
from tests.player import Studio, ask
from tests.sockets import only_the_proxy_listens
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(900)
GAME_PORT = [{"name": "game", "internal_port": 7777, "protocol": "udp"}]


def home_of(fleet: RunningFleet) -> Home:
    found = find_home(fleet.home)
    assert found is not None
    return found


def healthy(fleet: RunningFleet) -> bool:
    try:
        return httpx.get(f"{fleet.url}/api/health", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def kill_and_wait(pid: int) -> None:
    with held(pid) as fd:
        assert fd is not None
        os.kill(pid, signal.SIGKILL)
        assert not wait_ended([fd], 30)


def addresses_listened(pids: list[int]) -> set[tuple[str, str]]:
    """(program, address) of every TCP listener of these processes, read from the kernel's tables."""
    inodes: dict[str, str] = {}
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(fd)
            if target.startswith("socket:["):
                inodes[target[8:-1]] = Path(command_of(pid).split(" ", 1)[0]).name
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {(inodes[row[9]], row[1].split(":")[0]) for row in rows if row[3] == "0A" and row[9] in inodes}


def test_second_up_finds_the_first(fleet: RunningFleet) -> None:
    again = fleet.command("up")
    assert again.returncode == 0, again.stderr
    assert "already running" in again.stdout


def test_home_is_private(fleet: RunningFleet) -> None:
    assert stat.S_IMODE(fleet.home.stat().st_mode) == 0o700
    for name in ("fleet.json", "ray-token", "ray.json", "proxy-secret"):
        assert stat.S_IMODE((fleet.home / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(home_of(fleet).run_dir.stat().st_mode) == 0o700


def test_the_proxy_listens_on_loopback_only(fleet: RunningFleet) -> None:
    proxies = [pid for pid in supervised(home_of(fleet)) if "/haproxy" in command_of(pid).split(" ", 1)[0]]
    assert proxies, "the API is not behind HAProxy"
    assert addresses_listened(proxies) == {("haproxy", "0100007F")}


def test_ray_demands_the_token(fleet: RunningFleet) -> None:
    head = read_head(home_of(fleet))
    assert head is not None
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert head.environment["RAY_AUTH_MODE"] == "token"
    assert len(token) == 64


def test_errors_of_the_api_are_one_clear_line(fleet: RunningFleet) -> None:
    done = fleet.command("start", "x", "--region", "atlantis")
    assert done.returncode == 1
    assert "atlantis" in done.stderr
    assert "Traceback" not in done.stderr


class TestCrashes:
    """In this order: each leaves a fleet that the next one hurts."""

    def test_killed_proxy_manager_comes_back_with_its_proxy(self, fleet: RunningFleet) -> None:
        managers = [pid for pid in supervised(home_of(fleet)) if "HAProxyManager" in command_of(pid)]
        assert len(managers) == 1
        kill_and_wait(managers[0])
        eventually(lambda: healthy(fleet), 120, "the API answers again")

    def test_killed_head_is_replaced(self, fleet: RunningFleet) -> None:
        before = read_head(home_of(fleet))
        assert before is not None
        kill_and_wait(before.raylet.pid)

        def replaced() -> bool:
            head = read_head(home_of(fleet))
            return head is not None and head.alive and head.gcs != before.gcs and healthy(fleet)

        eventually(replaced, 240, "another head serves the API")

    def test_up_adopts_the_head_of_a_killed_supervisor(self, fleet: RunningFleet) -> None:
        home = home_of(fleet)
        before, supervisor = read_head(home), lock_holder(home)
        assert supervisor is not None
        kill_and_wait(supervisor)
        assert healthy(fleet), "the API must go on without its supervisor"
        done = fleet.command("up")
        assert done.returncode == 0, done.stderr
        assert read_head(home) == before
        assert lock_holder(home) not in (None, supervisor)


@pytest.fixture
def other_fleet(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A fleet without an engine that others may reach, beside the session's."""
    env = fleet_environment(tmp_path) | {"FLEET_RUNTIME": "process", "FLEET_HOST": "0.0.0.0"}
    yield env
    assert run_fleet(env, "down").returncode == 0


def test_down_leaves_nothing_and_up_remembers(
    other_fleet: dict[str, str], fleet: RunningFleet, request: pytest.FixtureRequest
) -> None:
    first = started_fleet(other_fleet)
    home = home_of(first)
    only_the_proxy_listens(home, int(other_fleet["FLEET_PORT"]), everywhere=True)
    studio = Studio(first.url, first.server_key)
    request.addfinalizer(studio.http.close)
    assert studio.push(games.demo_zip(), "kept")["status"] == "ready"
    orphan = studio.start("kept", port_configs=GAME_PORT)
    assert ask(orphan, "join alice") == "welcome alice alice"

    # Down after the worst: neither the supervisor nor any manager can help.
    supervisor, head = lock_holder(home), read_head(home)
    assert supervisor is not None
    assert head is not None
    kill_and_wait(supervisor)
    kill_and_wait(head.raylet.pid)
    assert "alice" in ask(orphan, "state"), "the game must not notice"
    down = run_fleet(other_fleet, "down")
    assert down.returncode == 0, down.stderr
    with pytest.raises(TimeoutError):
        games.udp_ask("127.0.0.1", orphan["network_ports"][0]["external_port"], b"state", timeout=1, tries=2)
    assert supervised(home) == []
    assert not home.run_dir.exists()
    assert healthy(fleet), "another fleet on the machine was hurt"
    again = run_fleet(other_fleet, "down")
    assert again.returncode == 0
    assert "not running" in again.stdout

    secure = free_ports(1)[0]
    second = started_fleet(other_fleet | {"FLEET_TLS__API_PORT": str(secure)})
    only_the_proxy_listens(home, secure, everywhere=True)
    speaks_tls(second, secure)
    kept = ("server_key", "client_key", "project_id")
    assert [getattr(second, name) for name in kept] == [getattr(first, name) for name in kept]
    assert studio.server(orphan, "stopped")["status"] == "stopped"
    server = studio.start("kept", port_configs=GAME_PORT)
    down = run_fleet(other_fleet, "down")
    assert down.returncode == 0, down.stderr
    assert stop_reasons(second.home)[server["instance_id"]] == ("stopped", "fleet_down")
    assert stop_reasons(second.home)[orphan["instance_id"]][0] == "stopped"


def speaks_tls(fleet: RunningFleet, port: int) -> None:
    """Asserts that a build and a stream go by TLS from end to end, and that browsers are told to stay there."""
    trust = ssl.create_default_context(cafile=str(ca_file(fleet.home)))
    keys = {"api-key": fleet.server_key}
    with httpx.Client(
        base_url=f"https://127.0.0.1:{port}", verify=trust, headers=keys, timeout=60, trust_env=False
    ) as client:
        listed = client.get("/api/v3/servers")
        assert listed.status_code == 200
        assert listed.headers["strict-transport-security"].startswith("max-age=")
        link = client.post("/api/v3/builds/upload-url", params={"name": "by-tls", "executable_path": games.EXECUTABLE})
        assert link.json()["upload_url"].startswith(f"https://127.0.0.1:{port}/upload/")
        assert client.put(link.json()["upload_url"], content=games.demo_zip()).status_code == 200
        waiting = {"wait_for": "ready", "timeout": 60}
        build = client.get(f"/api/v3/builds/{link.json()['build_id']}", params=waiting)
        assert build.json()["status"] == "ready"
        with client.stream("GET", "/api/v3/events") as stream:
            assert stream.status_code == 200
            assert next(stream.iter_bytes())
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://127.0.0.1:{port}/api/health", trust_env=False)
    assert "strict-transport-security" not in httpx.get(f"{fleet.url}/api/health", trust_env=False).headers
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that it is old is the point
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", port)) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain, server_hostname="127.0.0.1").close()


def stop_reasons(home: Path) -> dict[str, tuple[str, str]]:
    """What the database of a fleet that is down says of its servers: (step, reason) by id."""
    with closing(sqlite3.connect(home / "fleet.db")) as database:
        return {row[0]: row[1:] for row in database.execute("SELECT instance_id, step, stop_reason FROM server")}


def test_a_taken_port_is_named(tmp_path: Path, fleet: RunningFleet) -> None:
    env = fleet_environment(tmp_path) | {"FLEET_PORT": fleet.env["FLEET_PORT"]}
    done = run_fleet(env, "up")
    assert done.returncode == 1
    assert f"Port {fleet.env['FLEET_PORT']} is taken" in done.stderr
    assert healthy(fleet)
    assert run_fleet(env, "down").returncode == 0
