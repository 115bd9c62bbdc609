"""Generated requests for every operation of our own OpenAPI document: no 5xx, and answers as documented."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import schemathesis

from tests.unit.schema_kit import check_operations


@dataclass
class Served:
    url: str
    headers: dict[str, str]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """The app in a process of its own, on a port of the kernel's choice. It must end well."""
    log = tmp_path / "server.log"
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.unit.serve_api", str(tmp_path)]
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


def test_every_operation_answers_as_documented(served: Served, subtests: pytest.Subtests) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/api/doc")
    labels = check_operations(schema, served.headers, 12, subtests)
    assert len(labels) >= 28
