"""Reading the kernel's socket tables: what counts as an open port."""

import socket
from pathlib import Path

import pytest

from fleet.node.health import open_ports, readiness_of
from fleet.node.runtime import Port, Proto

HEAD = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(local: str, remote: str = "00000000:0000", state: str = "07", inode: int = 1) -> bytes:
    return f"   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000 1000 0 {inode} 2 0 0\n".encode()


@pytest.mark.parametrize(
    ("proto", "line", "reachable", "loopback"),
    [
        ("udp", row("00000000:1E61"), {7777}, set()),
        ("udp", row("0100007F:1E61"), set(), {7777}),
        ("udp", row("0200007F:1E61"), set(), {7777}),
        ("udp", row("00000000:1E61", remote="0100007F:0035", state="01"), set(), set()),
        ("udp", row("00000000000000000000000000000000:1E61"), {7777}, set()),
        ("udp", row("00000000000000000000000001000000:1E61"), set(), {7777}),
        ("tcp", row("00000000:1F90", state="0A"), {8080}, set()),
        ("tcp", row("00000000:1F90", state="01"), set(), set()),
        ("tcp", row("0000000000000000FFFF00000100007F:1F90", state="0A"), set(), {8080}),
        ("udp", row("00000000:1E61") + row("0100007F:1E61"), {7777}, set()),
        ("udp", b"", set(), set()),
        ("udp", b"cut off\n", set(), set()),
    ],
)
def test_open_ports(proto: Proto, line: bytes, reachable: set[int], loopback: set[int]) -> None:
    assert open_ports(HEAD + line, proto) == (reachable, loopback)


def test_only_the_given_sockets_count() -> None:
    table = HEAD + row("00000000:1E61", inode=5) + row("00000000:1E62", inode=6)
    assert open_ports(table, "udp", {6}) == ({7778}, set())


def test_a_real_socket_is_seen() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        port = Port("game", bound.getsockname()[1], 1, "udp")
        assert readiness_of(Path("/proc/self/net"), [port]).loopback == (port,)
    assert readiness_of(Path("/proc/self/net"), [port]).missing == (port,)
