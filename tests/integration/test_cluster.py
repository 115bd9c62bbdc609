"""A fleet of several nodes, made by `ray up` over SSH from configs/cluster-onprem.yaml: PostgreSQL, S3, no shared disk.

The machines are loopback addresses of this one. Each has its own home, and players are told its own address.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from fleet.ops.home import Home, find_home, free_ports
from fleet.ops.processes import command_of, supervised
from tests import games, ssh
from tests.conftest import ROOT, STARTED, run_fleet
from tests.player import Studio, ask
from tests.postgres import PostgresServer
from tests.s3 import LOGIN, S3Server
from tests.sockets import listeners, nothing_is_given

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
HEAD, NODES = "127.0.0.10", {"us-east": "127.0.0.11", "eu-west": "127.0.0.12"}
GAME_PORT = [{"name": "game", "internal_port": 7777, "protocol": "udp"}]
CLUSTER = "fleet-test"


@dataclass(frozen=True)
class Cluster:
    """`homes` of the nodes by region; `env` is what the head's `fleet` commands need."""

    studio: Studio
    home: Home
    homes: dict[str, Path]
    env: dict[str, str]
    folder: Path


def write_env(path: Path, values: dict[str, str]) -> None:
    path.write_text("".join(f"{name}='{value}'\n" for name, value in values.items()))


