"""The region's nodes: each an agent, followed by one task here.

A lease is asked for by creating an agent (it waits until Ray has a node for it) and given back by ending it. Following
is a long poll: an answer brings events, a broken call tells at once that the agent died, and the next hello brings its
whole truth again. While an agent is silent, Ray is asked whether its machine is dead: then the node is lost at once,
and the agent, which Ray starts again elsewhere, is a node that has yet to come.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import structlog
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from fleet.background import Background
from fleet.errors import Conflict, Fenced, FleetError, Unavailable
from fleet.node.model import Drain, Hello, RunView
from fleet.region.agents import Agents
from fleet.region.link import Link
from fleet.region.model import NodeView
from fleet.region.names import class_of_agent
from fleet.times import now_ms

log = structlog.get_logger(__name__)

_POLL_S = 25.0
_CALL_S = 20.0
_RETRY_S, _RETRY_MOST_S = 0.2, 2.0
_STILLBORN_S = 10.0  # an agent that cannot even begin: another is not asked for at once
_LOST_KEPT_MS = 600_000  # by then every server of a dead node has been dealt with


class Leases:
    """The callbacks come from the following tasks, each agent's in order.

    `on_sync(hello)`: a node told its whole truth. `on_events(views)`: what changed there. `on_silent(node_id)`: it does
    not answer. `on_lost(node_id)`: its machine is dead. `on_change()`: there are other nodes, or they drain.
    """

    def __init__(
        self,
        region: str,
        epoch: int,
        agents: Agents,
        *,
        on_sync: Callable[[Hello], Awaitable[None]],
        on_events: Callable[[tuple[RunView, ...]], Awaitable[None]],
        on_silent: Callable[[str], None],
        on_lost: Callable[[str], Awaitable[None]],
        on_fenced: Callable[[BaseException], None],
        on_change: Callable[[], None] = lambda: None,
        on_ready: Callable[[Link], None] = lambda _link: None,
    ) -> None:
        self._region = region
        self._epoch = epoch
        self._agents = agents
        self._on_sync = on_sync
        self._on_events = on_events
        self._on_silent = on_silent
        self._on_lost = on_lost
        self._on_fenced = on_fenced
        self.on_change = on_change
        self.on_ready = on_ready
        self._links: dict[str, Link] = {}
        self._nodes: dict[str, Link] = {}  # those that have said hello, by node
        self._lost: dict[str, NodeView] = {}
        self._views: Mapping[str, NodeView] | None = None
        self._changed = asyncio.Event()
        self._spawn = Background("leases").spawn

    def adopt(self) -> None:
        """Follow the agents that exist already."""
        for name, handle in self._agents.known().items():
            self._follow(Link(name, class_of_agent(name), handle))

    # Leasing ----------------------------------------------------------------------------------------------------

    def ask(self, node_class: str) -> None:
        """Have Ray find one more node of that class."""
        name, handle = self._agents.ask(node_class, self._links)
        self._follow(Link(name, node_class, handle, asked_at=now_ms()))
        log.info("node asked for", region=self._region, agent=name)

    def cancel(self, node_class: str, number: int) -> None:
        """Take back asks that no node has answered, the newest first."""
        waiting = [link for link in self._links.values() if link.hello is None and link.node_class == node_class]
        for link in list(reversed(waiting))[:number]:
            log.info("node not needed any more", region=self._region, agent=link.name)
            self._drop(link)
            self._spawn(self._give_back(link))

    async def release(self, node_id: str) -> bool:
        """Give a node back that holds nothing. False if it holds something, or does not answer: try again later."""
        link = self._nodes.get(node_id)
        if link is None or link.releasing:
            return False
        link.releasing = True
        try:
            await self.call(node_id, "retire", self._epoch)
        except (Unavailable, Conflict) as error:
            log.warning("node not released", node=node_id, error=error.detail)
            link.releasing = False
            return False
        self._drop(link)
        await self._give_back(link)
        log.info("node released", region=self._region, node=node_id, agent=link.name)
        return True

    def _drop(self, link: Link) -> None:
        self._links.pop(link.name, None)
        self._forget(link)
        if link.task is not None and link.task is not asyncio.current_task():
            link.task.cancel()
        self._touched()

    async def _give_back(self, link: Link) -> None:
        delay = _RETRY_S
        while True:
            try:
                await asyncio.to_thread(self._agents.give_back, link.handle)
                return
            except RayError as error:
                log.warning("agent not ended, trying again", agent=link.name, error=repr(error))
                await asyncio.sleep(delay)
                delay = min(2 * delay, 60.0)

    # What is known ----------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether a node is on its way."""
        return any(link.hello is None for link in self._links.values())

    def asked(self) -> Counter[str]:
        """Asks that no node has answered yet, per class."""
        return Counter(link.node_class for link in self._links.values() if link.hello is None)

    def oldest_ask_ms(self, now: int) -> int:
        """How long the oldest unanswered ask has waited."""
        waiting = [link.asked_at for link in self._links.values() if link.hello is None and link.asked_at is not None]
        return now - min(waiting, default=now)

    def links(self) -> Mapping[str, Link]:
        """The nodes that have said hello, by node id."""
        return self._nodes

    def views(self) -> Mapping[str, NodeView]:
        """The nodes by id; another object whenever one of them has changed."""
        if self._views is None:
            found = {node_id: view for node_id, link in self._nodes.items() if (view := link.view())}
            self._views = {**self._lost, **found}
        return self._views

    def hello(self, node_id: str) -> Hello | None:
        """What a node said of itself last."""
        link = self._nodes.get(node_id)
        return link.hello if link else None

    async def drain(self, node_id: str, drain: Drain | None) -> bool:
        """Place nothing more on a node (None: again); False if there is none of that id.

        The node is told, so that the next manager knows; one that does not answer is told when it says hello.
        """
        link = self._nodes.get(node_id)
        if link is None:
            return False
        link.drain = drain
        self._touched()
        try:
            await self.call(node_id, "set_drain", self._epoch, drain)
        except Conflict:  # an earlier manager has given it back, and was killed before the agent had ended
            link.drain = Drain("surplus")
            self._touched()
        except Unavailable as error:
            log.warning("node not told that it drains", node=node_id, error=error.detail)
        return True

    def prepared(
        self, node_id: str, *, preparing: frozenset[str] | None = None, present: frozenset[str] = frozenset()
    ) -> None:
        """Note which builds a node fetches now, and which it has."""
        link = self._nodes.get(node_id)
        if link is None:
            return
        now_preparing = link.preparing if preparing is None else preparing
        if now_preparing != link.preparing or not present <= link.builds:
            link.preparing, link.builds = now_preparing, link.builds | present
            self._touched()

    async def wait_change(self, timeout_s: float) -> None:
        """Return when a node has come, gone or changed, or at the timeout."""
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
            if isinstance(error, RayTaskError) and isinstance(error.cause, FleetError):
                raise error.cause from None
            raise Unavailable(f"Node {node_id} does not answer ({type(error).__name__}).") from error

    def _touched(self) -> None:
        self._views = None
        self._changed.set()
        self.on_change()

    # Following --------------------------------------------------------------------------------------------------

    def _follow(self, link: Link) -> None:
        if link.name not in self._links:
            self._links[link.name] = link
            link.task = asyncio.create_task(self._run(link))

    async def _run(self, link: Link) -> None:
        delay = _RETRY_S
        while True:
            try:
                await self._session(link)
                delay = _RETRY_S
            except Fenced as error:
                self._on_fenced(error)
                return
            except ActorDiedError as error:
                log.error("agent gone for good", agent=link.name, error=str(error))
                self._silent(link)
                await asyncio.sleep(delay if link.hello else _STILLBORN_S)
                self._bury(link)
                return
            except RayActorError as error:
                if link.synced or link.hello is None:
                    log.warning("agent lost", agent=link.name, error=type(error).__name__)
            except Exception:
                log.exception("following an agent failed", agent=link.name)
            delay = _RETRY_S if link.synced else min(1.5 * delay, _RETRY_MOST_S)
            self._silent(link)
            await self._ask_whether_dead(link)
            await asyncio.sleep(delay)

    def _silent(self, link: Link) -> None:
        if link.synced and link.hello:
            link.synced, link.since = False, now_ms()
            self._touched()
            self._on_silent(link.hello.node_id)

    def _bury(self, link: Link) -> None:
        """An agent that Ray does not start again. Its node is silent until another agent speaks for it, or lost."""
        view = link.view()
        self._drop(link)
        if view is not None:
            self._lost[view.node_id] = replace(view, synced=False, unsynced_since=link.since)
            self._touched()

    async def _ask_whether_dead(self, link: Link) -> None:
        if link.hello is None or link.synced:
            return
        if not await asyncio.to_thread(self._agents.dead, link.hello):
            return
        node_id = link.hello.node_id
        log.error("node lost", region=self._region, node=node_id, agent=link.name)
        view = link.lost_view()
        self._forget(link)
        link.hello, link.drain, link.asked_at = None, None, None
        link.builds = link.preparing = frozenset()
        if view is not None:
            self._lost[node_id] = replace(view, unsynced_since=now_ms())
        self._touched()
        await self._on_lost(node_id)

    def _forget(self, link: Link) -> None:
        """The link speaks for its node no more."""
        if link.hello is not None and self._nodes.get(link.hello.node_id) is link:
            del self._nodes[link.hello.node_id]
        now = now_ms()
        self._lost = {k: v for k, v in self._lost.items() if now - (v.unsynced_since or 0) < _LOST_KEPT_MS}

    async def _session(self, link: Link) -> None:
        """From hello until the agent starts anew."""
        hello: Hello = await link.handle.hello.remote(self._epoch)
        first, moved = link.hello is None, link.hello is not None and link.hello.node_id != hello.node_id
        if moved:
            self._left(link)
        link.hello, link.synced, link.warnings = hello, True, hello.warnings
        link.drain = hello.drain if first or moved else link.drain
        link.builds |= hello.builds
        self._nodes[hello.node_id] = link
        self._lost.pop(hello.node_id, None)
        if first or moved:
            self.on_ready(link)
        self._touched()
        await self._on_sync(hello)
        if link.drain != hello.drain:
            await link.handle.set_drain.remote(self._epoch, link.drain)
        after = hello.seq
        while True:
            page = await link.handle.poll.remote(self._epoch, hello.boot_id, after, _POLL_S)
            if page is None:
                return
            after, link.warnings = page.seq, page.warnings
            if page.drain is not None and page.drain.cause == "notice" and page.drain != link.drain:
                link.drain = page.drain
                self._touched()
            if page.events:
                await self._on_events(page.events)

    def _left(self, link: Link) -> None:
        """The agent came up on another node though its old one lives: that needs an agent again, to be heard."""
        view = link.view()
        log.warning("agent moved to another node", agent=link.name, left=view.node_id if view else None)
        self._forget(link)
        link.builds = link.preparing = frozenset()
        if view is not None:
            self._lost[view.node_id] = replace(view, synced=False, unsynced_since=now_ms())
            self.ask(link.node_class)
