"""`make soak`: very many seeds, in parallel, to be continued where it was left; it stops after the first failures.

What has been run is kept in a file (a line of JSON a seed); `SEEDS`, `JOBS` and `FROM` say what to run.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CHUNK = 25
ENOUGH = 3  # failures


def run_seeds(first: int, last: int, *options: str) -> Iterator[dict[str, Any]]:
    """The outcome of each seed, from a process of its own; ends early if that fails."""
    command = [sys.executable, "-m", "tests.simulation.run", "--seeds", f"{first}:{last}", "--json", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONHASHSEED": "0"}
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)


def main() -> int:
    seeds, first = int(os.environ.get("SEEDS", "100000")), int(os.environ.get("FROM", "0"))
    jobs, state = int(os.environ.get("JOBS", str(os.cpu_count() or 1))), Path(os.environ.get("SOAK", ".soak.jsonl"))
    known = [json.loads(line) for line in state.read_text().splitlines()] if state.exists() else []
    done = {one["seed"] for one in known if not one["broken"]}
    failures: list[dict[str, Any]] = []

    def chunk(start: int) -> None:
        left = [seed for seed in range(start, min(start + CHUNK, first + seeds)) if seed not in done]
        if not left or len(failures) >= ENOUGH:
            return
        for outcome in run_seeds(left[0], left[-1] + 1, "--stop-at", str(ENOUGH)):
            with state.open("a") as file:
                file.write(json.dumps(outcome) + "\n")
            if outcome["broken"]:
                failures.append(outcome)
                print(f"seed {outcome['seed']}: {outcome['broken']}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(chunk, range(first, first + seeds, CHUNK)))
    print(f"{len(done)} seeds were run before, {len(failures)} have failed now; see {state}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