def cluster_file(folder: Path, server: ssh.SshServer, port: int) -> Path:
    """The example as it is, with this machine's addresses and paths in it; set-up is done already."""
    config = yaml.safe_load((ROOT / "configs" / "cluster-onprem.yaml").read_text())
    paths = {
        "~/fleet/.venv/bin/fleet": f"cd {ROOT} && {sys.executable} -m fleet.cli",
        "~/fleet/head.env": f"{folder}/head.env",
        "/etc/fleet/node.env": f"{folder}/node-$(echo $SSH_CONNECTION | cut -d' ' -f3).env",
        "~/.ray/auth_token": f"{folder}/token",
        ":6379": f":{port}",
    }
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        for old, new in paths.items():
            config[name] = [command.replace(old, new) for command in config[name]]
    config |= {
        "cluster_name": CLUSTER,
        "provider": {"type": "local", "head_ip": HEAD, "worker_ips": list(NODES.values())},
        "auth": {"ssh_user": "root", "ssh_private_key": str(server.key)},
        "file_mounts": {},
        "setup_commands": [],
    }
    (folder / "cluster.yaml").write_text(yaml.safe_dump(config, width=1000))
    return folder / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer, s3: S3Server, request: pytest.FixtureRequest
) -> Iterator[Cluster]:
    if problem := ssh.missing():
        pytest.skip(problem)
    folder = tmp_path_factory.mktemp("cluster")
    database, head_port, api_port = postgres.new_database(), *free_ports(2)
    server = ssh.SshServer(folder, [HEAD, *NODES.values()])
    (folder / "token").write_text("0123456789abcdef" * 4)
    (folder / "token").chmod(0o600)
    nodes = {"regions": list(NODES), "on_head": False, "node": {"ports": {"first": random.randrange(20000, 29000, 100),
             "per_region": 200}}}  # fmt: skip
    (folder / "nodes.yaml").write_text(yaml.safe_dump(nodes))
    own = {key: value for key, value in os.environ.items() if not key.startswith(("FLEET_", "RAY_", "AWS_"))}
    passed = {key: os.environ[key] for key in ("FLEET_RUNTIME", "FLEET_BASE_IMAGE") if key in os.environ}
    head = passed | LOGIN | {
        "PATH": f"{server.programs}:{own['PATH']}",
        "FLEET_HOME": f"{folder}/head",
        "FLEET_PORT": str(api_port),
        "FLEET_HEAD_ADDRESS": HEAD,
        "FLEET_HEAD_PORT": str(head_port),
        "FLEET_AUTOSCALING_CONFIG": f"{server.home}/ray_bootstrap_config.yaml",
        "FLEET_RAY_TOKEN": f"{folder}/token",
        "FLEET_NODE_CONFIG": f"{folder}/nodes.yaml",
        "FLEET_DATABASE_URL": postgres.url(database),
        "FLEET_ARTEFACTS_URL": s3.url("cluster"),
    }  # fmt: skip
    write_env(folder / "head.env", head)
    homes = {region: folder / region for region in NODES}
    for region, address in NODES.items():
        mine = {"FLEET_NODE_REGIONS": region, "FLEET_PUBLIC_HOST": address, "FLEET_BIND_HOST": address}
        write_env(folder / f"node-{address}.env", passed | LOGIN | mine | {"FLEET_HOME": str(homes[region])})
    request.config.stash.setdefault(STARTED, []).extend([folder / "head", *homes.values()])
    file = cluster_file(folder, server, head_port)
    client = own | {"HOME": str(server.home), "PATH": f"{server.programs}:{own['PATH']}"}
    try:
        command = [str(Path(sys.executable).parent / "ray"), "up", "-y", "--no-config-cache", str(file)]
        up = subprocess.run(command, env=client, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert up.returncode == 0, up.stdout + up.stderr
        access = json.loads((folder / "head" / "fleet.json").read_text())
        home = find_home(folder / "head")
        assert home is not None
        studio = Studio(access["url"], access["server_key"])
        yield Cluster(studio, home, homes, own | head, folder)
        studio.http.close()
    finally:
        # Not `ray down`: it ends every Ray process of the machine, whoever started it.
        down = [run_fleet(own | head, "down")]
        for region, path in homes.items():
            down.append(run_fleet(own | {"FLEET_HOME": str(path), "FLEET_NODE_REGIONS": region}, "node", "leave"))
        server.stop()
        postgres.drop(database)
        for left in Path("/tmp/ray").glob(f"cluster-{CLUSTER}.*"):
            left.unlink()
    assert all(done.returncode in (0, 1) for done in down), down
    assert down[0].returncode == 0, down[0].stdout + down[0].stderr


@pytest.fixture(scope="module")
def build(cluster: Cluster) -> dict[str, str]:
    built = cluster.studio.push(games.demo_zip(), "demo")
    assert built["status"] == "ready", built
    return built


@pytest.mark.parametrize("region", list(NODES))
def test_a_game_runs_on_the_node_of_its_region(
    cluster: Cluster, build: dict[str, str], s3: S3Server, region: str
) -> None:
    """The node fetches the build from the bucket; players are told the node's own address, and play."""
    server = cluster.studio.start("demo", region=region, port_configs=GAME_PORT)
    port = server["network_ports"][0]
    assert port["host"] == NODES[region]
    assert ask(server, "join alice").startswith("welcome")
    archives = s3.keys("cluster")
    content_hash = Path(archives[0]).stem
    assert len(archives) == 1
    assert (cluster.homes[region] / "bundles" / content_hash).is_dir()
    assert (cluster.homes[region] / "cluster-id").read_text() == cluster.home.fleet_id
    assert not (cluster.home.path / "artefacts" / "archives").exists()
    cluster.studio.stop(server)
    assert cluster.studio.server(server, "stopped")["status"] == "stopped"


def test_where_machines_join_ray_gives_nothing_without_the_token(cluster: Cluster) -> None:
    homes = [cluster.home, *(home for path in cluster.homes.values() if (home := find_home(path)))]
    found = [one for home in homes for one in listeners(home) if not one.is_proxy]
    assert any(not one.private for one in found), "machines reach it"
    assert all(one.private for one in found if 31_700 <= one.port <= 32_700), "the API's replicas"
    nothing_is_given(found)


def test_games_and_commands_outlive_the_manager(cluster: Cluster, build: dict[str, str]) -> None:
    """kill -9 of every manager: the next reads PostgreSQL and its node, finds the game, and is obeyed."""
    server = cluster.studio.start("demo", region="us-east", port_configs=GAME_PORT)
    assert ask(server, "join alice").startswith("welcome")
    killed = [pid for pid in supervised(cluster.home) if "RegionManager" in command_of(pid)]
    assert killed
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    found = cluster.studio.call("POST", f"/servers/{server['instance_id']}/update", json={"custom_data": {"map": "b"}})
    assert (found["status"], found["network_ports"]) == ("running", server["network_ports"])
    assert "alice" in ask(server, "state")
    cluster.studio.stop(server)
    assert cluster.studio.last_stop(server)["reason"] == "requested"
    assert [event["type"] for event in cluster.studio.events(server)].count("running") == 1
