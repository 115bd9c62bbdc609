"""`python -m tests.simulation.run --seed N`: one seed, told in full. With `--seeds A:B`: many, each in a word.

A seed is repeatable: time, chance and order are the simulation's own, and Python's hashes are switched to 0 by starting
anew. `--shrink` leaves out faults as long as the same thing still breaks.
"""

import argparse
import asyncio
import faulthandler
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.simulation.faults import KINDS, Fault, schedule
from tests.simulation.world import Result, World

CPU_S = 60  # a world that takes longer turns in circles
SPAN_S = 300.0
QUIET_S = 900.0


GAMES = "good:8,slow:2,crashy:3,short:2,deaf:1,broken:1"


def simulate(seed: int, faults: Sequence[Fault], span_s: float = SPAN_S, games: str = GAMES) -> Result:
    """One world from beginning to end, in a process of its own: nothing of one world is left for the next."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        with os.fdopen(theirs, "wb") as pipe:
            pickle.dump(_simulate(seed, faults, span_s, games), pipe)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return (
        pickle.loads(told) if told else Result(seed, ["the simulation itself died, or turned in circles"], [], faults)
    )


def _simulate(seed: int, faults: Sequence[Fault], span_s: float, games: str) -> Result:
    faulthandler.register(signal.SIGXCPU)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    began = time.process_time()
    folder = Path(tempfile.mkdtemp(prefix="fleet-sim-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        world = World(seed, faults, folder, span_s)
        world.workload.games = {name: int(share) for name, share in (one.split(":") for one in games.split(","))}
        with world.edges():
            asyncio.set_event_loop(world.loop)
            error: str | None = None
            try:
                world.loop.run_until_complete(world.run(QUIET_S))
            except Exception as fault:
                import traceback

                traceback.print_exc()
                error = f"the simulation itself failed: {fault!r}"
        broken = world.invariants.broken + ([error] if error else [])
        if error or broken:
            for row in world.invariants.rows("SELECT * FROM server WHERE step != 'stopped'"):
                keep = (
                    "instance_id",
                    "region",
                    "status",
                    "step",
                    "generation",
                    "node_id",
                    "version_tag",
                    "compute_size",
                )
                world.log.append(f"live: {[row[name] for name in keep]}")
        facts = {
            "commits": world.database.commits,
            "virtual_s": round(world.clock.now),
            "settled_s": world.invariants.settled_s,
            **world.workload.done,
            "cpu_s": round(time.process_time() - began, 2),
        }
        return Result(seed, broken, world.log, faults, facts)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def faults_of(seed: int, kinds: Sequence[str], number: int | None, span_s: float = SPAN_S) -> list[Fault]:
    chance = random.Random(f"faults/{seed}")
    return schedule(chance, kinds, span_s, number if number is not None else chance.randrange(2, 9))


def shrink(result: Result, span_s: float, games: str) -> Result:
    """The same break by fewer faults, one by one left out."""
    kind = _kind(result.broken[0])
    for fault in list(result.faults):
        fewer = [one for one in result.faults if one != fault]
        tried = simulate(result.seed, fewer, span_s, games)
        if any(_kind(text) == kind for text in tried.broken):
            result = tried
    return result


def _kind(text: str) -> str:
    """A break without names and numbers."""
    words = text.split("  ")[-1].split()
    return " ".join(word for word in words if word.isalpha() or word.endswith(":"))


def show(result: Result, lines: int) -> None:
    print(f"seed {result.seed}: {'BROKEN' if result.broken else 'well'} {result.facts}")
    for fault in result.faults:
        print(f"  fault {fault}")
    for line in result.log[-lines:] if lines else ():
        print("  " + line)
    for text in result.broken:
        print(f"  broken: {text}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seeds", help="A:B")
    parser.add_argument("--faults", default=",".join(KINDS), help="kinds, by comma")
    parser.add_argument("--number", type=int, help="of faults; default: by the seed")
    parser.add_argument("--span", type=float, default=SPAN_S, help="virtual seconds of commands and faults")
    parser.add_argument("--games", default=GAMES, help="shares of what is started")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--json", action="store_true", help="a line of JSON for each seed")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--stop-at", type=int, default=1, help="so many failures are enough")
    given = parser.parse_args()
    first, last = map(int, given.seeds.split(":")) if given.seeds else (given.seed, given.seed + 1)
    failed = 0
    for seed in range(first, last):
        result = simulate(
            seed, faults_of(seed, given.faults.split(","), given.number, given.span), given.span, given.games
        )
        if result.broken and given.shrink:
            result = shrink(result, given.span, given.games)
        if given.json:
            print(json.dumps({"seed": seed, "broken": result.broken, **result.facts}), flush=True)
        else:
            show(result, given.lines if given.seed is not None else 0)
        failed += bool(result.broken)
        if failed >= given.stop_at:
            break
    return int(failed > 0)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation.run", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    sys.exit(main())
