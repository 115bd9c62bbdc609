"""The stock policy: bounds, monotony, clocks, memory of its own state."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.pools.lead import booted, lead_seconds, new_lead
from fleet.pools.negbin import cdf, log_pmf, quantile
from fleet.pools.season import Season
from fleet.pools.stock import StockPolicy, StockState, arrived, decide, new_state

AUTO = StockPolicy()
Steps = list[tuple[float, int, bool]]
steps = st.lists(st.tuples(st.floats(0.0, 300.0), st.integers(0, 40), st.booleans()), max_size=60)
leads = st.floats(0.2, 900.0)


def fed(path: Steps, lead_s: float, policy: StockPolicy = AUTO) -> StockState:
    """A pool that lived through `path`: pauses, claims, and whether they missed."""
    state, at = new_state(1e9), 1e9
    for pause, count, missed in path:
        at += pause
        state = arrived(state, at, count, count if missed else 0, lead_s, policy)
        state, _ = decide(state, at, lead_s, (), policy)
    return state


@given(steps, leads, st.integers(0, 30), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_between_floor_and_ceiling_and_never_dropped_below_the_target(
    path: Steps, lead_s: float, floor: int, more: int
) -> None:
    policy = StockPolicy(floor=floor, ceiling=floor + more)
    state, decision = decide(fed(path, lead_s, policy), 2e9, lead_s, (), policy)
    assert floor <= decision.target <= max(floor, floor + more)
    assert decision.target <= decision.keep <= max(floor, floor + more)
    assert decision.auto_target >= 1
    assert 0 <= decision.expected_hit_rate <= 1
    assert len(json.dumps(state.to_json())) < 2048


@given(steps, leads, st.floats(0.6, 0.98), st.floats(0.001, 0.019))
@settings(max_examples=60, deadline=None)
def test_who_wants_more_hits_gets_no_smaller_stock(path: Steps, lead_s: float, slo: float, more: float) -> None:
    state = fed(path, lead_s)
    state.debt = 0.0
    copy = StockState.from_json(state.to_json())
    low = decide(state, state.at, lead_s, (), StockPolicy(slo=slo))[1]
    high = decide(copy, copy.at, lead_s, (), StockPolicy(slo=slo + more))[1]
    assert high.auto_target >= low.auto_target


@given(st.floats(0.01, 300), st.floats(1.0, 5.0), st.floats(1.01, 4.0))
@settings(max_examples=100, deadline=None)
def test_more_demand_needs_no_smaller_stock(mean: float, over: float, times: float) -> None:
    # One server less is possible where the exact sum gives way to the expansion.
    assert quantile(mean * times, mean * times * over, 0.01) >= quantile(mean, mean * over, 0.01) - 1


def test_twice_the_claims_need_more_servers() -> None:
    targets: list[int] = []
    for claims in (1, 2, 4, 8):
        state = fed([(10.0, claims, False)] * 200, 30.0)
        state.debt = 0.0
        targets.append(decide(state, state.at, 30.0, (), AUTO)[1].target)
    assert targets == sorted(targets)
    assert targets[-1] > 3 * targets[0]


@given(steps, leads, st.floats(-1e8, 1e8))
@settings(max_examples=60, deadline=None)
def test_a_clock_that_jumps_changes_no_target(path: Steps, lead_s: float, jump: float) -> None:
    state = fed(path, lead_s)
    copy = StockState.from_json(json.loads(json.dumps(state.to_json())))
    before = decide(state, state.at, lead_s, (), AUTO)[1]
    if -1.0 <= jump <= 900.0:
        jump = 1e7
    after = decide(copy, copy.at + jump, lead_s, (), AUTO)[1]
    assert abs(after.target - before.target) <= 1  # JSON keeps six digits
    assert abs(after.keep - before.keep) <= 1


def test_stock_is_held_and_then_let_go() -> None:
    policy = StockPolicy(hold_s=600)
    state = fed([(5.0, 10, False)] * 40, 30.0, policy)
    high = decide(state, state.at, 30.0, (), policy)[1].target
    for _ in range(100):
        state, decision = decide(state, state.at + 5, 30.0, (), policy)
    assert decision.keep >= high
    assert decision.target < high / 4
    for _ in range(400):
        state, decision = decide(state, state.at + 5, 30.0, (), policy)
    assert decision.keep < high / 4


def test_misses_are_paid_back() -> None:
    good, bad = (fed([(5.0, 1, missed)] * 20, 30.0) for missed in (False, True))
    assert decide(bad, bad.at, 30.0, (), AUTO)[1].target > decide(good, good.at, 30.0, (), AUTO)[1].target


def test_bursts_that_repeat_are_met_though_nothing_foretells_them() -> None:
    path: Steps = []
    for _ in range(16):
        path += [(0.5, 1, True)] * 30 + [(10.0, 0, False)] * 90
    state = fed(path, 30.0)
    assert state.debt > 36
    assert decide(state, state.at, 30.0, (), AUTO)[1].target >= 30
    once = fed([(0.5, 1, True)] * 90 + [(10.0, 0, False)] * 360, 30.0)
    assert decide(once, once.at, 30.0, (), AUTO)[1].target < 15


def test_shadow_shows_and_fixed_keeps_the_floor() -> None:
    for mode in ("shadow", "fixed"):
        policy = StockPolicy(floor=3, mode=mode)
        state = fed([(1.0, 5, False)] * 100, 30.0, policy)
        decision = decide(state, state.at, 30.0, (), policy)[1]
        assert (decision.target, decision.keep) == (3, 3)
        assert decision.auto_target > 100
        assert decision.expected_hit_rate < 0.01


def test_money_decides_if_both_costs_are_known() -> None:
    dear, cheap = (StockPolicy(miss_cost=1.0, idle_cost_per_hour=cost) for cost in (5.0, 0.001))
    state = fed([(10.0, 1, False)] * 300, 30.0)
    copy = StockState.from_json(state.to_json())
    assert decide(state, state.at, 30.0, (), dear)[1].target < decide(copy, copy.at, 30.0, (), cheap)[1].target


def test_a_batch_needs_as_many_as_come_at_once() -> None:
    state = fed([(300.0, 8, False)] * 100, 30.0)
    assert decide(state, state.at + 250, 30.0, (), AUTO)[1].target >= 8


def test_what_is_announced_is_ready_in_time() -> None:
    state = fed([(10.0, 1, False)] * 60, 30.0)
    at = state.at
    calm = decide(state, at, 30.0, (), AUTO)[1].target
    assert decide(state, at, 30.0, [(at + 25, 500.0)], AUTO)[1].target > calm + 490
    assert decide(state, at, 30.0, [(at + 31, 500.0)], AUTO)[1].target == calm


def test_claims_that_always_come_announced_are_not_expected_twice() -> None:
    lead_s, state = 30.0, new_state(0.0)
    twin = new_state(0.0)
    for k in range(400):
        at = 10.0 * k
        for one, known in ((state, ()), (twin, [(at + 10.0 * ahead, 2.0) for ahead in (0.5, 1.5, 2.5)])):
            arrived(one, at + 5, 2, 0, lead_s, AUTO)
            _, decision = decide(one, at + 10, lead_s, [(when + 10, count) for when, count in known], AUTO)
            one.debt = 0.0
            if one is state:
                unannounced = decision.target
    assert 7 <= decision.target < unannounced


def test_a_known_season_is_ordered_ahead_of() -> None:
    season = Season()
    for minute in range(3 * 1440):
        season.observe(minute * 60.0, 600.0 if minute % 1440 >= 720 else 6.0, 60.0)
    at = 3 * 86_400.0 + 12 * 3600 - 900
    state, plain = new_state(at - 7200), new_state(at - 7200)
    for second in range(0, 7200, 10):
        for one, known in ((state, season), (plain, None)):
            arrived(one, at - 7200 + second, 1, 0, 180.0, AUTO)
            decide(one, at - 7200 + second, 180.0, (), AUTO, known)
    assert state.rates.season_now is not None
    assert decide(state, at, 180.0, (), AUTO, season)[1].target >= decide(plain, at, 180.0, (), AUTO)[1].target


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=80))
@settings(max_examples=50, deadline=None)
def test_lead_times_stay_sane(boots: list[float]) -> None:
    lead = new_lead()
    for seconds in boots:
        lead = booted(lead, seconds)
    assert 0 < lead_seconds(lead) < 1e4
    assert new_lead(json.loads(json.dumps(lead.to_json()))) == lead


def test_one_stuck_boot_does_not_move_the_lead_time_far() -> None:
    lead = new_lead()
    for _ in range(60):
        lead = booted(lead, 4.0)
    assert lead_seconds(lead) == pytest.approx(4.0, rel=0.1)
    assert lead_seconds(booted(lead, 3000.0)) < 6.0


def test_the_quantile_is_that_of_the_closed_forms() -> None:
    assert quantile(3.0, 3.0, 0.01) == 8  # Poisson(3): P(N <= 8) = .9962, so nine servers: findings, section 4
    assert quantile(0.5, 0.5, 0.01) == 3
    for mean, variance in ((4.0, 12.0), (20.0, 30.0), (200.0, 1500.0), (5000.0, 9000.0)):
        shape = mean * mean / (variance - mean)
        total, k = 0.0, -1
        while total < 0.99:
            k += 1
            total += math.exp(log_pmf(k, mean, shape))
        assert abs(quantile(mean, variance, 0.01) - k) <= 1 + mean / 500
        assert cdf(k, mean, variance) == pytest.approx(total, abs=0.004)


def test_a_policy_is_a_value() -> None:
    assert replace(AUTO, slo=0.9) != AUTO
