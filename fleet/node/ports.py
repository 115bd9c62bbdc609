"""Host ports of one node: a number from the node's range for each declared port, never one number to two holders.

A number is given whole (UDP and TCP), and the range is walked in a circle, so that a number just given back rests
before a stranger's packets could meet a new game on it.
"""

import socket
import time
from collections.abc import Callable, Collection

import structlog

from fleet.errors import Unavailable

log = structlog.get_logger(__name__)

EXCLUDED_S = 60.0


def is_free(host: str, port: int) -> bool:
    """True if nothing on this machine has `port` on `host`, neither UDP nor TCP. Takes it for an instant."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(family, kind) as probe:
            if kind == socket.SOCK_STREAM:  # connections that linger after a close do not hold the port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


class PortAllocator:
    """Gives ports of [first, last) on `host`. `reserved` are never given.

    Holders are names (one per run); a holder may have many ports. Not for use by several threads.
    """

    def __init__(
        self,
        first: int,
        last: int,
        host: str,
        *,
        reserved: Collection[int] = (),
        free: Callable[[str, int], bool] = is_free,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < first < last <= 65536:
            raise ValueError(f"[{first}, {last}) is not a range of ports")
        self._first, self._last, self._host = first, last, host
        self._reserved = frozenset(reserved)
        self._free, self._clock = free, clock
        self._holders: dict[int, str] = {}
        self._held: dict[str, list[int]] = {}
        self._excluded: dict[int, float] = {}
        self._next = first

    def take(self, holder: str) -> int:
        """A port that nobody holds. Unavailable if there is none."""
        for _ in range(self._last - self._first):
            port = self._next
            self._next = self._first if port + 1 == self._last else port + 1
            if self._available(port):
                self._give(port, holder)
                return port
        raise Unavailable(
            f"All ports {self._first} to {self._last - 1} of the node are in use. Widen the node's port range.",
            error="No free port",
        )

    def adopt(self, port: int, holder: str) -> None:
        """Note that `holder` already has `port` (it may lie outside the range). The first holder keeps it."""
        owner = self._holders.get(port)
        if owner is None:
            self._give(port, holder)
        elif owner != holder:
            log.error("port_held_twice", port=port, holder=owner, refused=holder)
            return
        if self._first <= port < self._last:
            self._next = self._first if port + 1 == self._last else port + 1

    def release(self, holder: str) -> None:
        """Give back all ports of `holder`; nothing happens if it has none."""
        for port in self._held.pop(holder, ()):
            del self._holders[port]

    def exclude(self, port: int, seconds: float = EXCLUDED_S) -> None:
        """Something else took `port`: do not give it for a while. Its holder, if any, keeps it until release."""
        self._excluded[port] = self._clock() + seconds

    def held_by(self, holder: str) -> list[int]:
        return list(self._held.get(holder, ()))

    def _give(self, port: int, holder: str) -> None:
        self._holders[port] = holder
        self._held.setdefault(holder, []).append(port)

    def _available(self, port: int) -> bool:
        if port in self._holders or port in self._reserved:
            return False
        until = self._excluded.get(port)
        if until is not None:
            if self._clock() < until:
                return False
            del self._excluded[port]
        return self._free(self._host, port)
