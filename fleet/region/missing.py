"""What happens when a node goes missing: its agent is looked for, begun anew, and at last the node is lost.

Two kinds are missing: links whose agent is silent, and nodes for which no agent speaks any more (it is gone for good,
or came up elsewhere), for which another has been asked. One look a second decides for all of them (`silence.py`).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import structlog

from fleet.actors.single_flight import SingleFlight
from fleet.node.model import Hello
from fleet.region.agents import Agents, Presence
from fleet.region.link import Link
from fleet.region.model import NodeView
from fleet.region.silence import Silence, SilencePolicy, Verdict, look
from fleet.times import now_ms

log = structlog.get_logger(__name__)
Answer = TypeVar("Answer")

LOOK_S = 1.0
LOOK_LIMIT_S = 60.0
RAY_S = 10.0  # for one question to Ray, or one order
_LOST_KEPT_MS = 600_000  # by then every server of a lost node has been dealt with


@dataclass(slots=True)
class Absent:
    """A node for which no agent speaks. `told`: the region has taken note of its loss."""

    view: NodeView
    silence: Silence
    lost_at: int | None = None
    told: bool = False


class Missing:
    """`links()`: all agents. The callbacks: `lose(link)`: its node is lost; `replace(link)`: an agent that has never
    told its list and hangs; `lost(node_id)`: a node without an agent is lost now; `touched()`: views have changed."""

    def __init__(
        self,
        region: str,
        agents: Agents,
        policy: SilencePolicy,
        *,
        links: Callable[[], Collection[Link]],
        lose: Callable[[Link], None],
        replace: Callable[[Link], None],
        lost: Callable[[str], None],
        touched: Callable[[], None],
    ) -> None:
        self._region = region
        self._agents = agents
        self._policy = policy
        self._links = links
        self._lose = lose
        self._replace = replace
        self._lost = lost
        self._touched = touched
        self._absent: dict[str, Absent] = {}
        self._questions = SingleFlight[tuple[str, str], Any]()  # one that does not come back is not asked twice

    # The nodes without an agent ---------------------------------------------------------------------------------

    def left(self, view: NodeView, silence: Silence) -> None:
        """No agent speaks for this node now, and another has been asked for."""
        now = now_ms()
        absent = replace(silence, restarted=now)
        self._absent[view.node_id] = Absent(replace(view, synced=False, synced_since=None), absent)

    def is_lost(self, view: NodeView) -> None:
        """Nobody comes back for this node now."""
        now = now_ms()
        gone = replace(view, synced=False, synced_since=None, lost=True, draining=True)
        self._absent[view.node_id] = Absent(gone, Silence.begun(view.unsynced_since or now, now), lost_at=now)

    def back(self, node_id: str) -> None:
        """An agent speaks for it again."""
        self._absent.pop(node_id, None)

    def absent(self, node_id: str) -> Absent | None:
        return self._absent.get(node_id)

    def views(self) -> dict[str, NodeView]:
        return {
            node_id: one.view if one.view.lost else replace(one.view, unsynced_since=one.silence.alive)
            for node_id, one in self._absent.items()
        }

    def expected(self) -> Counter[str]:
        """Per class, the nodes without an agent that are not lost yet: as many agents are on their way for them."""
        return Counter(one.view.node_class for one in self._absent.values() if not one.view.lost)

    # Looking ----------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """One look at all that are missing. What cannot be found out now is found out by the next."""
        now = now_ms()
        for node_id, one in list(self._absent.items()):
            if one.lost_at is not None:
                if one.told and now - one.lost_at >= _LOST_KEPT_MS:
                    del self._absent[node_id]
                    self._touched()
                continue
            one.silence, verdict = look(one.silence, now, self._policy)
            if verdict is Verdict.LOST:
                log.error("node_lost", region=self._region, node=node_id, why="no agent came for it")
                self.is_lost(one.view)
                self._touched()
                self._lost(node_id)
        silent = [link for link in self._links() if not link.synced]
        for link in await self._without_machine([link for link in silent if link.hello is not None]):
            self._lose_if_silent(link, "its machine is gone")
        works = [self._look_at(link, now) for link in silent if not link.synced and not link.dropped]
        failed = [one for one in await asyncio.gather(*works, return_exceptions=True) if isinstance(one, Exception)]
        if failed:
            raise failed[0]

    async def _look_at(self, link: Link, now: int) -> None:
        link.silence, verdict = look(link.silence, now, self._policy)
        if verdict is Verdict.WAIT:
            return
        if verdict is not Verdict.LOST:
            await self._begin_anew(link, verdict)
        elif link.hello is not None:
            self._lose_if_silent(link, "it was silent too long")
        elif await self._presence(link) in (Presence.WAITING, Presence.UNKNOWN):
            link.silence = Silence.begun(now, now)  # Ray has no machine for it yet: that is no silence
        elif not link.synced:
            # Also one that Ray starts again all the time: it may be queued on a machine that has no room for it.
            log.error("agent_never_answered", region=self._region, agent=link.name)
            self._replace(link)

    def _lose_if_silent(self, link: Link, why: str) -> None:
        if not link.synced and link.hello is not None and not link.dropped:
            silent_s = (now_ms() - link.silence.since) // 1000
            node = link.hello.node_id
            log.error("node_lost", region=self._region, node=node, agent=link.name, why=why, silent_s=silent_s)
            self._lose(link)

    async def _begin_anew(self, link: Link, verdict: Verdict) -> None:
        """Have Ray kill the agent and start it again, where it is alive to be killed."""
        presence = await self._presence(link)
        if link.synced or link.dropped:
            return
        if presence is Presence.ANSWERS and verdict is Verdict.HUNG:
            link.silence = link.silence.sign(now_ms())
        elif presence in (Presence.ANSWERS, Presence.HANGS):
            log.error("agent_hangs", region=self._region, agent=link.name, verdict=verdict.value)
            await self._ask("restart", link.name, lambda: asyncio.to_thread(self._agents.restart, link.handle), None)

    async def _without_machine(self, links: list[Link]) -> list[Link]:
        hellos = [(link, link.hello) for link in links if link.hello is not None]

        def asked() -> list[tuple[Link, Hello]]:
            return [(link, hello) for link, hello in hellos if self._agents.dead(hello)]

        gone = await self._ask("dead", "", lambda: asyncio.to_thread(asked), []) if hellos else []
        return [link for link, hello in gone if link.hello is hello]

    async def _presence(self, link: Link) -> Presence:
        return await self._ask("presence", link.name, lambda: self._agents.presence(link.handle), Presence.UNKNOWN)

    async def _ask(
        self, what: str, agent: str, work: Callable[[], Coroutine[Any, Any, Answer]], default: Answer
    ) -> Answer:
        """The answer, or the default where Ray does not give one in time."""
        try:
            async with asyncio.timeout(RAY_S):
                return await self._questions.do((what, agent), work)
        except Exception as error:  # Ray's head may be away; whoever is silent stays so, and is looked at again
            log.warning("ray_not_asked", region=self._region, agent=agent, what=what, error=repr(error))
            return default
