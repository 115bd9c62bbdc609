"""From a start request to a running game, beside the bare engine; and ends, uploads, memory. `make bench-launch`.

Uses the fleet that runs here (`make up`). Everything is bounded: 20 launches per figure, one upload of 300 MB. Ratios
are between figures of the same run, taken in turn, since machines are noisy.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from bench.launch_floor import bare_engine_at_once, bare_engine_launch, compare
from fleet.ops.home import Home, find_home, read_access
from fleet.ops.processes import command_of, supervised
from fleet.settings import get_settings
from tests import games
from tests.player import Studio, ask

AT_ONCE = 20
UPLOAD_MB = 300
Figures = dict[str, Any]


def ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def processes(home: Home) -> list[psutil.Process]:
    found = []
    for pid in supervised(home):
        try:
            found.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            continue
    return found


def cpu_seconds(home: Home) -> float:
    """User and system time of all the fleet's processes so far."""
    total = 0.0
    for process in processes(home):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def timed_start(studio: Studio) -> tuple[float, dict[str, Any]]:
    begun = time.perf_counter()
    server = studio.start("bench-demo")
    return time.perf_counter() - begun, server


def cold_starts(studio: Studio, home: Home, rounds: int) -> Figures:
    """Ours and the bare engine's in turn; CPU of ours less what the idle fleet uses in the same time."""
    ours, bare, cpu = [], [], []
    idle_from, idle_cpu = time.perf_counter(), cpu_seconds(home)
    time.sleep(5)
    idle_rate = (cpu_seconds(home) - idle_cpu) / (time.perf_counter() - idle_from)
    for number in range(rounds):
        before = cpu_seconds(home)
        took, server = timed_start(studio)
        cpu.append(cpu_seconds(home) - before - idle_rate * took)
        ours.append(took)
        studio.stop(server)
        studio.until_gone(server)
        bare += asyncio.run(bare_engine_launch(1, first_port=30100 + number))
    return {
        "ours_ms": ms(statistics.median(ours)),
        "bare_engine_ms": ms(statistics.median(bare)),
        "ratio": round(statistics.median(ours) / statistics.median(bare), 3),
        "cpu_ms_per_launch": ms(statistics.mean(cpu)),
        "idle_cpu_percent": round(idle_rate * 100, 1),
    }


def at_once(studio: Studio, rounds: int) -> Figures:
    """Twenty launches together, until the last one runs; ours and the engine's in turn."""
    ours, bare = [], []
    for number in range(rounds):
        begun = time.perf_counter()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            servers = list(pool.map(lambda _: studio.start("bench-demo"), range(AT_ONCE)))
        ours.append(time.perf_counter() - begun)
        for server in servers:
            studio.stop(server)
        for server in servers:
            studio.until_gone(server)
        bare.append(asyncio.run(bare_engine_at_once(AT_ONCE, first_port=30200 + number * AT_ONCE)))
    return {
        "ours_ms": ms(statistics.median(ours)),
        "bare_engine_ms": ms(statistics.median(bare)),
        "ratio": round(statistics.median(ours) / statistics.median(bare), 3),
    }


def ends(studio: Studio, rounds: int, packet: str) -> Figures:
    """From the game's last packet to a waiting client's answer that it has stopped."""
    took = []
    for _ in range(rounds):
        server = studio.start("bench-demo")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(lambda server=server: (studio.server(server, "stopped"), time.perf_counter()))
            time.sleep(0.2)  # the client waits before the game ends
            ask(server, packet)
            said = time.perf_counter()
            seen, at = waiting.result()
        assert seen["status"] == "stopped"
        took.append(at - said)
    return {"median_ms": ms(statistics.median(took)), "max_ms": ms(max(took))}


