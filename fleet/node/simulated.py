"""The simulated runtime: nothing runs. Runs are rows in memory that sleep as a real game boots, and end as it ends.

It lets thousands of servers on hundreds of nodes stand under the real managers, agents, database and API. Ports are
open by declaration only: no player can connect, and the host that players are told is `….simulated.invalid`.

What becomes of a run (`fate_of`, pure) is decided at its launch from the settings' seed and the run's key. Runs survive
their agent as containers would: each change appends the run's row to the node's file, and a new runtime object reads
it and continues, with what was due meanwhile.
"""

import asyncio
import math
import os
import random
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import structlog

from fleet.errors import Conflict, NotFound
from fleet.node.launches import launch_gate
from fleet.node.log_tokens import Counter, format_ns, page
from fleet.node.runtime import (
    BuildRef,
    Exited,
    LaunchSpec,
    LogLine,
    Observed,
    Port,
    PortTaken,
    Readiness,
    RunKey,
    RuntimePlace,
)
from fleet.node.series import Usage
from fleet.node.words import Heard, Word
from fleet.settings import SIMULATED, SimulatedSettings
from fleet.times import now_ms

log = structlog.get_logger(__name__)

NAME = "simulated"
MOST_LINES = 50
_SPARE_ROWS = 500


@dataclass(frozen=True, slots=True)
class Fate:
    """Seconds from the launch to the start, from there to open ports, and to an end that nobody asked for."""

    create_s: float
    boot_s: float
    ends_after_s: float | None = None
    exit_code: int = 1


def fate_of(key: RunKey, environment: dict[str, str], habits: SimulatedSettings) -> Fate:
    """The same key has the same fate. The run's environment may set SIMULATED_BOOT_S, _END_AFTER_S, _EXIT_CODE."""
    chance = random.Random(f"{habits.seed}/{key}")
    boot_s = habits.boot_s * chance.lognormvariate(0.0, habits.boot_spread)
    crashes = chance.random() < habits.crash_share
    ends_after_s = chance.expovariate(1 / habits.crash_after_s) if crashes else None
    if (wished := _number(environment, "SIMULATED_BOOT_S")) is not None:
        boot_s = wished
    if (wished := _number(environment, "SIMULATED_END_AFTER_S")) is not None:
        ends_after_s = wished
    return Fate(habits.create_s, boot_s, ends_after_s, int(_number(environment, "SIMULATED_EXIT_CODE") or 0) or 1)


def _number(environment: dict[str, str], name: str) -> float | None:
    try:
        number = float(environment[name])
    except (KeyError, ValueError):
        return None
    return max(0.0, number) if math.isfinite(number) else None


@dataclass(slots=True)
class SimulatedRun:
    """One run; times in ms. `ends_at`: when it will crash by itself. `lines`: (ns, text) of its log."""

    key: RunKey
    ports: tuple[Port, ...]
    labels: dict[str, str]
    memory_mb: int
    cores: float
    started_at: int
    ready_at: int
    ends_at: int | None
    exit_code: int
    config: dict[str, Any]
    lines: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    ended_at: int | None = None
    frozen_at: int | None = None

    def say(self, text: str) -> None:
        """Another line of its log; each has a time of its own."""
        at = now_ms() * 1_000_000
        self.lines.append((max(at, self.lines[-1][0] + 1) if self.lines else at, text))
        del self.lines[:-MOST_LINES]

    def observed(self) -> Observed:
        return Observed(
            self.key,
            self.ended_at is None,
            self.ports,
            self.labels,
            self.started_at,
            self.ended_at,
            None if self.ended_at is None else self.exit_code,
            memory_mb=self.memory_mb,
            cpus=self.cores,
            frozen=self.frozen_at is not None,
        )

    @staticmethod
    def of_json(row: dict[str, Any]) -> "SimulatedRun":
        ports = tuple(Port(**port) for port in row.pop("ports"))
        return SimulatedRun(key=RunKey(**row.pop("key")), ports=ports, **row)


