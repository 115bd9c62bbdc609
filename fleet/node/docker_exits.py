"""Ends of runs, from the engine's event stream.

A stream can break and the engine can restart, so after every connection the containers are listed once and ends that
no event told are reported then. An end is reported once per runtime object; `remove` forgets it.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol

import orjson
import structlog

from fleet.actors.tasks import SupervisedTasks
from fleet.node.docker_networks import ROLE
from fleet.node.docker_spec import key_of
from fleet.node.engine import CALL_S, Engine, EngineError, json_lines
from fleet.node.reconcile import REMOVED, VANISHED_CODE
from fleet.node.runtime import EngineUnavailable, Exited, Networks, Observed, RunKey
from fleet.times import now_ms

log = structlog.get_logger(__name__)

CUT_OFF = "The game's network was removed by someone else, so it was ended."
_LISTED_LATER_S = 10.0  # it takes a tenth of a second: until the container's network is freed
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


class Containers(Protocol):
    """What the watch must know and do beyond events."""

    async def tail(self, key: RunKey) -> str: ...

    async def stop(self, key: RunKey, grace_s: float) -> None: ...

    async def list(self) -> list[Observed]: ...


class ExitWatch:
    """Turns engine events into `Exited`, each run at most once."""

    def __init__(
        self,
        engine: Engine,
        fleet_id: str,
        labels: list[str],
        networks: Networks,
        containers: Containers,
    ) -> None:
        self._engine, self._fleet_id, self._labels = engine, fleet_id, labels
        self._networks, self._containers = networks, containers
        self._running: set[RunKey] = set()
        self._reported: set[RunKey] = set()
        self._oom: set[RunKey] = set()
        self._joined: dict[str, RunKey] = {}
        self._cut_off: set[RunKey] = set()
        self._tasks = SupervisedTasks("docker_exits")

    def launched(self, key: RunKey, network: str | None) -> None:
        """A run that must be accounted for, even if it vanishes, and the warm network that it has joined."""
        if key not in self._reported:
            self._running.add(key)
            if network is not None:
                self._joined[network] = key

    def removed(self, key: RunKey) -> None:
        for keys in (self._running, self._reported, self._oom, self._cut_off):
            keys.discard(key)
        self._joined = {network: joined for network, joined in self._joined.items() if joined != key}

    async def close(self) -> None:
        await self._tasks.close()

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
        since = time.time() - _LISTED_LATER_S
        query = {"filters": orjson.dumps(filters).decode(), "since": f"{since:.3f}"}
        connected_ns = time.time_ns()
        async with self._engine.stream("GET", "/events", query, silence_s=None, open_s=CALL_S) as answer:
            # The stream is open, so nothing that ends from now on is missed. What ended before is in the list; but the
            # engine tells of an end before it lists it, so the last seconds' events come again.
            for exited in await self._missed():
                yield exited
            async for event in json_lines(answer):
                exited = await self._event(event, again=event["timeNano"] < connected_ns)
                if exited is not None:
                    yield exited

    async def _missed(self) -> list[Exited]:
        networks = {network.name for network in await self._networks.list()}
        observed = await self._containers.list()
        found: list[Exited] = []
        for run in observed:
            if run.running:
                self.launched(run.key, run.network)
                if run.network is not None and run.network not in networks:
                    self._network_gone(run.network)
            elif run.exit_code is not None and run.key not in self._reported:
                at = run.ended_at or now_ms()
                oom = run.exit_code != 0 and (run.oom or run.key in self._oom)
                found.append(await self._report(run.key, at, run.exit_code, oom=oom))
        for key in self._running - {run.key for run in observed}:
            self._running.discard(key)
            self._reported.add(key)
            found.append(Exited(key, now_ms(), VANISHED_CODE, tail=REMOVED))
        return found

    async def _event(self, event: dict[str, Any], *, again: bool) -> Exited | None:
        """`again`: it may have been told already, so it counts for runs that are held to be running only."""
        attributes: dict[str, str] = event["Actor"]["Attributes"]
        if ROLE in attributes and event["Action"] == "die":
            self._network_gone(attributes.get("name", ""))
            return None
        key = key_of(attributes, attributes.get("name", ""), self._fleet_id)
        if key is None or key in self._reported or (again and key not in self._running):
            return None
        if event["Action"] == "oom":
            self._oom.add(key)
            return None
        code = int(attributes.get("exitCode", VANISHED_CODE))
        return await self._report(key, event["timeNano"] // 1_000_000, code, oom=code != 0 and key in self._oom)

    def _network_gone(self, name: str) -> None:
        """Someone removed a sandbox. Its game cannot be reached any more, so it is ended: that tells everybody."""
        key = self._joined.pop(name, None)
        if key in self._running and key not in self._cut_off:
            log.error("network_of_a_game_lost", key=str(key), network=name)
            self._cut_off.add(key)
            self._tasks.keep("cut_off", lambda: self._containers.stop(key, 0), run=str(key))

    async def _report(self, key: RunKey, at: int, code: int, *, oom: bool) -> Exited:
        if key in self._cut_off:
            code = code or VANISHED_CODE  # however politely it went, it did not want to
        if code == 0:
            # The engine shows a log only after it has freed the container's network, ~80 ms later; a game that
            # ended well has no last words to wait for.
            return self._told(Exited(key, at, code))
        try:
            tail = await self._containers.tail(key)
        except Exception as error:  # an end without its last words is an end
            log.warning("exit_tail_lost", key=str(key), error=repr(error))
            tail = ""
        if key in self._cut_off:
            tail = f"{tail}\n{CUT_OFF}".strip()
        return self._told(Exited(key, at, code, oom=oom, tail=tail))

    def _told(self, exited: Exited) -> Exited:
        self._reported.add(exited.key)
        self._running.discard(exited.key)
        return exited
