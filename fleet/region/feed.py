"""Who waits for which server to reach a status: told once the change is on disk.

A replica asks with everything that its clients wait for, and is answered when the first of them is reached, so a
change that nobody waits for costs no call. A newer question of the same replica takes the place of the older one, which
is answered with nothing.
"""

import asyncio
from collections.abc import Callable, Iterable

Want = tuple[str, frozenset[str]]  # instance id, statuses


class StatusBell:
    """`status(id)`: the live row's status; None if there is no such row (it has ended)."""

    def __init__(self, status: Callable[[str], str | None]) -> None:
        self._status = status
        self._asked: dict[str, tuple[dict[str, frozenset[str]], asyncio.Event]] = {}
        self._waiters: dict[str, set[str]] = {}  # id -> who asked for it
        self._rung = asyncio.Event()

    async def until(self, who: str, wants: Iterable[Want], timeout_s: float) -> list[str]:
        """Which of them are reached, as soon as one is; none at the timeout or when the same asks again."""
        mine = dict(wants)
        self._forget(who)
        if found := self._reached(mine):
            return found
        event = asyncio.Event()
        self._asked[who] = (mine, event)
        for name in mine:
            self._waiters.setdefault(name, set()).add(who)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    await event.wait()
                    event.clear()
                    if self._asked.get(who, (None,))[0] is not mine:
                        return []
                    if found := self._reached(mine):
                        return found
        except TimeoutError:
            return []
        finally:
            if self._asked.get(who, (None,))[0] is mine:
                self._forget(who)

    def ring(self, names: Iterable[str]) -> None:
        """These servers have changed, on disk."""
        self._rung.set()
        for name in names:
            for who in self._waiters.get(name, ()):
                self._asked[who][1].set()

    async def rung(self, timeout_s: float) -> None:
        """Return when any server has changed, or at the timeout."""
        self._rung.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._rung.wait()
        except TimeoutError:
            return

    def _reached(self, wants: dict[str, frozenset[str]]) -> list[str]:
        return [name for name, statuses in wants.items() if (self._status(name) or "stopped") in statuses]

    def _forget(self, who: str) -> None:
        if who not in self._asked:
            return
        wants, event = self._asked.pop(who)
        for name in wants:
            waiters = self._waiters[name]
            waiters.discard(who)
            if not waiters:
                del self._waiters[name]
        event.set()
