"""One look at the journals' ends for all who follow them in this process.

Strategy: while anybody follows, one task reads what is new for the projects that are followed and hands it out. Each
reader has a bounded queue; a full one is marked and gets no more, so no reader holds up another. Readers join between
two reads: from that position on nothing passes them by, and what lies before it they read by themselves.

The position is kept over failed reads, so that a database that is away for a while makes nobody miss anything; a reader
that goes away at any moment, also in the middle of joining, changes nothing for the others.
"""

import asyncio
from collections import deque

from fleet.actors.tasks import SupervisedTasks, first_done
from fleet.events.model import Cursor, Event
from fleet.events.read import horizon, read_page
from fleet.store.engine import Store

_LOOK_S = 5.0
READ_S = 60.0  # one read of what is new; then it is begun again from where it was
RETRY_S = 5.0  # between two attempts at most, while the journals cannot be read


class Subscription:
    """A reader's place. `full`: it was too slow, and what came since is not in it."""

    def __init__(self, project_id: str, size: int) -> None:
        self.project_id = project_id
        self.live_from: asyncio.Future[Cursor] = asyncio.get_running_loop().create_future()
        self.full = False
        self._size = size
        self._events: deque[Event] = deque()
        self._wake = asyncio.Event()

    def offer(self, event: Event) -> None:
        if len(self._events) >= self._size:
            self.full = True
            self._events.clear()
        if not self.full:
            self._events.append(event)
        self._wake.set()

    async def take(self, until: float) -> list[Event]:
        """What has come; waits for it. Empty: it is `full`. `TimeoutError` from that time of the loop on."""
        while not self._events and not self.full:
            self._wake.clear()
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        if asyncio.get_running_loop().time() >= until:
            raise TimeoutError
        events = list(self._events)
        self._events.clear()
        return events


class Tail:
    """`queue`: how many events a reader may be behind."""

    def __init__(self, store: Store, *, queue: int = 1000) -> None:
        self._store = store
        self._queue = queue
        self._waiting: list[Subscription] = []
        self._live: set[Subscription] = set()
        self._joined = asyncio.Event()
        self._cursor: Cursor | None = None  # up to where the journals have been handed out; None: nobody follows
        self._tasks = SupervisedTasks("tail")
        self._running = False

    def subscribe(self, project_id: str) -> Subscription:
        """Live from when its `live_from` is known. `leave` it."""
        one = Subscription(project_id, self._queue)
        self._waiting.append(one)
        self._joined.set()
        if not self._running:
            self._running = True
            self._tasks.keep("follow_journals", self._run, most_s=RETRY_S)
        return one

    def leave(self, one: Subscription) -> None:
        self._live.discard(one)
        if one in self._waiting:
            self._waiting.remove(one)

    async def close(self) -> None:
        await self._tasks.close()
        self._running = False
        for one in self._waiting:
            one.live_from.cancel()

    async def _run(self) -> None:
        """Until nobody follows any more."""
        while self._live or self._waiting:
            async with asyncio.timeout(READ_S):
                await self._read()
            await self._changed()
        self._cursor, self._running = None, False

    async def _changed(self) -> None:
        """Until another process has committed, or a reader has come."""
        self._joined.clear()
        if not self._waiting:
            await first_done(self._store.changed(_LOOK_S), self._joined.wait())

    async def _read(self) -> None:
        """Hand out what is new. Who waits joins first, where this read begins."""
        async with self._store.read() as session:
            until = await horizon(self._store, session)
            cursor = self._cursor = until if self._cursor is None else self._cursor
            self._join(cursor)
            projects = {one.project_id for one in self._live}
            while projects and cursor != cursor.joined(until):
                events, end = await read_page(self._store, session, cursor, until, projects)
                for event in events:
                    self._hand_out(event)
                cursor = self._cursor = cursor.joined(end)
                await asyncio.sleep(0)  # a queue holds a page; who is quick takes it before the next
            self._cursor = cursor.joined(until)

    def _join(self, cursor: Cursor) -> None:
        joining, self._waiting = self._waiting, []
        for one in joining:
            if not one.live_from.done():  # else its reader went away in this moment, and leaves in the next
                self._live.add(one)
                one.live_from.set_result(cursor)

    def _hand_out(self, event: Event) -> None:
        for one in self._live:
            if one.project_id == event.project_id:
                one.offer(event)
