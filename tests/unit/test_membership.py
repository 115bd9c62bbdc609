"""A raylet that lives but belongs to no cluster: the head is asked, and the node joins anew. The head here answers by
Ray's own protocol."""

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from fleet.ops import membership, node
from fleet.ops.home import Home, make_run_dir, open_home
from fleet.ops.membership import is_known
from fleet.ops.processes import MARKER

TOKEN = "0123456789abcdef" * 4


class Head(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    """Tells its nodes to whoever has the token."""

    def __init__(self) -> None:
        self.nodes: list[tuple[str, int]] = []
        self.port = 0

    def GetAllNodeInfo(self, request: Any, context: Any) -> Any:
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        nodes = [gcs_pb2.GcsNodeInfo(raylet_socket_name=name, state=state) for name, state in self.nodes]
        return gcs_service_pb2.GetAllNodeInfoReply(node_info_list=nodes)


@pytest.fixture
def head() -> Iterator[Head]:
    made = Head()
    server = grpc.server(ThreadPoolExecutor(2))
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(made, server)
    made.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield made
    server.stop(None).wait()


def test_a_node_is_known_if_its_raylet_is_alive_to_the_head(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "ANSWER_S", 1.0)
    address, mine = f"127.0.0.1:{head.port}", Path("/tmp/fleet-1/ray")
    assert is_known(address, TOKEN, mine) is False
    head.nodes = [("/tmp/fleet-12/ray/session_1/sockets/raylet", 0)]  # another node's
    assert is_known(address, TOKEN, mine) is False
    head.nodes.append(("/tmp/fleet-1/ray/session_1/sockets/raylet", 1))  # dead, as the head says
    assert is_known(address, TOKEN, mine) is False
    head.nodes.append(("/tmp/fleet-1/ray/session_2/sockets/raylet", 0))
    assert is_known(address, TOKEN, mine) is True
    assert is_known(address, "another", mine) is None
    assert is_known("127.0.0.1:1", TOKEN, mine) is None


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = open_home(tmp_path / "home")
    make_run_dir(made)
    yield made
    made.run_dir.joinpath("raylet").unlink(missing_ok=True)


def test_a_full_disk_does_not_end_a_node(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "BACKOFF_FIRST_S", 0.01)
    stop, tries = threading.Event(), list[int]()

    def rejoin() -> None:
        tries.append(len(tries))
        if len(tries) < 3:
            raise OSError(28, "No space left on device")
        stop.set()

    node.keep_joined(rejoin, lambda: True, home, stop)
    assert len(tries) == 3


def test_a_node_that_the_head_does_not_know_joins_anew(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its raylet lives all the time. A head that cannot be asked, or says no only once, changes nothing."""
    monkeypatch.setattr(node, "ASK_EVERY_S", 0.0)
    program = home.run_dir / "raylet"
    program.symlink_to("/bin/sleep")
    raylet = subprocess.Popen([program, "60"], env=os.environ | {MARKER: str(home.path)})
    answers: list[bool | None] = [True, False, False, None, False, True, None, False, False, False]
    asked, joins = iter(answers), list[float]()
    stop = threading.Event()

    def rejoin() -> None:
        joins.append(0.0)
        if len(joins) == 2:
            stop.set()

    try:
        monkeypatch.setattr(node, "wait_ended", lambda fds, _seconds: fds)
        monkeypatch.setattr(node, "BACKOFF_FIRST_S", 0.01)
        node.keep_joined(rejoin, lambda: next(asked), home, stop)
        assert raylet.poll() is None
    finally:
        raylet.kill()
        raylet.wait()
    assert list(asked) == []
    assert len(joins) == 2
