"""A few networks ready for the next launches, of the shapes that this node has launched lately.

A shape is what must be the same: the host's address, and protocol, number and TLS of each internal port in order. A
network holds its host ports in the node's allocator under its own name until it is dropped, so after its game's end
they are given again only when the engine has really freed them. Networks are made one at a time, and only while no
launch is under way: refilling never slows what somebody waits for.
"""

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from fleet.actors.tasks import SupervisedTasks
from fleet.node.node_ports import NodePorts
from fleet.node.runtime import LaunchSpec, Network, Networks, Port, PortTaken, Proto

REMEMBERED = 16
_ALIVE_S, _RETRY_MOST_S = 15.0, 5.0


@dataclass(frozen=True, slots=True)
class Shape:
    bind_host: str
    ports: tuple[tuple[int, Proto, bool], ...]


def shape_of(bind_host: str, ports: Iterable[Port]) -> Shape:
    return Shape(bind_host, tuple((port.internal, port.protocol, port.tls) for port in ports))


def wanted(recent: Sequence[Shape], count: int) -> Counter[Shape]:
    """How many of each shape to keep, `count` in all, shared out by how often each was launched lately (D'Hondt).

    Of equals, the one that came up last.
    """
    launched = Counter(recent)
    shares: Counter[Shape] = Counter()
    for _ in range(count if launched else 0):
        best = max(reversed(list(launched)), key=lambda shape: launched[shape] / (shares[shape] + 1))
        shares[best] += 1
    return shares


class WarmNetworks:
    """`busy`: whether a launch is under way. `in_use`: networks of runs that are there."""

    def __init__(
        self,
        networks: Networks | None,
        ports: NodePorts,
        count: int,
        busy: Callable[[], bool],
        in_use: Callable[[], Collection[str]],
        tasks: SupervisedTasks,
    ) -> None:
        self._networks = networks if count else None
        self._any = networks
        self._ports, self._count = ports, count
        self._busy, self._in_use, self._tasks = busy, in_use, tasks
        self._ready: dict[str, Network] = {}
        self._recent: deque[Shape] = deque(maxlen=REMEMBERED)
        self._dropping: set[str] = set()
        self._left: set[str] = set()
        self._changed = asyncio.Event()

    async def adopt(self, in_use: set[str]) -> None:
        """Networks of an earlier life: those in use by running games stay theirs, others are ready, or go."""
        for network in await self._any.list() if self._any else ():
            for port in network.ports:
                self._ports.adopt(port, network.name)
            if network.name in in_use:
                self._recent.append(shape_of(network.bind_host, network.ports))
            elif network.taken or self._networks is None:
                self.drop(network.name)
            else:
                self._ready[network.name] = network
                self._recent.append(shape_of(network.bind_host, network.ports))

    def take(self, spec: LaunchSpec) -> LaunchSpec | None:
        """The spec on a warm network and its ports; None if none fits. It is the caller's to `drop`."""
        if self._networks is None or not spec.ports:
            return None
        shape = shape_of(spec.bind_host, spec.ports)
        self._recent.append(shape)
        self._changed.set()
        for name, network in self._ready.items():
            if shape_of(network.bind_host, network.ports) == shape:
                del self._ready[name]
                self._networks.take(name)
                pairs = zip(spec.ports, network.ports, strict=True)
                ports = tuple(replace(port, external=made.external, plain=made.plain) for port, made in pairs)
                return replace(spec, ports=ports, network=name)
        return None

    def drop(self, name: str) -> None:
        """End it, however often that fails."""
        if name not in self._dropping:
            self._dropping.add(name)
            self._tasks.keep("drop_network", lambda: self._drop(name), most_s=_RETRY_MOST_S, network=name)

    async def _drop(self, name: str) -> None:
        if self._any is not None:
            await self._any.drop(name)
        self._dropping.discard(name)
        self._ports.release(name)
        self._changed.set()

    def begin(self) -> None:
        """Keep the stock as it is wanted from now on."""
        if self._networks is not None:
            self._tasks.keep("warm_networks", self._run, most_s=_RETRY_MOST_S)

    async def _run(self) -> None:
        while self._networks is not None:
            self._changed.clear()
            await self._networks.alive()
            await self._look(self._networks)
            while not self._busy() and await self._step(self._networks):
                pass
            try:
                async with asyncio.timeout(_ALIVE_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def poke(self) -> None:
        """A launch has ended: there may be time now."""
        self._changed.set()

    async def _look(self, networks: Networks) -> None:
        """Forget those that someone removed; drop those whose game is gone, if two looks found them so."""
        known = list(self._ready)
        there = await networks.list()
        names = {network.name for network in there}
        for name in known:
            if name not in names and self._ready.pop(name, None):
                self.drop(name)
        left = {network.name for network in there if network.taken} - set(self._in_use()) - self._dropping
        for name in left & self._left:
            self.drop(name)
        self._left = left

    async def _step(self, networks: Networks) -> bool:
        """Drop what is not wanted, make one that is; False when nothing is left to do."""
        shares = wanted(self._recent, self._count)
        have = Counter(shape_of(network.bind_host, network.ports) for network in self._ready.values())
        for name, network in list(self._ready.items()):
            shape = shape_of(network.bind_host, network.ports)
            if have[shape] > shares[shape]:
                have[shape] -= 1
                del self._ready[name]
                self.drop(name)
        missing = next((shape for shape in shares if have[shape] < shares[shape]), None)
        if missing is not None:
            await self._make(networks, missing)
        return missing is not None

    async def _make(self, networks: Networks, shape: Shape) -> None:
        name = f"fleet-net-{secrets.token_hex(6)}"
        try:
            ports = self._ports.give_all([Port("", number, 0, proto, tls) for number, proto, tls in shape.ports], name)
            await networks.make(name, shape.bind_host, ports)
        except PortTaken as taken:
            for port in taken.ports:
                self._ports.exclude(port)
            self._ports.release(name)
            return
        except Exception:
            self.drop(name)
            raise
        self._ready[name] = Network(name, shape.bind_host, ports, taken=False)
