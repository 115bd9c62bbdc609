"""Where Ray listens: on this machine alone, unless the operator says that machines join."""

from pathlib import Path

import pytest

from fleet.ops.head import CLUSTER, head_address, head_environment, is_this_machine
from fleet.ops.home import OpsError, open_home
from fleet.ops.node import join
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
