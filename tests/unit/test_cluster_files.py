"""The cluster files: valid for Ray, in agreement with the node config, and calling commands that exist."""

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from fleet.catalog import load_catalog
from fleet.cli import app
from fleet.ops import node
from fleet.ops.head import head_environment, ray_environment
from fleet.ops.home import open_home
from fleet.region.nodes_config import load_nodes_config
from fleet.region.placement import Demand
from fleet.settings import FleetSettings

ROOT = Path(__file__).parent.parent.parent
FILES = [ROOT / "cluster.yaml", *sorted((ROOT / "configs").glob("cluster-*.yaml"))]
FILES.remove(ROOT / "configs" / "cluster-nodes.yaml")


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    return yaml.safe_load(request.param.read_text())


def test_ray_takes_the_file(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_every_fleet_command_in_it_exists(cluster: dict[str, Any]) -> None:
    """Names and options; `sg docker -c "…"` is looked into."""
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    called = [found for command in commands for found in re.findall(r'(?:^|[ "/])(fleet (?:up|node) ?[^";]*)', command)]
    assert len(called) == 2
    for command in called:
        parts = shlex.split(re.sub(r"\$\([^)]*\)", "x", command))[1:]
        found: Any = typer.main.get_command(app)
        while hasattr(found, "commands"):
            found = found.commands[parts.pop(0)]
        options = {name for parameter in found.params for name in parameter.opts}
        assert {part.partition("=")[0] for part in parts} <= options


def test_games_run_on_nodes_of_their_own_which_cost_nothing_when_idle(cluster: dict[str, Any]) -> None:
    types = cluster.get("available_node_types")
    if types is None:  # machines of one's own, which neither Ray starts nor anyone saves
        assert cluster["provider"]["type"] == "local"
        return
    nodes = load_nodes_config(ROOT / "configs" / "cluster-nodes.yaml")
    assert not nodes.on_head
    assert types["head"]["resources"] == {"CPU": 0}
    offered: dict[str, int] = {}
    for name, found in types.items():
        assert name == "head" or found["min_workers"] == 0
        assert name == "head" or found["labels"]["region"] in nodes.enabled
        offered |= {resource: found["max_workers"] for resource in found["resources"] if resource != "CPU"}
    classes = [found for region in nodes.enabled for found in nodes.node_classes(region)]
    assert len(classes) > 1
    assert all(offered[found.resource] >= found.max_nodes for found in classes)
    assert sum(offered.values()) <= cluster["max_workers"]


def test_a_cloud_has_a_class_of_nodes_for_every_size() -> None:
    nodes = load_nodes_config(ROOT / "configs" / "cluster-nodes.yaml")
    for size in load_catalog().sizes.values():
        demand = Demand(
            size.name, size.memory_mb, size.cpus if size.dedicated else 0.0, 0.0 if size.dedicated else size.cpus, 1
        )
        able = [found.name for found in nodes.node_classes("us-east") if found.room("n").fits(demand)]
        assert able == ["dedicated" if size.dedicated else "shared"], size.name


def test_the_heads_environment_names_settings_that_exist() -> None:
    text = (ROOT / "configs" / "head.env.example").read_text()
    names = re.findall(r"^#?FLEET_([A-Z_]+)=", text, re.MULTILINE)
    assert len(names) > 5
    assert {name.lower() for name in names} <= set(FleetSettings.model_fields)


def test_every_way_a_node_starts_has_the_token(cluster: dict[str, Any], tmp_path: Path) -> None:
    """Whoever reaches an open Ray port without one runs code: so nothing starts Ray but the fleet's own commands."""
    commands = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert not [command for command in commands if "ray start" in command]
    home = open_home(tmp_path / "home")
    shared = ray_environment(home, FleetSettings(home=home.path))
    assert shared["RAY_AUTH_MODE"] == "token"
    assert Path(shared["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o077 == 0
    for starts in (head_environment, node._start):
        assert "ray_environment(" in inspect.getsource(starts)
