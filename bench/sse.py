"""How long until another player sees a change: `python -m bench.sse [--quick]`.

1,000 streams are open on a whole fleet (proxy, replicas, keeper, a durable commit) and 1,000 on a bare uvicorn that
only echoes (`sse_echo.py`). One player changes something, and the time from sending that until it stands in the stream
of another is taken; both sides take turns. Targets: at most three times the echo's median, and at most 100 KB of memory
for each stream. Everything is on loopback.
"""

import argparse
import asyncio
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from bench.own_fleet import OwnFleet, own_fleet

ROOT = Path(__file__).parent.parent
STREAMS = 1000
OPENED_AT_ONCE = 50
WARM = 100  # open, and used, before memory is looked at
TIMES, KB = 3.0, 100.0
LOBBIES = "/api/v3/lobbies/bench"
FREE = dict.fromkeys(("LOBBY_READS_PER_S", "LOBBY_WRITES_PER_S", "LOBBY_WRITES_PER_ADDRESS_PER_S"), "100000")


class Wire:
    """One connection that speaks just enough HTTP."""

    def __init__(self, url: str) -> None:
        at = urlsplit(url)
        self._at = (at.hostname or "", at.port or 80)
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def open(self) -> "Wire":
        self._reader, self._writer = await asyncio.open_connection(*self._at)
        return self

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> None:
        said = {"host": "bench", **headers, "content-type": "application/json", "content-length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in said.items())
        self._writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)

    async def answer(self) -> tuple[int, bytes]:
        status = int((await self._reader.readline()).split()[1])
        length = 0
        while (line := await self._reader.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return status, await self._reader.readexactly(length)

    async def ask(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
        if self._reader.at_eof():  # idle for long
            await self.open()
        self.send(method, path, headers, body)
        status, text = await self.answer()
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {text[:300]!r}")
        return text

    async def lines(self, told: "Told", name: str) -> None:
        """Read events for ever."""
        while line := await self._reader.readline():
            if line.startswith(b"data: "):
                told.hear(name, line)

    def close(self) -> None:
        self._writer.close()


class Told:
    """What the streams heard."""

    def __init__(self) -> None:
        self._awaited: dict[str, tuple[bytes, asyncio.Future[float]]] = {}

    def hear(self, name: str, line: bytes) -> None:
        wanted, future = self._awaited.get(name, (b"", None))
        if future is not None and wanted in line and not future.done():
            future.set_result(time.perf_counter())

    def await_word(self, name: str, word: bytes) -> "asyncio.Future[float]":
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._awaited[name] = (word, future)
        return future


class Side:
    """Streams of one server, and how to change what they show."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._told = Told()
        self._wires: list[Wire] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._door: Wire
        self.times_ms: list[float] = []  # until the other has heard of it
        self.answers_ms: list[float] = []  # until the one who changed it has the answer

    async def begin(self) -> None:
        self._door = await Wire(self._url).open()
        await self.prepare()
        await self._open(range(WARM))

    async def open_all(self) -> None:
        await self._open(range(WARM, STREAMS))

    async def _open(self, numbers: range) -> None:
        few = asyncio.Semaphore(OPENED_AT_ONCE)

        async def one(number: int) -> None:
            async with few:
                wire = await Wire(self._url).open()
                path, headers = self.stream(number)
                wire.send("GET", path, headers)
                self._wires.append(wire)
                first = self._told.await_word(str(number), b"data")
                self._tasks.append(asyncio.create_task(wire.lines(self._told, str(number))))
                async with asyncio.timeout(60):
                    await first

        await asyncio.gather(*(one(number) for number in numbers))

    async def measure(self, count: int, chance: random.Random, streams: int = STREAMS) -> None:
        for _ in range(count):
            pair = chance.randrange(streams // 2)
            word = b"w%016x" % chance.getrandbits(64)
            heard = self._told.await_word(str(2 * pair + 1), word)
            method, path, headers = self.change(2 * pair)
            begun = time.perf_counter()
            await self._door.ask(method, path, headers, b'{"state":{"word":"%s"}}' % word)
            answered = time.perf_counter()
            async with asyncio.timeout(30):
                self.times_ms.append((await heard - begun) * 1000)
            self.answers_ms.append((answered - begun) * 1000)

    async def prepare(self) -> None:
        return None

    def stream(self, number: int) -> tuple[str, dict[str, str]]:
        return f"/{number}", {}

    def change(self, number: int) -> tuple[str, str, dict[str, str]]:
        """The other of the pair hears it."""
        return "POST", f"/{number + 1}", {}

    def end(self) -> None:
        for wire in (*self._wires, self._door):
            wire.close()
        for task in self._tasks:
            task.cancel()


class FleetSide(Side):
    """500 lobbies of two players."""

    def __init__(self, fleet: OwnFleet) -> None:
        super().__init__(fleet.url)
        self._key = {"api-key": fleet.key}
        self.replica_ms: list[float] = []
        self.keeper_ms: list[float] = []

    def _of(self, number: int) -> dict[str, str]:
        return self._key | {"x-player-id": f"player-{number}"}

    async def prepare(self) -> None:
        for host in range(0, STREAMS, 2):
            made = json.loads(await self._door.ask("POST", LOBBIES, self._of(host), b'{"name":"bench"}'))
            join = json.dumps({"lobbyId": made["id"]}).encode()
            await self._door.ask("POST", f"{LOBBIES}/join", self._of(host + 1), join)

    def stream(self, number: int) -> tuple[str, dict[str, str]]:
        return f"{LOBBIES}/me/events", self._of(number)

    def change(self, number: int) -> tuple[str, str, dict[str, str]]:
        return "PATCH", f"{LOBBIES}/me", self._of(number)

    async def read(self, count: int) -> None:
        """What part of the way costs: calls that end in the replica, and calls that end in the keeper."""
        for number in range(count):
            for times, path in ((self.replica_ms, "/api/v3/servers?limit=1"), (self.keeper_ms, f"{LOBBIES}/me")):
                begun = time.perf_counter()
                await self._door.ask("GET", path, self._of(2 * number))
                times.append((time.perf_counter() - begun) * 1000)


@contextmanager
def echo() -> Iterator[str]:
    command = [sys.executable, "-m", "bench.sse_echo"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(20)


def replicas_kb(fleet: OwnFleet) -> dict[str, float]:
    """Resident memory of what holds streams."""
    found = fleet.memory()
    return {name: sum(size for _, size in found.get(name, [])) / 1024 for name in ("ServeReplica", "haproxy")}


async def run(fleet: OwnFleet, url: str, updates: int, rounds: int) -> dict[str, Any]:
    chance = random.Random(7)
    ours, bare = FleetSide(fleet), Side(url)
    for side in (bare, ours):
        await side.begin()
        await side.measure(WARM, chance, WARM)
    before = replicas_kb(fleet)
    await ours.open_all()
    after = replicas_kb(fleet)
    await bare.open_all()
    for times in (ours.times_ms, ours.answers_ms, bare.times_ms):
        times.clear()
    for _ in range(rounds):
        await bare.measure(updates, chance)
        await ours.measure(updates, chance)
        await ours.read(updates)
    ours.end()
    bare.end()
    return {
        "echo_ms": spread(bare.times_ms),
        "fleet_ms": spread(ours.times_ms),
        "way_ms": {
            "a call that ends in the replica": spread(ours.replica_ms),
            "and in the keeper": spread(ours.keeper_ms),
            "with a commit (the answer)": spread(ours.answers_ms),
        },
        "ratio": statistics.median(ours.times_ms) / statistics.median(bare.times_ms),
        "kb_per_stream": {name: (after[name] - before[name]) / (STREAMS - WARM) for name in after},
    }


def spread(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100)
    return {"p50": round(cuts[49], 3), "p95": round(cuts[94], 3), "p99": round(cuts[98], 3)}


def main(options: argparse.Namespace) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16_384)), hard))
    updates, rounds = (50, 2) if options.quick else (100, 5)
    limits = {f"LIMITS__{name}": value for name, value in FREE.items()}
    with echo() as url, own_fleet({"regions": ["eu-west"], "simulated": {"nodes_per_process": 1}}, **limits) as fleet:
        found = asyncio.run(run(fleet, url, updates, rounds))
    table = Table("what", "figure", "target", "met", "details")
    ratio, memory = found["ratio"], found["kb_per_stream"]
    table.add_row(
        "seen by another ÷ echo (p50)", f"{ratio:.2f}", f"<= {TIMES:.0f}", said(ratio <= TIMES), detail(found)
    )
    kept = float(memory["ServeReplica"])
    table.add_row("KB of a replica per stream", f"{kept:.0f}", f"<= {KB:.0f}", said(kept <= KB), str(memory))
    for part, times in found["way_ms"].items():
        table.add_row(f"of it: {part}", f"{times['p50']:.2f} ms", "", "", str(times))
    Console(width=160).print(table)
    print(json.dumps(found))


def said(met: bool) -> str:
    return "yes" if met else "NO"


def detail(found: dict[str, Any]) -> str:
    return f"fleet {found['fleet_ms']}, echo {found['echo_ms']} (ms)"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args())
