"""Ends of runs, from the engine's event stream.

A stream can break and the engine can restart, so after every connection the containers are listed once and ends that
no event told are reported then. An end is reported once per runtime object; `remove` forgets it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import structlog

from fleet.node.docker_spec import key_of
from fleet.node.engine import Engine, EngineError, json_lines
from fleet.node.runtime import EngineUnavailable, Exited, Observed, RunKey
from fleet.times import now_ms

log = structlog.get_logger(__name__)

VANISHED = -1  # exit code of a container that someone removed while nobody was looking
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


class ExitWatch:
    """Turns engine events into `Exited`, each run at most once."""

    def __init__(
        self,
        engine: Engine,
        fleet_id: str,
        labels: list[str],
        listing: Callable[[], Awaitable[list[Observed]]],
        tail: Callable[[RunKey], Awaitable[str]],
    ) -> None:
        self._engine, self._fleet_id, self._labels = engine, fleet_id, labels
        self._listing, self._tail = listing, tail
        self._running: set[RunKey] = set()
        self._reported: set[RunKey] = set()
        self._oom: set[RunKey] = set()

    def launched(self, key: RunKey) -> None:
        """A run that must be accounted for, even if it vanishes."""
        if key not in self._reported:
            self._running.add(key)

    def removed(self, key: RunKey) -> None:
        for keys in (self._running, self._reported, self._oom):
            keys.discard(key)

    async def exits(self) -> AsyncIterator[Exited]:
        pause = _FIRST_PAUSE_S
        while True:
            connected = time.monotonic()
            try:
                async for exited in self._connection():
                    yield exited
            except EngineUnavailable as error:
                log.warning("engine_events_lost", error=str(error), retry_s=pause)
            except EngineError as error:
                log.error("engine_events_refused", error=str(error), retry_s=pause)
            if time.monotonic() - connected > _LONGEST_PAUSE_S:
                pause = _FIRST_PAUSE_S
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    async def _connection(self) -> AsyncIterator[Exited]:
        filters = {"type": ["container"], "event": ["die", "oom"], "label": self._labels}
        async with self._engine.stream("GET", "/events", {"filters": orjson.dumps(filters).decode()}) as answer:
            # The stream is open, so nothing that ends from now on is missed; what ended before is in the list.
            for exited in await self._missed():
                yield exited
            async for event in json_lines(answer):
                exited = await self._event(event)
                if exited is not None:
                    yield exited

    async def _missed(self) -> list[Exited]:
        observed = await self._listing()
        found: list[Exited] = []
        for run in observed:
            if run.running:
                self._running.add(run.key)
            elif run.exit_code is not None and run.key not in self._reported:
                at = run.ended_at or now_ms()
                oom = run.exit_code != 0 and (run.oom or run.key in self._oom)
                found.append(await self._report(run.key, at, run.exit_code, oom=oom))
        for key in self._running - {run.key for run in observed}:
            self._running.discard(key)
            self._reported.add(key)
            found.append(Exited(key, now_ms(), VANISHED, tail="The container was removed by someone else."))
        return found

    async def _event(self, event: dict[str, Any]) -> Exited | None:
        attributes: dict[str, str] = event["Actor"]["Attributes"]
        key = key_of(attributes, attributes.get("name", ""), self._fleet_id)
        if key is None or key in self._reported:
            return None
        if event["Action"] == "oom":
            self._oom.add(key)
            return None
        code = int(attributes.get("exitCode", VANISHED))
        return await self._report(key, event["timeNano"] // 1_000_000, code, oom=code != 0 and key in self._oom)

    async def _report(self, key: RunKey, at: int, code: int, *, oom: bool) -> Exited:
        self._reported.add(key)
        self._running.discard(key)
        if code == 0:
            # The engine shows a log only after it has freed the container's network, ~80 ms later; a game that
            # ended well has no last words to wait for.
            return Exited(key, at, code)
        try:
            tail = await self._tail(key)
        except EngineUnavailable as error:
            log.warning("exit_tail_lost", key=str(key), error=str(error))
            tail = ""
        return Exited(key, at, code, oom=oom, tail=tail)
