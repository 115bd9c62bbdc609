"""What the file says of nodes: one kind, or several that differ in what they say themselves."""

from math import inf
from pathlib import Path

import pytest

from fleet.errors import BadRequest
from fleet.region.nodes_config import load_nodes_config

CLASSES = """
regions: [us-east, eu-west]
node: {memory_mb: 30000, cores: 8, max_nodes: 20}
classes:
  shared: {takes: shared, cost_per_hour: 0.2}
  dedicated: {takes: dedicated, memory_mb: 60000, cores: 16, max_nodes: 5, min_nodes: 1, lead_time_s: 180}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "nodes.yaml"
    path.write_text(text)
    return path


def test_without_classes_there_is_one_kind_that_takes_every_size(tmp_path: Path) -> None:
    config = load_nodes_config(written(tmp_path, "node: {max_nodes: 1}"))
    (only,) = config.node_classes("us-east")
    assert (only.name, only.resource, only.takes, only.overcommit) == ("shared", "node:us-east", "all", inf)
    assert only.min_nodes == 1, "a machine that is there anyway keeps its agent"
    assert config.resources()["node:us-east"] == 1


def test_a_class_inherits_what_it_does_not_say(tmp_path: Path) -> None:
    config = load_nodes_config(written(tmp_path, CLASSES))
    shared, dedicated = config.node_classes("us-east")
    assert (shared.memory_mb, shared.cores, shared.max_nodes, shared.min_nodes) == (30000, 8, 20, 0)
    assert (dedicated.memory_mb, dedicated.cores, dedicated.max_nodes, dedicated.min_nodes) == (60000, 16, 5, 1)
    assert (shared.resource, dedicated.resource) == ("node:us-east", "node:us-east:dedicated")
    assert shared.overcommit == 4.0
    assert dedicated.lead_time_s == 180
    assert config.node("eu-west", "dedicated").takes == "dedicated"


@pytest.mark.parametrize(
    "text",
    [
        "node: {min_nodes: 3, max_nodes: 2}",
        "classes: {Big: {}}",
        "classes: {a: {takes: some}}",
        "classes: {a: {resource: 'node:x'}, b: {resource: 'node:x'}}",
        "classes: {a: {ports: {first: 32000, per_region: 900}}}",
        "classes: {a: 3}",
        "classes: [a]",
        "node: 7",
    ],
)
def test_what_is_wrong_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadRequest):
        load_nodes_config(written(tmp_path, text))
