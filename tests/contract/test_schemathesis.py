"""Generated calls of every operation that our documents name: examples, coverage, fuzzing and sequences, all checks."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

HERE = Path(__file__).parent / "schemathesis"

# A server that was stopped and a build that was deleted can still be looked at; that is what DELETE means here.
LEFT_OUT = "use_after_free"

# The operator's calls run for themselves: they may end the very project whose key the others use.
ADMIN = "^/api/admin/"
RUNS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "v3": ("/api/doc", 27, ("--exclude-path-regex", ADMIN)),
    "admin": ("/api/doc", 12, ("--include-path-regex", ADMIN)),
    "v2": ("/api/v2/doc", 14, ()),
}

pytestmark = pytest.mark.slow


@dataclass
class Served:
    url: str
    headers: dict[str, str]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """The app in a process of its own, on a port of the kernel's choice. It must end well."""
    log = tmp_path / "server.log"
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.serve_api", str(tmp_path)]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
    with process:
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith(b"{")), b"")
        assert line, log.read_text()
        # What it logs meanwhile must be read, or it would wait for room in the pipe.
        reader = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
        yield Served(**json.loads(line))
        process.terminate()
        code = process.wait(30)
        reader.wait(30)
    assert code in (0, -15), log.read_text()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("document", "least", "only"), RUNS.values(), ids=RUNS)
def test_every_operation_and_sequence_holds_all_checks(
    served: Served, document: str, least: int, only: tuple[str, ...], tmp_path: Path
) -> None:
    headers = [part for name, value in served.headers.items() for part in ("--header", f"{name}: {value}")]
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "config.toml")),
        *("run", f"{served.url}{document}", "--checks", "all", "--exclude-checks", LEFT_OUT, *only, *headers),
        *("--phases", "examples,coverage,fuzzing,stateful", "--report", "json"),
        *("--report-json-path", str(tmp_path / "report.json")),
    ]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.contract.schemathesis.hooks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=850, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    tested = re.search(r"Tested: (\d+)", done.stdout)
    assert tested is not None, done.stdout
    assert int(tested[1]) >= least
