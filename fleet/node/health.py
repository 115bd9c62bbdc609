"""Readiness from the kernel's socket tables: which declared ports are really open, without sending a packet.

Connecting proves nothing (the engine's proxy accepts before the game listens), and UDP has nothing to connect to.
Tables cost 0.05 ms (udp) to 13 ms (tcp6) to read, so only those of declared protocols are read, IPv4 first; where we
may enter the namespace, `sock_diag.py` asks for less.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from fleet.node.runtime import Port, Proto, Readiness

_LISTEN = b"0A"
_LOOPBACK = {b"0100007F", b"00000000000000000000000001000000", b"0000000000000000FFFF00000100007F"}
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.004, 0.25


def open_ports(table: bytes, proto: Proto, inodes: set[int] | None = None) -> tuple[set[int], set[int]]:
    """(reachable, loopback-only) port numbers of one /proc/net table.

    Only sockets of `inodes` count, if given. TCP sockets count when they listen; UDP ones when bound and
    not connected to a peer.
    """
    reachable: set[int] = set()
    loopback: set[int] = set()
    for line in table.splitlines()[1:]:
        fields = line.split(None, 10)
        if len(fields) < 10 or not _waits(fields, proto):
            continue
        if inodes is not None and int(fields[9]) not in inodes:
            continue
        address, _, port = fields[1].rpartition(b":")
        (loopback if _is_loopback(address) else reachable).add(int(port, 16))
    return reachable, loopback - reachable


def _waits(fields: list[bytes], proto: Proto) -> bool:
    if proto == "tcp":
        return fields[3] == _LISTEN
    return fields[2].endswith(b":0000")


def _is_loopback(address: bytes) -> bool:
    # The kernel prints 32-bit words in host order: 127.x.y.z ends in 7F on little-endian machines.
    return address in _LOOPBACK or (len(address) == 8 and address.endswith(b"7F"))


def readiness_of(net: Path, ports: Iterable[Port], inodes: set[int] | None = None) -> Readiness:
    """Readiness of `ports` (by internal number) from the tables in folder `net` (`/proc/<pid>/net`).

    FileNotFoundError or ProcessLookupError: the process is gone.
    """
    return readiness(ports, lambda proto, wanted: _open(net, proto, wanted, inodes))


def readiness(ports: Iterable[Port], look: Callable[[Proto, set[int]], tuple[set[int], set[int]]]) -> Readiness:
    """Readiness from what `look(protocol, wanted)` says: (reachable, loopback-only) numbers. Asked once a protocol."""
    missing: list[Port] = []
    loopback: list[Port] = []
    declared = list(ports)
    for proto in ("udp", "tcp"):
        wanted = [port for port in declared if port.protocol == proto]
        if not wanted:
            continue
        reachable, local = look(proto, {port.internal for port in wanted})
        loopback += [port for port in wanted if port.internal in local]
        missing += [port for port in wanted if port.internal not in reachable | local]
    return Readiness(tuple(missing), tuple(loopback))


def _open(net: Path, proto: Proto, wanted: set[int], inodes: set[int] | None) -> tuple[set[int], set[int]]:
    reachable, local = open_ports((net / proto).read_bytes(), proto, inodes)
    if wanted <= reachable:
        return reachable, set()
    table6 = net / f"{proto}6"
    if table6.exists():  # absent where IPv6 is off
        reachable6, local6 = open_ports(table6.read_bytes(), proto, inodes)
        reachable, local = reachable | reachable6, local | local6
    return reachable, local - reachable


async def until_ready(probe: Callable[[], Awaitable[Readiness]], deadline_s: float) -> Readiness:
    """Ask `probe` with growing pauses (4 ms to 250 ms) until ready or `deadline_s` has passed; its last answer."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    pause = FIRST_PAUSE_S
    while True:
        state = await probe()
        if state.ready or loop.time() + pause > end:
            return state
        await asyncio.sleep(pause)
        pause = min(pause * 1.25, LONGEST_PAUSE_S)
