"""Netlink and the kernel's files tell the same of open ports."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.node.health import open_ports
from fleet.node.netns import can_enter
from fleet.node.sock_diag import SocketTables


@pytest.fixture
def tables() -> Iterator[SocketTables]:
    if not can_enter():
        pytest.skip("only root may enter network namespaces")
    tables = SocketTables(os.getpid())
    yield tables
    tables.close()


def bound(family: int, kind: int, host: str) -> socket.socket:
    made = socket.socket(family, kind)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind((host, 0))
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_reachable_and_loopback_are_told_apart(tables: SocketTables, kind: int) -> None:
    proto = "tcp" if kind == socket.SOCK_STREAM else "udp"
    places = [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.8.9.10")]
    if Path("/proc/net/tcp6").exists():
        places += [(socket.AF_INET6, "::"), (socket.AF_INET6, "::1")]
    opened = [(host, bound(family, kind, host)) for family, host in places]
    try:
        reachable, loopback = tables.open_ports(proto)  # type: ignore[arg-type]
        for host, sock in opened:
            port = sock.getsockname()[1]
            assert port in (reachable if host in ("0.0.0.0", "::") else loopback), host
        files = [open_ports(path.read_bytes(), proto) for path in Path("/proc/net").glob(f"{proto}*")]  # type: ignore[arg-type]
        ours = {sock.getsockname()[1] for _, sock in opened}
        assert set[int]().union(*(seen for seen, _ in files)) & ours == reachable & ours
    finally:
        for _, sock in opened:
            sock.close()
    reachable, loopback = tables.open_ports(proto)  # type: ignore[arg-type]
    assert not (reachable | loopback) & ours, "closed is gone"


def test_a_connected_socket_is_not_open(tables: SocketTables) -> None:
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with bound(socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1") as peer, client:
        client.connect(peer.getsockname())
        _, loopback = tables.open_ports("udp")
        assert peer.getsockname()[1] in loopback
        assert client.getsockname()[1] not in loopback
