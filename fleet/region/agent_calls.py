"""Calls to one agent, each with an end, and what their errors say of the agent."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from fleet.errors import FleetError, Unavailable
from fleet.region.link import Link
from fleet.times import now_ms


class NotHeard(Exception):
    """The agent did not answer. `since`: when it was there for the last time (ms)."""

    def __init__(self, since: int, why: str) -> None:
        super().__init__(why)
        self.since = since


class Starting(Exception):
    """The agent answers that it is not ready, and what it misses."""


async def hear(link: Link, method: str, *arguments: Any, timeout_s: float) -> Any:
    """Follow it: NotHeard, Starting, ActorDiedError if Ray does not start it again; else what the agent raised."""
    try:
        return await _call(link, method, arguments, timeout_s)
    except ActorDiedError:
        raise
    except Unavailable as error:
        raise Starting(str(error)) from None
    except RayActorError as error:  # the connection broke just now
        raise NotHeard(now_ms(), type(error).__name__) from None
    except TimeoutError:
        # If this process stood still meanwhile, no more was listened to than the wait's own time.
        raise NotHeard(max(link.heard, now_ms() - int(timeout_s * 1000)), f"no answer to {method}") from None


async def command(link: Link, node_id: str, method: str, *arguments: Any, timeout_s: float) -> Any:
    """Have it do something: the FleetError that it raised, or `Unavailable` if it is silent or falls silent."""
    if not link.synced:
        raise Unavailable(f"Node {node_id} does not answer now.")
    try:
        return await _call(link, method, arguments, timeout_s)
    except (RayError, TimeoutError) as error:
        if isinstance(error, RayTaskError) and isinstance(error.cause, FleetError):
            raise error.cause from None
        if isinstance(error, RayTaskError):
            raise Unavailable(f"Node {node_id} could not do it ({error.cause!r}).") from error
        raise Unavailable(f"Node {node_id} does not answer ({type(error).__name__}).") from error


async def _call(link: Link, method: str, arguments: tuple[Any, ...], timeout_s: float) -> Any:
    async with asyncio.timeout(timeout_s) as wait:
        with _waiting(link, wait):
            return await getattr(link.handle, method).remote(*arguments)


@contextmanager
def _waiting(link: Link, wait: asyncio.Timeout) -> Generator[None]:
    """While inside, the wait ends when the agent falls silent."""
    link.waits.add(wait)
    try:
        yield
    finally:
        link.waits.discard(wait)