class PeakMemory(threading.Thread):
    """The most that any process of the fleet grew, in MB, between start and `peak()`."""

    def __init__(self, home: Home) -> None:
        super().__init__(daemon=True)
        self._processes = processes(home)
        self._base = {p.pid: p.memory_info().rss for p in self._processes}
        self._grown: dict[int, int] = {}
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            for process in self._processes:
                try:
                    grown = process.memory_info().rss - self._base[process.pid]
                except psutil.NoSuchProcess:
                    continue
                self._grown[process.pid] = max(grown, self._grown.get(process.pid, 0))

    def peak(self) -> tuple[float, str]:
        self._done.set()
        self.join()
        pid, grown = max(self._grown.items(), key=lambda item: item[1])
        return round(grown / (1 << 20), 1), command_of(pid).split(" ")[0]


def upload(studio: Studio, home: Home, rounds: int) -> Figures:
    """A 300 MB body through the signed URL, beside a plain copy of the same file to the same disk with fsync."""
    ours, plain, peaks = [], [], []
    with tempfile.TemporaryDirectory(dir=home.path) as folder:
        source = Path(folder) / "body"
        block = os.urandom(1 << 20)
        source.write_bytes(b"".join(block for _ in range(UPLOAD_MB)))
        for number in range(rounds):
            plain.append(plain_copy(source, Path(folder) / "copy"))
            link = studio.call("POST", "/builds/upload-url", 201, params={"name": f"bench-upload-{number}"})
            memory = PeakMemory(home)
            memory.start()
            begun = time.perf_counter()
            command = ["curl", "--silent", "--show-error", "--fail", "-T", str(source), link["upload_url"]]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
            ours.append(time.perf_counter() - begun)
            peaks.append(memory.peak())
            studio.processed(link["build_id"])
            studio.call("DELETE", f"/builds/{link['build_id']}")
            time.sleep(5)  # the storage of this round is collected before the next is timed
    grown, name = max(peaks)
    return {
        "ours_mb_s": round(UPLOAD_MB / statistics.median(ours)),
        "plain_copy_mb_s": round(UPLOAD_MB / statistics.median(plain)),
        "speed_ratio": round(statistics.median(plain) / statistics.median(ours), 3),
        "peak_growth_mb": grown,
        "peak_process": name,
    }


def plain_copy(source: Path, target: Path) -> float:
    begun = time.perf_counter()
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(1 << 20):
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    return time.perf_counter() - begun


def memory(home: Home) -> Figures:
    """RSS and unique memory of every process of the fleet, in MB."""
    rows = {}
    for process in processes(home):
        try:
            name, info = command_of(process.pid).split(" ")[0].rsplit("/", 1)[-1], process.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        rows[f"{name} {process.pid}"] = {"rss_mb": info.rss >> 20, "unique_mb": info.uss >> 20}
    total = {key: sum(row[key] for row in rows.values()) for key in ("rss_mb", "unique_mb")}
    return {"total": total, "processes": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    home = find_home(get_settings().home)
    access = read_access(home) if home else None
    if home is None or access is None:
        raise SystemExit("No fleet runs here. Start it with `make up`.")
    studio = Studio(access.url, access.server_key)
    idle = memory(home)
    assert studio.push(games.demo_zip(), "bench-demo")["status"] == "ready"
    studio.stop(timed_start(studio)[1])  # makes the region's manager and agent
    figures: dict[str, Figures] = {
        "cold start": cold_starts(studio, home, arguments.rounds),
        "runtime alone": asyncio.run(compare(arguments.rounds)),
        f"{AT_ONCE} at once": at_once(studio, 3),
        "exit seen": ends(studio, arguments.rounds, "quit"),
        "crash seen": ends(studio, arguments.rounds, "crash 3"),
        f"upload of {UPLOAD_MB} MB": upload(studio, home, 5),
    }
    table = Table("benchmark", "figure", "value")
    for name, values in figures.items():
        for key, value in values.items():
            table.add_row(name, key, str(value))
    table.add_row("idle fleet", "total", str(idle["total"]))
    Console().print(table)
    figures["idle fleet"] = idle
    print(json.dumps(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
