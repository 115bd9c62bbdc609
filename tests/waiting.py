"""Wait for a condition of another process that tells nobody."""

import time
from collections.abc import Callable


def eventually(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Return as soon as it holds; AssertionError that says what did not happen."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"within {timeout_s:.0f} s it did not happen that {what}"
        time.sleep(0.1)
