"""Events on their way to the region: numbered, kept until acknowledged, told at once where it matters.

The region asks for all after the last number it has; asking acknowledges. Steps of a launch are not urgent (they wait
a moment for company, which saves a call each); `running` and ends are told at once.
"""

import asyncio
from collections import deque

from fleet.node.model import Page, RunState, RunView

_URGENT = {RunState.RUNNING, RunState.EXITED, RunState.FAILED}
LINGER_S = 0.4


class Outbox:
    def __init__(self) -> None:
        self.seq = 0
        self._events: deque[tuple[int, RunView]] = deque()
        self._urgent = asyncio.Event()
        self._any = asyncio.Event()

    def put(self, view: RunView, *, urgent: bool = False) -> None:
        self.seq += 1
        self._events.append((self.seq, view))
        self._any.set()
        if urgent or view.state in _URGENT:
            self._urgent.set()

    def wake(self) -> None:
        """Answer whoever waits, though there is no event."""
        self._any.set()
        self._urgent.set()

    async def after(self, seq: int, timeout_s: float) -> Page:
        """Events after `seq`, waiting up to the timeout for one. Those up to `seq` are dropped."""
        while self._events and self._events[0][0] <= seq:
            self._events.popleft()
        if not self._events:
            self._any.clear()
            self._urgent.clear()
            await _wait(self._any, timeout_s)
        if self._events and not self._urgent.is_set():
            await _wait(self._urgent, LINGER_S)
        self._urgent.clear()
        events = tuple(view for _, view in self._events)
        return Page(self.seq if events else seq, events)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
