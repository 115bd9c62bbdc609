"""The region's nodes: each an agent, followed by one task here.

A lease is asked for by creating an agent (it waits until Ray has a node for it) and given back by ending it. Following
is a long poll: an answer brings events, a broken call tells at once that the agent died, one that does not come tells
soon that it hangs, and the next hello brings its whole truth again. The task ends only with the agent: whatever fails
meanwhile (a commit, Ray's head), it begins again. What silence leads to is decided in `missing.py`.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from ray.exceptions import ActorDiedError

from fleet.actors.single_flight import SingleFlight
from fleet.actors.tasks import SupervisedTasks
from fleet.errors import Conflict, Fenced, FleetError, Unavailable
from fleet.node.model import Drain, Hello, Page, RunView
from fleet.region.agent_calls import NotHeard, Starting, command, hear
from fleet.region.agents import Agents
from fleet.region.link import Link
from fleet.region.missing import LOOK_LIMIT_S, LOOK_S, Missing
from fleet.region.model import NodeView
from fleet.region.names import class_of_agent
from fleet.region.silence import Silence, SilencePolicy
from fleet.times import now_ms

log = structlog.get_logger(__name__)

_POLL_S = 10.0
_GRACE_S = 3.0  # more than that without the answer to a poll: the agent hangs, or cannot be reached
_HELLO_S = 30.0  # an agent that starts answers after 20 s that it does
_CALL_S = 20.0
_GIVE_BACK_S = 20.0
_RETRY_S, _RETRY_MOST_S = 0.2, 2.0
_STILLBORN_S = 10.0  # an agent that cannot even begin: another is not asked for at once


class Leases:
    """The callbacks come from the following tasks, each agent's in order:
    `on_sync(hello)`: a node told its whole truth. `on_events(views)`: what changed there. `on_silent(node_id)`: it does
    not answer. `on_lost(node_id)`: nobody comes back for it now; told until that succeeds, or the node is back.
    `on_change()`: there are other nodes, or they drain.
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
        silence: SilencePolicy | None = None,
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
        self._missing = Missing(
            region,
            agents,
            silence or SilencePolicy(),
            links=lambda: list(self._links.values()),
            lose=self._lose,
            replace=self._replace,
            lost=self._tell_lost,
            touched=self._touched,
        )
        self._views: Mapping[str, NodeView] | None = None
        self._changed = asyncio.Event()
        self._tasks = SupervisedTasks("leases", region=region)
        self._looks: asyncio.Task[None] | None = None
        self._ends = SingleFlight[str, None]()  # one that does not come back is not begun twice

    def adopt(self) -> None:
        """Follow the agents that exist already. May be called again."""
        for name, handle in self._agents.known().items():
            self._follow(Link(name, class_of_agent(name), handle))

    async def close(self) -> None:
        """Follow nobody any more. The agents live on."""
        await self._tasks.close()

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
            self._end(link)

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
            return False
        finally:
            link.releasing = False
        await asyncio.wait([self._end(link)], timeout=_GIVE_BACK_S)  # it goes on until it is done
        log.info("node released", region=self._region, node=node_id, agent=link.name)
        return True

    def _end(self, link: Link) -> asyncio.Task[None]:
        """Follow the agent no more, and have Ray end it for good, however often that takes."""
        self._drop(link)
        return self._tasks.keep("give_back", partial(self._give_back, link), agent=link.name)

    async def _give_back(self, link: Link) -> None:
        if link.name not in self._links:  # a simulated node of that number may have been asked for anew
            async with asyncio.timeout(_GIVE_BACK_S):
                await self._ends.do(link.name, lambda: asyncio.to_thread(self._agents.give_back, link.handle))

    def _drop(self, link: Link) -> None:
        # Its task is not cancelled, since it may be in the middle of a commit: it ends at its next step.
        link.dropped = True
        self._links.pop(link.name, None)
        self._forget(link)
        link.end_waits()
        self._touched()

    # What is known ----------------------------------------------------------------------------------------------

    @property
    def unheard(self) -> bool:
        """Whether an agent that an earlier manager has asked for has not told what runs there."""
        return any(link.hello is None and link.asked_at is None for link in self._links.values())

    def asked(self) -> Counter[str]:
        """Asks that no node has answered yet, per class."""
        return Counter(link.node_class for link in self._links.values() if link.hello is None)

    def expected(self) -> Counter[str]:
        """Nodes without an agent that are not lost yet, per class: so many of those asked for are for them."""
        return self._missing.expected()

    def oldest_ask_ms(self, now: int) -> int:
        """How long the oldest unanswered ask has waited."""
        waiting = [link.asked_at for link in self._links.values() if link.hello is None and link.asked_at is not None]
        return now - min(waiting, default=now)

    def links(self) -> Mapping[str, Link]:
        """The nodes that have said hello, by node id."""
        return self._nodes

    def views(self) -> Mapping[str, NodeView]:
        """The nodes by id; another object whenever one of them has changed. None is both lost and synced."""
        if self._views is None:
            found = {node_id: view for node_id, link in self._nodes.items() if (view := link.view())}
            self._views = {**self._missing.views(), **found}
        return self._views

    def hello(self, node_id: str) -> Hello | None:
        """What a node said of itself last."""
        link = self._nodes.get(node_id)
        return link.hello if link else None

    def background(self) -> dict[str, tuple[dict[str, int], list[str]]]:
        """For `health.families`: each agent's failures by task, and its tasks that fail without end."""
        return {f"node:{name}": (dict(link.failures), list(link.failing)) for name, link in self._nodes.items()}

    async def drain(self, node_id: str, drain: Drain | None) -> bool:
        """Place nothing more on a node (None: again); False if there is none of that id.

        The node is told, so that the next manager knows; it is told again until its pages say the same.
        """
        link = self._nodes.get(node_id)
        if link is None:
            return False
        link.drain = drain
        self._touched()
        await self._tell_drain(link)
        return True

    async def _tell_drain(self, link: Link) -> None:
        node_id = link.hello.node_id if link.hello else ""
        try:
            await self.call(node_id, "set_drain", self._epoch, link.drain)
        except Conflict:  # an earlier manager has given it back, and was killed before the agent had ended
            link.drain = Drain("surplus")
            self._touched()
        except FleetError as error:
            log.warning("node not told that it drains", node=node_id, error=error.detail)

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
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    async def call(self, node_id: str, method: str, *arguments: Any, timeout_s: float = _CALL_S) -> Any:
        """Command a node. `Unavailable` if it is silent or falls silent; the next sync makes good what was missed."""
        link = self._nodes.get(node_id)
        if link is None:
            raise Unavailable(f"Node {node_id} is not leased now.")
        try:
            return await command(link, node_id, method, *arguments, timeout_s=timeout_s)
        except Fenced as error:
            self._on_fenced(error)
            raise

    def _touched(self) -> None:
        self._views = None
        self._changed.set()
        self.on_change()

    # Following --------------------------------------------------------------------------------------------------

    def _follow(self, link: Link) -> None:
        if self._looks is None:
            self._looks = self._tasks.every("look", self._missing.look, LOOK_S, limit_s=LOOK_LIMIT_S)
        if link.name not in self._links:
            self._links[link.name] = link
            self._tasks.keep(
                "follow", partial(self._run, link), first_s=_RETRY_S, most_s=_RETRY_MOST_S, agent=link.name
            )

    async def _run(self, link: Link) -> None:
        """Until the agent is gone for good or not ours any more."""
        delay = _RETRY_S
        while not link.dropped:
            try:
                await self._session(link)
                delay = _RETRY_S
                self._silent(link, now_ms())  # it began anew, so what it told is not all any more
            except Fenced as error:
                self._on_fenced(error)
                return
            except ActorDiedError as error:
                if link.dropped:
                    return
                log.error("agent gone for good", agent=link.name, error=str(error))
                self._silent(link, now_ms())
                await asyncio.sleep(delay if link.hello else _STILLBORN_S)
                self._bury(link)
                return
            except Starting as word:
                self._silent(link, now_ms())
                link.silence = link.silence.sign(now_ms(), starting=True)
                self._touched()
                log.info("agent_starting", agent=link.name, missing=str(word))
            except NotHeard as silence:
                if link.synced:
                    log.warning("agent lost", agent=link.name, error=str(silence))
                delay = _RETRY_S if link.synced else min(1.5 * delay, _RETRY_MOST_S)
                self._silent(link, silence.since)
            except BaseException:  # told, counted and begun again by the task's supervisor
                self._silent(link, now_ms())
                raise
            await asyncio.sleep(delay)

    async def _session(self, link: Link) -> None:
        """From hello until the agent starts anew."""
        hello: Hello = await hear(link, "hello", self._epoch, timeout_s=_HELLO_S)
        if link.dropped:
            return
        self._greet(link, hello)
        await self._on_sync(hello)
        await self._agree(link, hello.drain)
        after = hello.seq
        while not link.dropped:
            poll = (self._epoch, hello.boot_id, after, _POLL_S)
            page: Page | None = await hear(link, "poll", *poll, timeout_s=_POLL_S + _GRACE_S)
            if page is None or link.dropped:
                return
            link.heard_now(page)
            after = page.seq
            await self._agree(link, page.drain)
            if page.events:
                await self._on_events(page.events)

    def _greet(self, link: Link, hello: Hello) -> None:
        first, moved = link.hello is None, link.hello is not None and link.hello.node_id != hello.node_id
        if moved:
            self._left(link)
        link.heard_now(hello)
        link.hello, link.synced, link.synced_since = hello, True, link.heard
        link.drain = hello.drain if first or moved else link.drain
        link.builds |= hello.builds
        self._nodes[hello.node_id] = link
        self._missing.back(hello.node_id)
        if first or moved:
            self.on_ready(link)
        self._touched()

    async def _agree(self, link: Link, told: Drain | None) -> None:
        """Node and region say the same of whether it drains: the region decides, except that a machine will go."""
        if told == link.drain:
            return
        if told is not None and told.cause == "notice":
            link.drain = told
            self._touched()
        else:
            await self._tell_drain(link)

    def _silent(self, link: Link, since: int) -> None:
        if link.synced and link.hello:
            link.synced = False
            link.silence = Silence.begun(since, now_ms())
            link.end_waits()
            self._touched()
            self._on_silent(link.hello.node_id)

    # Nodes that go ----------------------------------------------------------------------------------------------

    def _speaks(self, link: Link) -> bool:
        """Whether this agent is the one that speaks for its node; another may have come there since."""
        return link.hello is not None and self._nodes.get(link.hello.node_id) is link

    def _forget(self, link: Link) -> None:
        """The link speaks for its node no more."""
        if link.hello is not None and self._speaks(link):
            del self._nodes[link.hello.node_id]

    def _bury(self, link: Link) -> None:
        """An agent that Ray does not start again. Another is asked for at once, to hear of the games there."""
        view = link.view() if self._speaks(link) else None
        self._drop(link)
        if view is not None:
            self._missing.left(view, link.silence)
            self.ask(link.node_class)
            self._touched()

    def _left(self, link: Link) -> None:
        """The agent came up on another node: the old one needs an agent again, to be heard."""
        view = link.view() if self._speaks(link) else None
        log.warning("agent moved to another node", agent=link.name, left=view.node_id if view else None)
        self._forget(link)
        link.builds = link.preparing = frozenset()
        if view is not None:
            self._missing.left(view, link.silence)
            self.ask(link.node_class)

    def _lose(self, link: Link) -> None:
        """Its agent ends for good; another is asked for at once, which is taken back if nobody needs it."""
        view = link.view() if self._speaks(link) else None
        self._end(link)
        if view is not None:
            self._missing.is_lost(view)
            self.ask(link.node_class)
            self._touched()
            self._tell_lost(view.node_id)

    def _replace(self, link: Link) -> None:
        """An agent that hangs and has never told what runs there."""
        self._end(link)
        self.ask(link.node_class)
        self._touched()

    def _tell_lost(self, node_id: str) -> None:
        self._tasks.keep("lost", partial(self._lost, node_id), node=node_id)

    async def _lost(self, node_id: str) -> None:
        absent = self._missing.absent(node_id)
        if absent is not None and absent.lost_at is not None:  # else it is back, and has told what runs there
            await self._on_lost(node_id)
            absent.told = True
