"""Ray's own autoscaler adds nodes of the right region for demand and removes them when drained; players notice nothing.

The machines are Ray's fake nodes, each a raylet of its own; manager, agents, games and autoscaler are the real ones.
"""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from fleet.ops.head import child_environment, head_environment, tail
from fleet.ops.home import Home, free_ports, make_run_dir, open_home
from fleet.ops.processes import end_supervised
from fleet.settings import FleetSettings
from tests.conftest import ROOT
from tests.fake_nodes import NODE_ADDRESS

pytestmark = pytest.mark.slow

NODES = """
regions: [us-east, eu-west]
on_head: false
node:
  memory_mb: 1100     # two servers of 512 MB
  max_nodes: 4
  min_nodes: 0
  ports: {{first: {first}, per_region: 200}}
"""


def node_type(region: str) -> dict[str, Any]:
    resources = {"CPU": 1, f"node:{region}": 1, "object_store_memory": 80_000_000}
    return {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": 4}


def cluster(gcs_address: str) -> dict[str, Any]:
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "fleet-test",
        "max_workers": 8,
        "idle_timeout_minutes": 0.05,
        "provider": {
            "type": "external",
            "module": "tests.fake_nodes.LoopbackNodes",
            "gcs_address": gcs_address,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "available_node_types": {
            "ray.head.default": head,
            "us-east": node_type("us-east"),
            "eu-west": node_type("eu-west"),
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 10.0,
        "auth": {},
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "rsync_exclude": [],
        "rsync_filter": [],
    }


@dataclass(frozen=True)
class Cluster:
    home: Home
    address: str
    environment: dict[str, str]


@pytest.fixture(params=["0", "1"], ids=["v1", "v2"])
def scaling_cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A Ray head that offers no node itself, with the autoscaler beside it; all of it ends with the test."""
    home = open_home(tmp_path / "home")
    nodes, config = tmp_path / "nodes.yaml", tmp_path / "cluster.yaml"
    nodes.write_text(NODES.format(first=random.randrange(20000, 29000, 100)))
    make_run_dir(home)
    settings = FleetSettings(home=home.path, node_config=nodes)
    environment = child_environment(
        head_environment(home, settings)
        | {
            "FLEET_RUNTIME": "process",
            # What runs decides here; the forecast would keep room for whoever may come next.
            "FLEET_SCALING__AHEAD": "false",
            "FLEET_SCALING__SURPLUS_S": "6",
            "FLEET_SCALING__UNNEEDED_S": "6",
            "FLEET_SERVERS__NODE_LOST_S": "12",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": request.param,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
            "PYTHONPATH": str(ROOT),
        }
    )
    gcs_port, client_port, agent_port = free_ports(3)
    config.write_text(json.dumps(cluster(f"{NODE_ADDRESS}:{gcs_port}")))
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head",
        f"--node-ip-address={NODE_ADDRESS}", f"--port={gcs_port}", f"--ray-client-server-port={client_port}",
        f"--dashboard-agent-listen-port={agent_port}", "--include-dashboard=false", "--disable-usage-stats",
        "--num-cpus=0", "--object-store-memory=100000000", f"--temp-dir={home.run_dir / 'ray'}",
        f"--autoscaling-config={config}",
    ]  # fmt: skip
    try:
        log = home.logs / "ray-start.log"
        with log.open("wb") as file:
            done = subprocess.run(
                command, env=environment, cwd=home.work_dir, stdout=file, stderr=file, timeout=120, check=False
            )
        assert done.returncode == 0, tail(log, 30)
        yield Cluster(home, f"{NODE_ADDRESS}:{gcs_port}", environment)
    finally:
        end_supervised(home, grace_s=3.0)


def logs_of(cluster: Cluster) -> str:
    found = [*cluster.home.logs.glob("*.log"), *(cluster.home.run_dir / "ray").glob("session_latest/logs/monitor.*")]
    return "\n".join(f"--- {path.name}\n{tail(path, 25)}" for path in found)


@pytest.mark.timeout(400)
def test_nodes_of_the_region_come_and_go_and_players_notice_nothing(scaling_cluster: Cluster) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.autoscaling", str(scaling_cluster.home.path), scaling_cluster.address],
        env=scaling_cluster.environment | {"FLEET_HOME": str(scaling_cluster.home.path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr[-3000:]}\n{logs_of(scaling_cluster)}"
    # The autoscaler of v2 says things on the driver's output too.
    seen = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    print(seen)
    assert seen["nodes_after_growth"] == {"us-east": 2}
    assert seen["asked_s"] <= 2.0  # a tenth of a second where nothing else runs
    assert seen["survived"], "a running server was touched by the scale-down"
    assert seen["nodes_after_drain"] == {"us-east": 2}
    assert seen["went_on"], "a game ended with the Ray of its machine"
    assert seen["other_region"] == 0
