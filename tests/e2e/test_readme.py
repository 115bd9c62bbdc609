"""The README's snippets, run as a newcomer runs them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import games
from tests.conftest import ROOT, RunningFleet
from tests.player import Studio

pytestmark = [pytest.mark.fleet, pytest.mark.docker]


def snippet(heading: str, language: str) -> str:
    """The first block of that language below a heading."""
    section = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def clone(fleet: RunningFleet, studio: Studio, tmp_path: Path) -> Iterator[Path]:
    """A folder in which the fleet is `.fleet`, as in a clone after `make demo`; what was started there is stopped."""
    (tmp_path / ".fleet").symlink_to(fleet.home.resolve())
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    yield tmp_path
    for server in studio.call("GET", "/servers", params={"status": ["launching", "running"]})["servers"]:
        if server["name"] == "match-1":
            studio.stop(server)


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_quick_start_in_curl_ends_with_a_running_server(clone: Path) -> None:
    out = run(["bash", "-eu", "-o", "pipefail", "-c", snippet("Quick start: curl", "bash")], clone)
    build, server = re.findall(r"\{.*?\}(?=\{\"|\Z)", out.replace("\n", ""))[-2:]
    assert '"status":"ready"' in build, out
    assert '"status":"running"' in server, out


def test_the_quick_start_in_python_ends_with_a_packet_from_the_game(clone: Path, studio: Studio) -> None:
    assert studio.push(games.demo_zip(), "demo")["status"] == "ready"
    out = run([sys.executable, "-c", snippet("Quick start: Python", "python")], clone)
    assert "welcome alice" in out