class RunFile:
    """The runs of one node on disk: a JSON row a change, the newest of a key counts, `gone` ends it.

    Survives a kill of its process, as containers do; not a power cut, which containers do not survive either.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = 0
        self._fd = -1

    def open(self) -> dict[RunKey, SimulatedRun]:
        """What the file says, and the file made short."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        runs = self.read()
        self._rewrite(runs)
        return runs

    def read(self) -> dict[RunKey, SimulatedRun]:
        """What the file says; nothing is changed."""
        rows: dict[RunKey, dict[str, Any] | None] = {}
        for line in self._path.read_bytes().splitlines() if self._path.exists() else ():
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:  # the last row of a process that was killed
                continue
            rows[RunKey(**row["key"])] = None if row.get("gone") else row
        return {key: SimulatedRun.of_json(row) for key, row in rows.items() if row is not None}

    def put(self, run: SimulatedRun, runs: dict[RunKey, SimulatedRun]) -> None:
        self._append(orjson.dumps(run), runs)

    def drop(self, key: RunKey, runs: dict[RunKey, SimulatedRun]) -> None:
        self._append(orjson.dumps({"key": asdict(key), "gone": True}), runs)

    def _append(self, row: bytes, runs: dict[RunKey, SimulatedRun]) -> None:
        os.write(self._fd, row + b"\n")
        self._rows += 1
        if self._rows > 4 * len(runs) + _SPARE_ROWS:
            self._rewrite(runs)

    def _rewrite(self, runs: dict[RunKey, SimulatedRun]) -> None:
        draft = self._path.with_suffix(".part")
        draft.write_bytes(b"".join(orjson.dumps(run) + b"\n" for run in runs.values()))
        draft.replace(self._path)
        self.close()
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        self._rows = len(runs)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SimulatedRuntime:
    """Runtime (see `fleet.node.runtime`) that launches nothing. `node`: which of the machine's simulated nodes."""

    name = NAME
    networks = None

    def __init__(self, place: RuntimePlace, habits: SimulatedSettings, node: str = "0") -> None:
        self._node = node
        self._region = place.region
        self.habits = habits
        self._file = RunFile(run_file(place.servers_dir.parent, place.region, node))
        self._runs: dict[RunKey, SimulatedRun] = {}
        self._timers: dict[RunKey, asyncio.TimerHandle] = {}
        self._changed: dict[RunKey, asyncio.Event] = {}
        self._ends: asyncio.Queue[RunKey] = asyncio.Queue()
        self._reported: set[RunKey] = set()
        self._creating = launch_gate()

    async def start(self) -> None:
        log.warning(SIMULATED, region=self._region, node=self._node)
        self._runs = self._file.open()
        for run in self._runs.values():
            self._expect_end(run)

    def warnings(self) -> tuple[str, ...]:
        return ()

    async def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._file.close()

    async def prepare(self, build: BuildRef) -> None:
        """Nothing is unpacked, since nothing will run."""

    # Launching --------------------------------------------------------------------------------------------------

    async def launch(self, spec: LaunchSpec) -> None:
        async with self._creating.place(spec.project_id):
            run = self._runs.get(spec.key)
            if run is None:
                taken = self._taken(spec.ports)
                if taken:
                    raise PortTaken(taken, f"in use: {', '.join(str(port.external) for port in taken)}")
                run = self._make(spec)
            await asyncio.sleep(max(0, run.started_at - now_ms()) / 1000)

    def _taken(self, ports: tuple[Port, ...]) -> tuple[Port, ...]:
        held = {(p.external, p.protocol) for run in self._runs.values() if run.ended_at is None for p in run.ports}
        return tuple(port for port in ports if (port.external, port.protocol) in held)

    def _make(self, spec: LaunchSpec) -> SimulatedRun:
        fate = fate_of(spec.key, spec.environment, self.habits)
        started_at = now_ms() + int(fate.create_s * 1000)
        ends_at = None if fate.ends_after_s is None else started_at + int(fate.ends_after_s * 1000)
        run = self._runs[spec.key] = SimulatedRun(
            spec.key,
            spec.ports,
            spec.labels,
            spec.memory_mb,
            spec.cpus if spec.dedicated else 0.0,
            started_at,
            started_at + int(fate.boot_s * 1000),
            ends_at,
            fate.exit_code,
            spec.config,
        )
        run.say(f"simulated game {spec.key}: nothing runs. config {orjson.dumps(spec.config).decode()}")
        self._keep(run)
        self._expect_end(run)
        return run

    async def readiness(self, spec_ports: tuple[Port, ...], key: RunKey) -> Readiness:
        run = self._runs.get(key)
        if run is None or run.ended_at is not None or now_ms() < run.ready_at:
            return Readiness(missing=spec_ports)
        declared = {(port.internal, port.protocol) for port in run.ports}
        return Readiness(missing=tuple(p for p in spec_ports if (p.internal, p.protocol) not in declared))

    # Ends -------------------------------------------------------------------------------------------------------

    def _expect_end(self, run: SimulatedRun) -> None:
        if run.ended_at is not None:
            self._ends.put_nowait(run.key)
        elif run.ends_at is not None and run.frozen_at is None:
            delay_s = max(0, run.ends_at - now_ms()) / 1000
            self._timers[run.key] = asyncio.get_running_loop().call_later(delay_s, self._crash, run)

    def _crash(self, run: SimulatedRun) -> None:
        if run.exit_code:
            run.say(f"simulated crash, exit code {run.exit_code}")
        self._end(run, run.exit_code)

    def _end(self, run: SimulatedRun, exit_code: int) -> None:
        if run.ended_at is not None:
            return
        if timer := self._timers.pop(run.key, None):
            timer.cancel()
        run.ended_at, run.exit_code, run.frozen_at = now_ms(), exit_code, None
        self._keep(run)
        self._ends.put_nowait(run.key)

    async def exits(self) -> AsyncIterator[Exited]:
        while True:
            run = self._runs.get(await self._ends.get())
            if run is None or run.ended_at is None or run.key in self._reported:
                continue
            self._reported.add(run.key)
            tail = "\n".join(text for _, text in run.lines[-5:]) if run.exit_code else ""
            yield Exited(run.key, run.ended_at, run.exit_code, tail=tail)

    async def stop(self, key: RunKey, grace_s: float) -> None:
        run = self._runs.get(key)
        if run is None or run.ended_at is not None:
            return
        polite = self.habits.stop_s <= grace_s
        await asyncio.sleep(min(self.habits.stop_s, grace_s))
        run.say("simulated game stops")
        self._end(run, 0 if polite else 137)

    async def remove(self, key: RunKey) -> None:
        """As the protocol says; Conflict if it still runs."""
        if (run := self._runs.get(key)) is None:
            return
        if run.ended_at is None:
            raise Conflict("The server still runs; stop it first.")
        del self._runs[key]
        self._reported.discard(key)
        self._file.drop(key, self._runs)
        (self._changed.pop(key, None) or asyncio.Event()).set()

    async def remove_orphans(self) -> int:
        return 0

    async def full_disks(self, keys: Collection[RunKey]) -> frozenset[RunKey]:
        return frozenset()

    async def usage(self, keys: Collection[RunKey]) -> dict[RunKey, Usage]:
        """What does not run uses nothing."""
        return {}

    async def serve(self, key: RunKey) -> None:
        """Nobody asks."""

    # The running game -------------------------------------------------------------------------------------------

    def hear(self, heard: Heard) -> None:
        """Nothing runs there, so nothing speaks."""

    def say(self, key: RunKey, word: Word) -> None: ...

    async def rewrite_config(self, key: RunKey, config: dict[str, Any]) -> None:
        run = self._known(key)
        run.config = config
        run.say(f"simulated game reads its config again: {orjson.dumps(config).decode()}")
        self._keep(run)

    async def freeze(self, key: RunKey) -> None:
        """Frozen, it does not come nearer to its end."""
        run = self._running(key)
        if run.frozen_at is None:
            run.frozen_at = now_ms()
            if timer := self._timers.pop(key, None):
                timer.cancel()
            self._keep(run)

    async def thaw(self, key: RunKey) -> None:
        run = self._running(key)
        if run.frozen_at is not None:
            if run.ends_at is not None:
                run.ends_at += now_ms() - run.frozen_at
            run.frozen_at = None
            self._keep(run)
            self._expect_end(run)

    def _known(self, key: RunKey) -> SimulatedRun:
        if (run := self._runs.get(key)) is None:
            raise NotFound(f"There is no run {key} on this node.")
        return run

    def _running(self, key: RunKey) -> SimulatedRun:
        run = self._known(key)
        if run.ended_at is not None:
            raise NotFound(f"Run {key} does not run any more.")
        return run

    def _keep(self, run: SimulatedRun) -> None:
        self._file.put(run, self._runs)
        if waiting := self._changed.pop(run.key, None):
            waiting.set()

    async def logs(self, key: RunKey, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        return page(_lines(self._known(key)), after, since_ms, limit)

    async def follow(self, key: RunKey, after: str | None) -> AsyncIterator[LogLine]:
        run = self._known(key)
        while True:
            changed = self._changed.setdefault(key, asyncio.Event())
            for line in page(_lines(run), after, None, MOST_LINES):
                after = line.token
                yield line
            if run.ended_at is not None:
                return
            await changed.wait()

    # Last, since inside the class its name hides the built-in one.
    async def list(self) -> list[Observed]:
        return [run.observed() for run in self._runs.values()]


def _lines(run: SimulatedRun) -> Iterator[LogLine]:
    counter = Counter()
    for ns, text in run.lines:
        at = format_ns(ns)
        yield LogLine(at, text, "stdout", counter.token(at))


def run_file(home: Path, region: str, node: str) -> Path:
    """Where a simulated node keeps its runs. The file is there as long as the node is."""
    return home / "simulated" / f"{region}.{node}.jsonl"
