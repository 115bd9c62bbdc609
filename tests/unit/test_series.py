"""Series of what a run uses: means over steps, in bounded memory, whatever the clock does."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.node.series import FIELDS, TIERS, Points, Series, Usage

DAY_S = 86_400
START_MS = 1_700_000_000_000


def at(second: float) -> int:
    return START_MS + int(second * 1000)


def filled(seconds: int, every_s: int = 5) -> Series:
    """Half a CPU, 100 bytes/s in, 200 out, 3 connections, memory that grows by 1 MB a minute."""
    series = Series()
    for second in range(0, seconds, every_s):
        usage = Usage(second * 500_000_000, (64 << 20) + second * (1 << 20) // 60, second * 100, second * 200, 3)
        series.add(at(second), second, usage)
    return series


@pytest.mark.parametrize(("period_s", "step_s", "kept_s"), [
    (300, 15, 15), (3600, 15, 15), (3600, 60, 60), (3600, 300, 300), (21_600, 15, 60), (DAY_S, 60, 300),
])  # fmt: skip
def test_a_period_has_its_steps(period_s: int, step_s: int, kept_s: int) -> None:
    seconds = 2 * DAY_S
    step, series = filled(seconds, 15).read(at(seconds), period_s, step_s)
    assert step == kept_s
    for name, value in zip(FIELDS, (50, None, 100, 200, 3), strict=True):
        points = series[name]
        assert abs(len(points) - period_s / step) <= 1, name
        assert [b[0] - a[0] for a, b in pairwise(points)] == [step] * (len(points) - 1)
        if value is not None:
            assert all(v == pytest.approx(value, rel=0.01) for _, v in points), name
    memory = [value for _, value in series["memory_mb"]]
    assert memory == sorted(memory)


def test_what_is_kept_is_bounded() -> None:
    assert filled(2 * DAY_S, 15).nbytes() <= 30_000
    assert filled(60).nbytes() < 1000, "a young run takes little"


def test_the_step_under_way_is_shown() -> None:
    _, series = filled(11).read(at(11), 300, 15)
    assert series["cpu_percent"] == [(START_MS // 1000 // 15 * 15, 50.0)] or len(series["cpu_percent"]) == 2


def test_a_counter_that_goes_back_is_no_rate() -> None:
    series = Series()
    for second, cpu in ((0, 10**9), (5, 10**6), (10, 10**6 + 10**9)):
        series.add(at(second), second, Usage(cpu, 1, None, None, 0))
    _, seen = series.read(at(10), 300, 300)
    assert [value for _, value in seen["cpu_percent"]] == [20.0]
    assert seen["network_rx_bytes_per_s"] == [], "what cannot be told apart is left out"


@given(st.lists(st.tuples(st.floats(-1e5, 1e5), st.integers(0, 10**12)), max_size=60))
def test_points_are_in_order_whatever_the_clock_does(looks: list[tuple[float, int]]) -> None:
    series, now = Series(), 0.0
    for n, (jump, cpu) in enumerate(looks):
        now += jump
        series.add(at(now), n * 5.0, Usage(cpu, 1, cpu, 0, 1))
    for period_s in (300, 3600, 21_600, DAY_S):
        step, seen = series.read(at(now), period_s, 15)
        for name in FIELDS:
            check(seen[name], step)


def check(points: Points, step: int) -> None:
    times = [second for second, _ in points]
    assert times == sorted(set(times))
    assert all(second % step == 0 for second in times)
    assert not any(math.isnan(value) for _, value in points)


def test_every_tier_reaches_as_far_as_the_api_says() -> None:
    assert [step * size for step, size in TIERS] == [3600, 21_600, DAY_S]
