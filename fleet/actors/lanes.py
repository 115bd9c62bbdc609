"""An actor's calls in lanes, so that long waits take no place from what is quick.

Ray lets an async actor carry out a number of calls at a time, and the rest waits before it, unseen. Waits and reads of
logs therefore have concurrency groups of their own (`@lane(WATCH)`): however many there are,
starts, claims and signs of life find their places. Ray runs each group in a thread with a loop of its own; what the
call does belongs to the actor's own loop, so `Lanes.run` carries it there.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import ray
from ray.actor import ActorClass

Found = TypeVar("Found")
Kind = TypeVar("Kind")
Method = TypeVar("Method", bound=Callable[..., Any])

WATCH = "watch"  # long polls: for a status, for events, for what is new
LOGS = "logs"  # logs, waiting for their next line, and what a run uses
HEALTH = "health"  # signs of life, what operators and scrapes ask
LANES = {WATCH: 2000, LOGS: 5000, HEALTH: 64}
CALLS = 4000  # of all other calls at a time (`max_concurrency`)


def in_lanes(kind: type[Kind]) -> "ActorClass[Kind]":
    """`@ray.remote` for an actor whose methods may have a lane."""
    make = cast("Callable[..., Callable[[type[Kind]], ActorClass[Kind]]]", ray.remote)
    return make(concurrency_groups=LANES)(kind)


def lane(name: str) -> Callable[[Method], Method]:
    """The method has its places in that lane."""
    return cast("Callable[[Method], Method]", ray.method(concurrency_group=name))


class Lanes:
    """Made in the actor's own loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    async def run(self, work: Callable[[], Coroutine[Any, Any, Found]]) -> Found:
        """What the work gives, done in the actor's own loop. A caller that goes away cancels it."""
        if asyncio.get_running_loop() is self._loop:
            return await work()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), self._loop))
