"""One timer per server that has a deadline (ttl, never ready, retry): `due` is called when it has come."""

import asyncio
from collections.abc import Callable

from fleet.region.model import Policy
from fleet.region.plan import deadline
from fleet.store.tables import Server
from fleet.times import now_ms


class Deadlines:
    """`set` after every change of a server's row; a server without a deadline has no timer."""

    def __init__(self, policy: Callable[[], Policy], due: Callable[[Server], None]) -> None:
        self._policy = policy
        self._due = due
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def set(self, server: Server) -> None:
        self.clear(server.instance_id)
        at = deadline(server, now_ms(), self._policy())
        if at is not None:
            delay = max(0.0, (at - now_ms()) / 1000) + 0.001
            self._timers[server.instance_id] = asyncio.get_running_loop().call_later(delay, self._due, server)

    def close(self) -> None:
        for instance_id in list(self._timers):
            self.clear(instance_id)

    def clear(self, instance_id: str) -> None:
        if timer := self._timers.pop(instance_id, None):
            timer.cancel()
