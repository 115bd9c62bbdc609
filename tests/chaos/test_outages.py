"""Outages as users have them, on a running fleet of its own machine, held against what docs/timeouts.md promises."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.storm import sandbox
from tests.conftest import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

SCENARIOS = ["agents_hang", "engine_away", "database_locked", "writes_meanwhile"]
STARTS_AGAIN_S = 60.0
REFUSED_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was seen of each, one after another on one fleet."""
    if problem := sandbox.missing():
        pytest.skip(f"no storm: {problem}")
    target = Path(tmp_path_factory.mktemp("outages")) / "seen.json"
    command = [sys.executable, "-m", "tests.chaos.storm.outages", str(target), *SCENARIOS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    print(target.read_text())
    return json.loads(target.read_text())


def test_agents_that_hang_are_begun_anew(seen: dict[str, Any]) -> None:
    """Starts in their regions work again within a minute; the games go on and are the same afterwards."""
    found = seen["agents_hang"]
    assert found["games_on"]
    assert found["games_untouched"]
    assert found["starts_again_s"] is not None
    assert found["starts_again_s"] <= STARTS_AGAIN_S, found


def test_an_engine_that_is_away_is_waited_for(seen: dict[str, Any]) -> None:
    """A minute without engine, agents killed in it: games untouched, and nothing ever runs without isolation."""
    found = seen["engine_away"]
    assert found["games_on"]
    assert found["games_untouched"]
    assert found["rows"] == ["running"]
    assert found["in_a_container"]
    assert found["plain_processes"] == 0
    assert found["starts_again_s"] is not None
    assert found["starts_again_s"] <= STARTS_AGAIN_S, found


def test_a_ttl_acts_after_a_locked_database(seen: dict[str, Any]) -> None:
    """A minute without writes, managers killed in it: a ttl that fell due acts, and nobody sent a command."""
    found = seen["database_locked"]
    assert found["reason"] == "ttl"
    assert found["ttl_acts_s"] is not None
    assert found["ttl_acts_s"] <= STARTS_AGAIN_S, found
    assert found["games_untouched"]


def test_while_nobody_may_write_reads_go_on(seen: dict[str, Any]) -> None:
    """Writes are refused with 503 and a word, in seconds; reads are answered. What came first is done or refused."""
    found = seen["writes_meanwhile"]
    assert {status for status, _ in found["reads"]} == {200}
    assert all(status in (200, 201, 503) for status, _, _ in found["first"].values()), found["first"]
    for name, (status, took, said) in found["refusals"].items():
        assert status == 503, (name, found["refusals"])
        assert said, (name, found["refusals"])
        assert took <= REFUSED_WITHIN_S, (name, found["refusals"])
    assert found["starts_again_s"] is not None
    assert found["starts_again_s"] <= STARTS_AGAIN_S, found
