"""The control plane under faults in virtual time: nothing acknowledged is lost, and once the faults are over everything
becomes as it should be, without a command (`docs/simulation.md`). A failure is repeated with
`python -m tests.simulation.run --span 100 --seed N`."""

import os

import pytest

from tests.simulation.faults import KINDS
from tests.simulation.run import faults_of
from tests.simulation.soak import run_seeds

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "300"))
BATCH = 25
SPAN = ("--span", "100")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_a_fleet_recovers_from_whatever_befalls_it(first: int) -> None:
    outcomes = list(run_seeds(first, first + BATCH, *SPAN, "--stop-at", str(BATCH)))
    broken = {one["seed"]: one["broken"] for one in outcomes if one["broken"]}
    assert not broken, f"repeat with: python -m tests.simulation.run {' '.join(SPAN)} --seed {next(iter(broken))}"
    assert len(outcomes) == BATCH


def test_a_seed_is_repeatable() -> None:
    once, again = (list(run_seeds(7, 8, *SPAN)) for _ in range(2))
    drop = {"cpu_s": 0}
    assert [{**one, **drop} for one in once] == [{**one, **drop} for one in again]


def test_every_kind_of_fault_comes_up() -> None:
    seen = {fault.kind for seed in range(SEEDS) for fault in faults_of(seed, KINDS, None)}
    assert seen == set(KINDS)
