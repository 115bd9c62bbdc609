"""Counting from afar: a replica on another node than the counts takes requests ahead, some at a time.

It asks the counts' node (`door.py`) for up to a twentieth of a key's limit at once, and uses what it was given within a
twentieth of a second, or lets it lapse. So no window holds more than a twentieth too many, no more than a twentieth
per node is taken and not used, and a call is made for many requests. Calls that come together go together.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from fleet.limits.windows import SharedWindows, Taken
from fleet.region.coalesce import Coalescer

log = structlog.get_logger(__name__)

Ask = tuple[int, int, int]  # tag, limit, at most
SHARE = 20
LEASE_S = 0.05
REFUSED_S = 0.01  # a refusal is believed so long; longer would leave unused what becomes free meanwhile
AWAY_S = 5.0  # so long a node of the counts that did not answer is not asked, and no request waits for it
_MAX_PURSES = 10_000


@dataclass(slots=True)
class _Purse:
    """What one key has here. `until` ends it; `none` says that there is no more until then."""

    left: int
    until: float
    last: Taken
    none: bool


class LeasedWindows:
    """`ask` carries asks to the node of the counts. While that does not answer, this node counts by itself: it is
    better to let a key have its limit on each node for a while than to refuse it everywhere."""

    def __init__(
        self,
        ask: Callable[[list[Ask]], Awaitable[Sequence[Taken]]],
        own: SharedWindows,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = Coalescer(ask)
        self._own = own
        self._clock = clock
        self._purses: dict[int, _Purse] = {}
        self._away_until = 0.0

    def try_take(self, tag: int, limit: int) -> Taken | None:
        """From what is here already; None if it has to be fetched."""
        purse = self._purses.get(tag)
        if purse is None or purse.until <= self._clock():
            return None
        if purse.none:
            return purse.last._replace(granted=0)
        if not purse.left:
            return None
        purse.left -= 1
        return purse.last._replace(granted=1, remaining=purse.last.remaining + purse.left)

    async def fetch(self, tag: int, limit: int) -> Taken:
        began = self._clock()
        if began < self._away_until:
            return self._own.take(tag, limit)
        try:
            got = await self._calls.ask((tag, limit, max(1, limit // SHARE)))
        except Exception as error:
            self._away_until = self._clock() + AWAY_S
            log.warning("limits_counted_here", error=repr(error), for_s=AWAY_S)
            return self._own.take(tag, limit)
        self._keep(tag, got, began)
        return got._replace(granted=min(got.granted, 1), remaining=got.remaining + max(0, got.granted - 1))

    def _keep(self, tag: int, got: Taken, began: float) -> None:
        if not got.granted:
            self._purses[tag] = _Purse(0, began + min(got.retry_s, REFUSED_S), got, none=True)
            return
        purse, until = self._purses.get(tag), began + LEASE_S
        if purse is not None and purse.left and purse.until > self._clock():
            purse.left += got.granted - 1
            purse.until, purse.last = min(purse.until, until), got
            return
        if len(self._purses) >= _MAX_PURSES:
            self._purses.clear()
        self._purses[tag] = _Purse(got.granted - 1, until, got, none=False)
