"""The region's nodes: each a NodeAgent actor, followed by one task here.

A lease is asked for by creating an agent (it waits until Ray has a node for it). Following is a long poll: an answer
brings events, a broken call tells at once that the agent died, and the next hello brings its whole truth again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from ray.exceptions import RayActorError, RayError

from fleet.errors import Fenced, Unavailable
from fleet.node.model import Hello, RunView
from fleet.region.agents import Agents
from fleet.region.model import NodeView
from fleet.region.names import agent_name
from fleet.times import now_ms

log = structlog.get_logger(__name__)

_POLL_S = 25.0
_CALL_S = 20.0


@dataclass(slots=True)
class Link:
    """One agent. `hello` is None until its first answer."""

    name: str
    handle: Any
    hello: Hello | None = None
    synced: bool = False
    since: int = field(default_factory=now_ms)
    draining: bool = False
    task: asyncio.Task[None] | None = None

    def view(self) -> NodeView | None:
        if self.hello is None:
            return None
        share = self.hello.share
        since = None if self.synced else self.since
        return NodeView(
            self.hello.node_id,
            self.hello.host,
            share.memory_mb,
            share.cores,
            self.synced,
            since,
            self.draining,
            node_class=share.node_class,
            overcommit=share.overcommit,
            ports=share.port_last - share.port_first,
            takes=share.takes,
        )


class Leases:
    """`on_sync(hello)`, `on_events(views)`, `on_lost(node_id)` are called from the following tasks, in order."""

    def __init__(
        self,
        region: str,
        epoch: int,
        agents: Agents,
        max_nodes: int,
        *,
        on_sync: Callable[[Hello], Awaitable[None]],
        on_events: Callable[[tuple[RunView, ...]], Awaitable[None]],
        on_lost: Callable[[str], None],
        on_fenced: Callable[[BaseException], None],
    ) -> None:
        self._region = region
        self._epoch = epoch
        self._agents = agents
        self._max_nodes = max_nodes
        self._on_sync = on_sync
        self._on_events = on_events
        self._on_lost = on_lost
        self._on_fenced = on_fenced
        self._links: dict[str, Link] = {}
        self._nodes: dict[str, Link] = {}  # those that have said hello, by node
        self._views: Mapping[str, NodeView] | None = None
        self._changed = asyncio.Event()

    def adopt(self) -> None:
        """Follow the agents that exist already."""
        for name, handle in self._agents.known().items():
            self._follow(name, handle)

    def grow(self) -> bool:
        """Ask for one more node; False if the region has all that it may have."""
        if len(self._links) >= self._max_nodes:
            return False
        number = next(i for i in range(self._max_nodes) if agent_name(self._region, i) not in self._links)
        name = agent_name(self._region, number)
        self._follow(name, self._agents.ask(number))
        log.info("node asked for", region=self._region, agent=name)
        return True

    @property
    def pending(self) -> bool:
        """Whether a node is on its way."""
        return any(link.hello is None for link in self._links.values())

    def views(self) -> Mapping[str, NodeView]:
        """The nodes by id; another object whenever one of them has changed."""
        if self._views is None:
            self._views = {node_id: view for node_id, link in self._nodes.items() if (view := link.view())}
        return self._views

    def hello(self, node_id: str) -> Hello | None:
        """What a node said of itself last."""
        link = self._nodes.get(node_id)
        return link.hello if link else None

    def hellos(self) -> list[Hello]:
        return [link.hello for link in self._links.values() if link.hello]

    def drain(self, node_id: str, draining: bool) -> bool:
        """Mark a node; False if there is none of that id."""
        link = self._nodes.get(node_id)
        if link is None:
            return False
        link.draining = draining
        self._views = None
        return True

    async def wait_change(self, timeout_s: float) -> None:
        """Return when a node has come or gone, or at the timeout."""
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return

    async def call(self, node_id: str, method: str, *arguments: Any, timeout_s: float = _CALL_S) -> Any:
        """Command a node. `Unavailable` if it does not answer; the next sync makes good what was missed."""
        link = self._nodes.get(node_id)
        if link is None:
            raise Unavailable(f"Node {node_id} is not leased now.")
        try:
            async with asyncio.timeout(timeout_s):
                return await getattr(link.handle, method).remote(*arguments)
        except (RayError, TimeoutError) as error:
            if isinstance(error, Fenced):
                self._on_fenced(error)
            raise Unavailable(f"Node {node_id} does not answer ({type(error).__name__}).") from error

    def _follow(self, name: str, handle: Any) -> None:
        if name not in self._links:
            link = self._links[name] = Link(name, handle)
            link.task = asyncio.create_task(self._run(link))

    async def _run(self, link: Link) -> None:
        while True:
            try:
                await self._session(link)
            except Fenced as error:
                self._on_fenced(error)
                return
            except RayActorError as error:
                log.warning("agent lost", agent=link.name, error=type(error).__name__)
            except Exception:
                log.exception("following an agent failed", agent=link.name)
            if link.synced and link.hello:
                link.synced, link.since = False, now_ms()
                self._views = None
                self._on_lost(link.hello.node_id)
            await asyncio.sleep(0.2)

    async def _session(self, link: Link) -> None:
        """From hello until the agent starts anew."""
        hello: Hello = await link.handle.hello.remote(self._epoch)
        link.hello, link.synced = hello, True
        self._nodes[hello.node_id], self._views = link, None
        await self._on_sync(hello)
        self._changed.set()
        after = hello.seq
        while True:
            page = await link.handle.poll.remote(self._epoch, hello.boot_id, after, _POLL_S)
            if page is None:
                return
            after = page.seq
            if page.events:
                await self._on_events(page.events)
