"""The simulator: closed forms, files, the command line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fleet.cli import app
from fleet.simulate import baselines
from fleet.simulate.arrivals import BadArrivals, read_arrivals, read_leads
from fleet.simulate.baselines import Script, run
from fleet.simulate.compare import OURS, Terms, compare, run_ours
from fleet.simulate.replay import Levels, replay
from fleet.simulate.shapes import SHAPES, Demand, estimated, synthetic

RUNNER = CliRunner()


class Constant:
    """A stock that never changes."""

    def __init__(self, size: int) -> None:
        self._levels = Levels(size, size)

    def start(self, at: float) -> Levels:
        return self._levels

    def claimed(self, at: float, count: int, misses: int) -> Levels:
        return self._levels

    tick = start

    def booted(self, seconds: float) -> None:
        pass


def erlang_b(size: int, load: float) -> float:
    """The share of losses of `size` servers under that load."""
    blocked = 1.0
    for k in range(1, size + 1):
        blocked = load * blocked / (k + load * blocked)
    return blocked


@pytest.mark.parametrize("size", [3, 5, 8])
def test_a_fixed_stock_under_poisson_demand_loses_as_erlang_says(size: int) -> None:
    demand = synthetic("calm", 7, per_minute=6, days=4)
    outcome = run(Script.of(demand), baselines.fixed(Script.of(demand), size), lambda: 30.0)
    assert 1 - outcome.hit_rate == pytest.approx(erlang_b(size, 3.0), rel=0.12, abs=0.0015)
    assert outcome.mean_pool == pytest.approx(size)


def test_both_simulated_pools_agree() -> None:
    demand = synthetic("streamer", 2, per_minute=6, days=0.5)
    script = Script.of(demand)
    fast = run(script, baselines.fixed(script, 6), lambda: 30.0)
    slow = replay(demand.times.tolist(), Constant(6), lambda: 30.0, demand.begins, demand.ends)
    assert (fast.hit_rate, fast.mean_pool) == pytest.approx((slow.hit_rate, slow.mean_pool))
    assert fast.idle_server_hours == pytest.approx(slow.idle_server_hours, abs=0.05)


def test_the_base_stock_is_that_of_the_poisson_formula() -> None:
    means = np.array([0.5, 3.0, 9.0])
    for mean, size in zip(means.tolist(), baselines.poisson_stock(means, 0.99).tolist(), strict=True):
        below = [sum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(size - less)) for less in (0, 1)]
        assert below[0] >= 0.99 > below[1]
    assert baselines.poisson_stock(np.array([3.0]), 0.99).tolist() == [9]


def test_the_best_fixed_stock_is_the_smallest_that_reaches_the_slo() -> None:
    demand = synthetic("diurnal", 3, per_minute=6, days=1)
    script = Script.of(demand)

    def play(size: float) -> baselines.Outcome:
        return run(script, baselines.fixed(script, size), lambda: 30.0)

    best = baselines.by_hindsight(play, 0.99, 0, 4, 1)
    assert best.hit_rate >= 0.99 > play(best.mean_pool - 1).hit_rate


@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_shape_has_the_mean_that_was_asked_for(shape: str) -> None:
    demand = synthetic(shape, 5, per_minute=6, days=3)
    assert len(demand.times) == pytest.approx(6 * 3 * 1440, rel=0.08)
    assert (np.diff(demand.times) >= 0).all()
    assert demand.times[0] >= demand.begins
    assert demand.times[-1] <= demand.ends


@pytest.mark.parametrize("shape", ["streamer", "batch"])
def test_ours_reaches_the_slo_at_a_lead_of_30_s(shape: str) -> None:
    demand = synthetic(shape, 11, per_minute=6, days=0.3)
    found = compare(demand, Terms(leads=(30.0,)))
    assert found[OURS].hit_rate >= 0.985
    assert found[OURS].mean_pool <= 1.5 * found["oracle"].mean_pool
    assert found[OURS].mean_pool < found["refill every 5 min (hindsight)"].mean_pool


def test_lead_times_by_chance_are_learned() -> None:
    demand = synthetic("calm", 4, per_minute=6, days=0.4)
    outcome = run_ours(demand, Terms(leads=(10.0, 20.0, 60.0)))
    assert outcome.hit_rate >= 0.985
    assert 5 < outcome.mean_pool < 14


def test_announcements_make_the_pool_smaller() -> None:
    demand = synthetic("diurnal", 6, per_minute=6, days=0.4)
    terms = Terms(leads=(30.0,))
    plain, announced = run_ours(demand, terms), run_ours(demand, terms, announced_s=40.0)
    assert announced.hit_rate >= plain.hit_rate
    assert announced.mean_pool < 0.85 * plain.mean_pool


def test_the_rate_is_found_again_in_recorded_arrivals() -> None:
    demand = synthetic("diurnal", 8, per_minute=20, days=2)
    assert demand.rate is not None
    found = estimated(Demand(demand.times, demand.begins, demand.ends), 30.0)
    assert np.abs(found[: len(demand.rate)] - demand.rate).mean() < 0.2 * demand.rate.mean()


def write(folder: Path, text: str, name: str = "a.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_times_are_read_in_every_form(tmp_path: Path) -> None:
    wanted = [1700000000.0, 1700000001.5, 1700000060.0]
    forms = {
        "plain": "1700000000\n1700000060\n1700000001.5\n",
        "header": "id,timestamp\na,1700000000\nb,1700000001.5\nc,1700000060\n",
        "iso": "at\n2023-11-14T22:13:20Z\n2023-11-14T22:13:21.5+00:00\n2023-11-14 22:14:20\n",
        "millis": "started_at;x\n1700000000000;1\n1700000001500;2\n1700000060000;3\n",
        "bom": "\ufeffat\r\n1700000000\r\n\r\n1700000001.5\r\n1700000060\r\n",
    }
    for text in forms.values():
        assert read_arrivals(write(tmp_path, text)).times.tolist() == wanted
    assert read_arrivals(write(tmp_path, forms["header"]), "timestamp").times.tolist() == wanted
    assert read_arrivals(write(tmp_path, forms["header"]), "1").times.tolist() == wanted


def test_counts_per_minute_are_spread(tmp_path: Path) -> None:
    demand = read_arrivals(
        write(tmp_path, "at,arrivals\n1700000000000,3\n1700000060000,0\n1700000120000,2\n"), counts=True
    )
    assert len(demand.times) == 5
    assert demand.ends - demand.begins == 180
    assert len(read_arrivals(write(tmp_path, "3\n0\n2\n"), counts=True).times) == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("at\n1700000000\nyesterday\n", "line 3"),
        ("at\n1700000000\n", "at least two"),
        ("a,b\n1,2\n3,4\n5\n", "line 4"),
        ("at\n1\n2\n1700000000\n", "three years"),
        ("at\n5\n5\n5\n", "the same time"),
        ("at\nnan\n5\n", "line 2"),
    ],
)
def test_bad_files_are_told_and_exit_with_2(tmp_path: Path, text: str, says: str) -> None:
    column = ["--column", "b"] if text.startswith("a,b") else []
    result = RUNNER.invoke(app, ["simulate", "pools", "--arrivals", str(write(tmp_path, text)), *column])
    assert result.exit_code == 2
    assert says in result.output


def test_wrong_use_exits_with_2(tmp_path: Path) -> None:
    good = str(write(tmp_path, "1\n2\n"))
    for arguments in (
        [],
        ["--arrivals", str(tmp_path / "none.csv")],
        ["--arrivals", good, "--column", "nope"],
        ["--synthetic", "nope"],
        ["--synthetic", "calm", "--arrivals", good],
        ["--arrivals", good, "--plot", "a.gif"],
        ["--arrivals", good, "--slo", "1.5"],
        ["--arrivals", good, "--lead-time", "0"],
        ["--arrivals", good, "--lead-times", str(write(tmp_path, "-3\n", "leads.csv"))],
    ):
        assert RUNNER.invoke(app, ["simulate", "pools", *arguments]).exit_code == 2, arguments


def test_json_table_and_plot(tmp_path: Path) -> None:
    demand = synthetic("calm", 1, per_minute=6, days=0.2)
    file = write(tmp_path, "\n".join(["at", *(f"{at:.3f}" for at in demand.times)]))
    base = ["simulate", "pools", "--arrivals", str(file), "--lead-time", "20"]
    result = RUNNER.invoke(app, [*base, "--json", "--plot", str(tmp_path / "p.svg")])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["ours"] in found["policies"]
    assert len(found["policies"]) >= 6
    for one in found["policies"].values():
        assert {"hit_rate", "mean_pool", "idle_server_hours", "p99_wait"} <= one.keys()
    assert "<svg" in (tmp_path / "p.svg").read_text()[:2000]
    assert "hit rate" in RUNNER.invoke(app, base).output


def test_lead_time_files(tmp_path: Path) -> None:
    assert read_leads(write(tmp_path, "lead_seconds\n3.5\n4\n")) == (3.5, 4.0)
    with pytest.raises(BadArrivals):
        read_leads(write(tmp_path, "soon\nlater\n"))
