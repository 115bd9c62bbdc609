"""The short form of `make chaos`: some 25 real faults on a fleet of its own machine (docs/chaos.md)."""

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.storm import sandbox
from tests.chaos.storm.kinds import KINDS
from tests.chaos.storm.report import read
from tests.chaos.storm.schedule import OVER_S, WAVE_S, kinds_for, schedule
from tests.conftest import ROOT

SEED, FAULTS = os.environ.get("FLEET_STORM_SEED", "7"), 25


def test_a_schedule_is_its_seeds() -> None:
    """The same seed has the same faults; each kind comes about as often as its weight; no kind meets itself."""
    kinds = kinds_for("postgres", 2, clock=True)
    waves = schedule(7, 1000, kinds)
    assert waves == schedule(7, 1000, kinds)
    assert waves != schedule(8, 1000, kinds)
    faults = [fault for wave in waves for fault in wave]
    assert [fault.number for fault in sorted(faults, key=lambda fault: fault.number)] == list(range(1000))
    assert all(0 <= fault.at <= WAVE_S and fault.at + fault.lasts_s <= max(OVER_S, fault.lasts_s) for fault in faults)
    assert all(fault.lasts_s in KINDS[fault.kind].lasts_s for fault in faults)
    counts = Counter(fault.kind for fault in faults)
    deck = sum(kind.weight for kind in kinds.values())
    for name, kind in kinds.items():
        assert abs(counts[name] - 1000 * kind.weight / deck) <= 2 * kind.weight + 2, name
    for wave in waves:
        often = Counter(fault.kind for fault in wave)
        assert all(number == 1 for name, number in often.items() if KINDS[name].once_a_wave)


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_short_storm_loses_nothing(tmp_path: Path) -> None:
    """Nothing lost, nothing twice, nothing leaked, and every wave well within the bounds that docs promise."""
    if problem := sandbox.missing():
        pytest.skip(f"no storm: {problem}")
    command = [sys.executable, "-m", "tests.chaos.storm", "--faults", str(FAULTS), "--seed", SEED]
    command += ["--limit", "420", "--results", str(tmp_path / "result.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-4000:]
    assert len(read(tmp_path / "result.json").faults) > FAULTS // 3


def test_seeds_differ() -> None:
    """No two seeds of a few have the same beginning, so that runs add up to more."""
    kinds = kinds_for("sqlite", 1, clock=True)
    first = [
        tuple(fault.kind for fault in schedule(seed, 12, kinds)[0]) for seed in random.Random(1).sample(range(999), 20)
    ]
    assert len(set(first)) > 10
