"""Which servers changed, for those who wait: a numbered feed that replicas long-poll.

One call per replica waits for all its clients. The feed tells ids only, after the change is on disk; the reader takes
the row from the database.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from itertools import takewhile

KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Changes:
    """`ids` changed since the cursor asked with; `lost`: some may be missing, so look at everything awaited."""

    cursor: str
    ids: tuple[str, ...]
    lost: bool = False


class ChangeFeed:
    """Cursors carry the feed's own name, since a new manager counts anew."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seq = 0
        self._recent: deque[tuple[int, str]] = deque(maxlen=KEPT)
        self._changed = asyncio.Event()

    def publish(self, ids: list[str]) -> None:
        if not ids:
            return
        for instance_id in ids:
            self._seq += 1
            self._recent.append((self._seq, instance_id))
        self._changed.set()

    async def after(self, cursor: str | None, timeout_s: float) -> Changes:
        """What changed after the cursor, waiting up to the timeout for something. No cursor: only where we are."""
        name, _, number = (cursor or "").partition("#")
        if name != self._name:
            return Changes(self.cursor, (), lost=True)
        since = int(number)
        if since == self._seq:
            self._changed.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()
            except TimeoutError:
                return Changes(self.cursor, ())
        lost = bool(self._recent) and self._recent[0][0] > since + 1
        newer = takewhile(lambda entry: entry[0] > since, reversed(self._recent))
        return Changes(self.cursor, tuple(dict.fromkeys(name for _, name in newer)), lost)

    @property
    def cursor(self) -> str:
        return f"{self._name}#{self._seq}"
