"""Where Ray listens: on this machine alone, unless the operator says that machines join."""

import os
from pathlib import Path

import pytest
import ray
from ray._private import ray_constants, services

from fleet.ops.head import CLUSTER, Head, head_address, head_environment, is_this_machine
from fleet.ops.home import OpsError, open_home
from fleet.ops.join import join_head
from fleet.ops.node import join
from fleet.ops.processes import ProcessId
from fleet.settings import FleetSettings


@pytest.mark.parametrize(
    ("address", "joined"), [("127.0.0.1", "0"), ("localhost", "0"), ("127.0.0.10", "1"), ("10.0.0.5", "1")]
)
def test_ray_is_told_whether_machines_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, joined: str
) -> None:
    monkeypatch.setattr("fleet.ops.head.proxy_environment", lambda *_: {})
    settings = FleetSettings(home=tmp_path, head_address=address)
    assert head_environment(open_home(tmp_path), settings)[CLUSTER] == joined


def test_by_default_nobody_joins() -> None:
    assert is_this_machine(head_address(FleetSettings()))


def test_a_node_is_told_that_such_a_head_takes_none(tmp_path: Path) -> None:
    with pytest.raises(OpsError, match="FLEET_HEAD_ADDRESS=auto"):
        join(open_home(tmp_path), FleetSettings(home=tmp_path), "127.0.0.1:6379", ["us-east"], None, print)


@pytest.mark.parametrize(("joined", "there"), [("0", True), ("1", False), (None, False)])
def test_a_tool_finds_the_head_at_127_0_0_1_though_it_imported_ray_before(
    monkeypatch: pytest.MonkeyPatch, joined: str | None, there: bool
) -> None:
    """`None`: a head of before, which did not say."""
    asked: list[str | None] = []
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", ray_constants.ENABLE_RAY_CLUSTER)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(
        ray, "init", lambda address, **_: asked.append(services.canonicalize_bootstrap_address(address))
    )
    process = ProcessId(1, 1)
    head = Head("127.0.0.1:6000", process, process, {} if joined is None else {CLUSTER: joined})
    join_head(head, "fleet")
    assert (asked == ["127.0.0.1:6000"]) is there
