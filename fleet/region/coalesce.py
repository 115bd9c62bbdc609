"""Many callers, few calls: what gathers while calls are under way goes out together in the next one.

An actor call costs milliseconds however much it carries. With at most two under way, the first caller waits for
nothing, and under load each call carries all that has come since: throughput grows with the load by itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

from fleet.actors.tasks import SupervisedTasks
from fleet.errors import TooMany, Unavailable
from fleet.limits.fair import FairQueue

In = TypeVar("In")
Out = TypeVar("Out")

MAX_BATCH = 256
OF_ONE = 64
MOST = 2000
UNDER_WAY = 2


class Coalescer(Generic[In, Out]):
    """`send(items)` gives one answer per item, in order. If it raises, or gives fewer answers than items, all callers
    of that batch who have none get an error: nobody waits for a batch that has ended. `send` must end.

    `owner`: whose an item is. Each owner has at most `OF_ONE` items in a batch while others wait, and `MOST` waiting in
    all (`TooMany` beyond), so that a flood of one delays the others by its share of a batch, not by its length."""

    def __init__(
        self,
        send: Callable[[list[In]], Awaitable[Sequence[Out]]],
        owner: Callable[[In], str] = lambda _item: "",
    ) -> None:
        self._send = send
        self._owner = owner
        self._waiting: FairQueue[tuple[In, asyncio.Future[Out]]] = FairQueue()
        self._tasks = SupervisedTasks("batches")
        self._under_way: set[asyncio.Task[None]] = set()

    async def ask(self, item: In) -> Out:
        """The answer for this item. A caller that goes away does not hurt its batch."""
        owner = self._owner(item)
        if owner and self._waiting.waiting(owner) >= MOST:
            raise TooMany(f"The project has {MOST} calls waiting here.")
        future: asyncio.Future[Out] = asyncio.get_running_loop().create_future()
        self._waiting.put(owner, (item, future))
        self._pump()
        return await future

    def _pump(self, done: asyncio.Task[None] | None = None) -> None:
        if done is not None:
            self._under_way.discard(done)
        while self._waiting and len(self._under_way) < UNDER_WAY:
            batch = self._waiting.take_some(MAX_BATCH, OF_ONE)
            # For many requests, so its log lines carry the id of none. What fails its callers hear, and ask again.
            task = Context().run(self._tasks.once, "send", self._carry(batch))
            self._under_way.add(task)
            task.add_done_callback(self._pump)

    async def _carry(self, batch: list[tuple[In, asyncio.Future[Out]]]) -> None:
        missed: BaseException = Unavailable("The answer to this was lost. Look before you repeat it.")
        try:
            answers = await self._send([item for item, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        except Exception as error:
            missed = error
        finally:
            for _, future in batch:
                if not future.done():
                    future.set_exception(missed)
