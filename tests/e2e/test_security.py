"""What a running fleet shows to its machine: who listens where, Ray's token, and the walls around games."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from fleet.admin import Fleet
from fleet.node.firewall import Walls, missing, resolvers_of
from fleet.ops.head import read_head
from fleet.ops.home import Home, find_home
from fleet.proxy_secret import read_secret
from tests import games
from tests.conftest import RunningFleet
from tests.player import Studio, stopped_after
from tests.python_games import python_game
from tests.sockets import listeners, only_the_proxy_listens

pytestmark = [pytest.mark.fleet]


def home_of(fleet: RunningFleet) -> Home:
    home = find_home(fleet.home)
    assert home is not None
    return home


def test_nothing_listens_beyond_the_loopback(fleet: RunningFleet) -> None:
    only_the_proxy_listens(home_of(fleet), int(fleet.env["FLEET_PORT"]), everywhere=False)


def test_a_replica_believes_nobody_but_the_proxy(fleet: RunningFleet) -> None:
    home = home_of(fleet)
    replicas = [one.port for one in listeners(home) if "ServeReplica" in one.command and one.address == "127.0.0.1"]
    assert replicas
    claims = {"x-fleet-client": "9.9.9.9", "api-key": "pf_guess"}
    for port in replicas:
        straight = httpx.get(f"http://127.0.0.1:{port}/api/v3/servers", headers=claims, trust_env=False)
        assert straight.status_code == 403
        assert straight.json()["error"] == "Forbidden"
    through = httpx.get(f"{fleet.url}/api/v3/servers", headers=claims, trust_env=False)
    assert through.status_code == 401, "the proxy takes a client's claims away"
    assert read_secret(home.path) not in through.text


JOIN = """
import os, sys, logging
import ray
from ray._private import ray_constants
ray_constants.ENABLE_RAY_CLUSTER = False  # 127.0.0.1 is itself, not the network card's address
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
except BaseException as refusal:
    print("refused:", type(refusal).__name__, refusal)
else:
    print("let in")
"""


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_ray_lets_nobody_in_without_the_fleets_token(fleet: RunningFleet, tmp_path: Path, token: str | None) -> None:
    home = find_home(fleet.home)
    head = read_head(home) if home else None
    assert head is not None
    assert head.address.startswith("127.0.0.1:"), "Ray is for this machine alone"
    assert head.environment["RAY_AUTH_MODE"] == "token"
    token_file = Path(head.environment["RAY_AUTH_TOKEN_PATH"])
    assert token_file.stat().st_mode & 0o077 == 0
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "FLEET_"))}
    if token is not None:
        (tmp_path / "token").write_text(token)
        own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    command = [sys.executable, "-c", JOIN, head.address]
    # Ray may go on trying for a while: being kept out until this process is ended is a refusal too.
    environment = own | {"HOME": str(tmp_path)}
    knocks = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        knocks.wait(60)
    except subprocess.TimeoutExpired:
        knocks.kill()
    said = knocks.communicate()[0]
    assert "let in" not in said
    assert "refused" in said or knocks.returncode != 0, said


@pytest.mark.docker
def test_the_walls_stand_while_games_run_and_operators_hear_if_not(fleet: RunningFleet, studio: Studio) -> None:
    if os.geteuid() != 0:
        pytest.skip("rules of the packet filter are read by root")
    assert studio.push(games.demo_zip(), "walled-demo")["status"] == "ready"
    server = studio.start("walled-demo", region="us-west")
    with stopped_after(studio, server):
        with Fleet(fleet.home) as admin:
            (node,) = admin.nodes("us-west")
        if node.runtime != "docker":
            pytest.skip("plain processes have no walls, and say so")
        assert node.warnings == []
        table = subprocess.run(["iptables-save", "-t", "filter"], check=True, capture_output=True, text=True).stdout
        found = {bridge for bridge in re.findall(r"-A INPUT -i (\S+) -j FLEET-OK-", table)}
        fleet_id = (fleet.home / "fleet-id").read_text().strip()
        port = int(fleet.env.get("FLEET_PORT", "8000"))
        resolvers = resolvers_of(Path("/etc/resolv.conf").read_text())
        standing = [missing(table, Walls(bridge, fleet_id, (port,), resolvers)) for bridge in found]
        assert [] in standing, standing
        listed = fleet.command("nodes")
        assert "WARNING" not in listed.stdout, listed.stdout


KNOCKS = """
import os, socket, struct, threading

def gateway():
    for line in open("/proc/net/route"):
        fields = line.split()
        if fields[1] == "00000000":
            return [socket.inet_ntoa(struct.pack("<L", int(fields[2], 16)))]
    return []

hosts = gateway() + os.environ["HOSTS"].split()
targets = [(host, int(port)) for host in hosts for port in os.environ["PORTS"].split()]
reached = []

def knock(target):
    try:
        socket.create_connection(target, timeout=3).close()
    except OSError:
        return
    reached.append(target)

threads = [threading.Thread(target=knock, args=(target,)) for target in targets]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(f"knocked at {len(targets)} and reached {reached}", flush=True)
game = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
game.bind(("0.0.0.0", int(os.environ.get("PLAYFLOW_PORT_GAME", "7777"))))
while True:
    game.recv(2048)
"""


@pytest.mark.docker
def test_a_game_reaches_no_port_of_ray(fleet: RunningFleet, studio: Studio) -> None:
    ports = sorted({one.port for one in listeners(home_of(fleet))})
    addresses = subprocess.run(["hostname", "-I"], check=True, capture_output=True, text=True).stdout.split()
    hosts = [address for address in addresses if ":" not in address]
    assert studio.push(games.make_zip(python_game(KNOCKS)), "knocking")["status"] == "ready"
    variables = {"PORTS": " ".join(map(str, ports)), "HOSTS": " ".join(hosts)}
    server = studio.start("knocking", region="us-west", environment_variables=variables)
    with stopped_after(studio, server):
        said = [line for line in studio.log(server) if "knocked at" in line]
    assert len(ports) > 5
    assert said == [f"knocked at {len(ports) * len(hosts) + len(ports)} and reached []"]
