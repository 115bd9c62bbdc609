"""Wait, no longer than a bound, for a condition that tells nobody when it holds."""

import asyncio
import time
from collections.abc import Callable


def eventually(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Return as soon as it holds; AssertionError that says what did not happen."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"within {timeout_s:.0f} s it did not happen that {what}"
        time.sleep(0.1)


async def soon(condition: Callable[[], bool], timeout_s: float, what: str = "it holds") -> None:
    """The same within this process's event loop, where what is waited for runs too."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"within {timeout_s:g} s it did not happen that {what}"
        await asyncio.sleep(0.002)
