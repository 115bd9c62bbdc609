"""All host ports of one node: ordinary ones, and pairs for games whose TLS the node ends.

A pair is (the port that players come to, the port on the loopback where the game is published). The second is the
first plus a constant, so the proxy between them (`tls_proxy.py`) needs to be told nothing, ever.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from fleet.errors import Unavailable
from fleet.node.docker_spec import LOOPBACK
from fleet.node.model import NodeShare
from fleet.node.ports import PortAllocator, is_free
from fleet.node.runtime import Port


def tls_range(share: NodeShare) -> range:
    """The ports that players of TLS games come to. Their partners follow: add `len` of it."""
    first = share.port_last - 2 * share.tls_ports
    return range(first, first + share.tls_ports)


class NodePorts:
    """`serves`: whether the proxy can have that port of the TLS range. Holders are names, as of `PortAllocator`."""

    def __init__(
        self,
        share: NodeShare,
        free: Callable[[str, int], bool] = is_free,
        serves: Callable[[int], bool] = lambda _port: True,
    ) -> None:
        tls = tls_range(share)
        self._step = len(tls)
        self._ordinary = PortAllocator(share.port_first, tls.start, share.bind_host, free=free)
        self._tls = None
        if tls:

            def pair_free(_host: str, port: int) -> bool:
                return serves(port) and free(LOOPBACK, port + self._step)

            self._tls = PortAllocator(tls.start, tls.stop, share.bind_host, free=pair_free)

    def give(self, port: Port, holder: str) -> Port:
        """The declared port with its host ports. Unavailable if there is none."""
        if not port.tls:
            return replace(port, external=self._ordinary.take(holder))
        if self._tls is None:
            raise Unavailable(
                f"Port '{port.name}' has tls_enabled, and this node has no TLS ports (`ports.tls` of its "
                "configuration, and an HAProxy for its platform).",
                error="TLS not available",
            )
        number = self._tls.take(holder)
        return replace(port, external=number, plain=number + self._step)

    def give_all(self, ports: Iterable[Port], holder: str) -> tuple[Port, ...]:
        """Ports for all, or for none of them."""
        try:
            return tuple([self.give(port, holder) for port in ports])
        except Unavailable:
            self.release(holder)
            raise

    def adopt(self, port: Port, holder: str) -> None:
        """Note that `holder` has this port already."""
        allocator = self._tls if port.tls and self._tls is not None else self._ordinary
        allocator.adopt(port.external, holder)

    def release(self, holder: str) -> None:
        """Give back all ports of `holder`."""
        self._ordinary.release(holder)
        if self._tls is not None:
            self._tls.release(holder)

    def exclude(self, port: Port) -> None:
        """Something else has it: do not give it for a while."""
        allocator = self._tls if port.tls and self._tls is not None else self._ordinary
        allocator.exclude(port.external)

    def held_by(self, holder: str) -> list[int]:
        return [*self._ordinary.held_by(holder), *(self._tls.held_by(holder) if self._tls is not None else ())]
