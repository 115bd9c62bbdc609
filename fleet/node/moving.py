"""Blocking work that may take as long as it likes, but must move: who waits for it is let go when it stands still."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from fleet.errors import Unavailable

T = TypeVar("T")
_LOOKS = 10  # per time without progress


async def while_moving(work: Callable[[], T], progress: Callable[[], object], no_progress_s: float, what: str) -> T:
    """The result of `work`. Unavailable when `progress()` has been the same, or has not answered, for so many seconds.

    Both block, each in a thread of its own: one that hangs cannot be ended, and must not take the place of others in
    the pool. It goes on if it ever moves again.
    """
    done = _in_thread(work)
    seen: object = None
    looks = 0
    while not done.done():
        await asyncio.wait({done}, timeout=no_progress_s / _LOOKS)
        if done.done():
            break
        looking = _in_thread(progress)
        await asyncio.wait({looking}, timeout=no_progress_s)
        now = looking.result() if looking.done() else seen
        seen, looks = (now, 0) if now != seen else (seen, looks + 1 if looking.done() else _LOOKS)
        if looks >= _LOOKS and not done.done():
            raise Unavailable(f"{what} has stood still for {no_progress_s:g} s.")
    return done.result()


def _in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody may wait for it any more

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # pyright: ignore[reportArgumentType]

    def run() -> None:
        try:
            result, error = work(), None
        except BaseException as caught:
            result, error = None, caught
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="blocking-work", daemon=True).start()
    return future
