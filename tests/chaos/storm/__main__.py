"""`make chaos`, which is `python -m tests.chaos.storm --database sqlite --faults 100`; `--report` prints one table.

Exit code 1 if anything acknowledged was lost, anything was had twice or leaked, or a wave took longer than its bound.
"""

import argparse
import asyncio
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from tests.chaos.storm import sandbox
from tests.chaos.storm.report import Result, read, table
from tests.chaos.storm.schedule import kinds_for, schedule
from tests.chaos.storm.storm import rage
from tests.chaos.storm.world import ROOT, build_machines

MODULE = "tests.chaos.storm"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--machines", type=int, choices=(1, 2), help="1: nodes on the head; 2: joined, one far away")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--alone", action="store_true", help="one fault a wave: what each needs by itself")
    parser.add_argument("--kinds", nargs="*", help="only these")
    parser.add_argument("--runtime", choices=("auto", "docker"), default="auto")
    parser.add_argument("--limit", type=float, default=7200.0, help="no new wave after so many seconds")
    parser.add_argument("--results", type=Path, help="file or folder for the run's JSON")
    parser.add_argument("--logs", type=Path, help="folder for the fleet's logs")
    parser.add_argument("--schedule", action="store_true", help="only print what would be done")
    parser.add_argument("--report", type=Path, nargs="+", help="print one table of these results")
    given = parser.parse_args()
    given.seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    given.machines = given.machines or (2 if given.database == "postgres" else 1)
    return given


def main() -> int:
    given = arguments()
    if given.report:
        results = [read(path) for path in given.report]
        print(table(results))
        return int(any(result.failed for result in results))
    kinds = kinds_for(given.database, given.machines, clock=sandbox.clock_library() is not None, only=given.kinds)
    waves = schedule(given.seed, given.faults, kinds, alone=given.alone)
    if given.schedule:
        for fault in (fault for wave in waves for fault in wave):
            print(f"{fault.wave:4} {fault.at:5.2f} s  {fault.kind} for {fault.lasts_s:g} s, target {fault.target}")
        return 0
    if sandbox.INSIDE not in os.environ:
        if problem := sandbox.missing():
            sys.exit(f"No storm here: {problem}.")
        seed = ["--seed", str(given.seed)]
        return sandbox.enter(MODULE, [*sys.argv[1:], *seed])
    sandbox.become_first()
    folder = Path(os.environ[sandbox.INSIDE])
    file: Path | None = given.results
    if file is not None and file.is_dir():
        file = file / f"{given.database}-{given.seed}.json"
    result = Result(given.seed, given.database, given.machines, _revision(), logs=given.logs, file=file)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    say(f"{given.faults} faults of {len(kinds)} kinds, {given.database}, seed {given.seed}")
    try:
        machines = build_machines(folder, given.machines)
        asyncio.run(rage(folder, machines, waves, result, given.limit, given.runtime, say))
    except Exception as error:
        result.broken.append(repr(error))
        raise
    finally:
        result.write()
    print(table([result]))
    return int(result.failed)


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
