"""The forecast of room for a region: looks ahead, holds, learns its margin, stays small."""

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.pools.forecast import ForecastState, NodePolicy, observe, slots_ahead
from fleet.pools.season import Season

POLICY = NodePolicy()
LEAD_S = 300.0


def lived(days: int, level: int = 100, seed: int = 1) -> tuple[ForecastState, float, float]:
    """A region whose servers follow the sun; returns also the last minute and how often the room sufficed."""
    chance, state = random.Random(seed), ForecastState()
    made: list[tuple[float, float, float]] = []
    fine = checked = 0
    at = 0.0
    for minute in range(days * 1440):
        at = minute * 60.0
        usual = level * (1 + 0.8 * math.sin(at / 86_400 * 2 * math.pi))
        running = max(0, round(chance.gauss(usual, math.sqrt(usual))))
        state = observe(state, at, round(usual / 20), running)
        state, forecast = slots_ahead(state, at + 60, LEAD_S, (), 0, POLICY)
        made.append((at + 60 + LEAD_S, running, forecast.upper))
        if made[0][0] <= at:
            _, before, upper = made.pop(0)
            checked += 1
            fine += running - before <= upper
    return state, at, fine / checked


def test_room_suffices_as_often_as_wanted() -> None:
    _, _, share = lived(3)
    assert share >= 0.99


def test_the_morning_is_foreseen_from_the_second_day_on() -> None:
    state, at, _ = lived(2)
    sunrise = at + 60 + 86_400 * 0.95 - (at + 60) % 86_400
    early = slots_ahead(state, sunrise, LEAD_S, (), 0, POLICY)[1]
    evening = slots_ahead(state, sunrise + 43_200, LEAD_S, (), 0, POLICY)[1]
    assert early.explanation["usual_growth"] > 0
    assert evening.explanation["usual_growth"] == 0


def test_events_and_the_queue_are_room_wanted() -> None:
    state, at, _ = lived(1)
    plain = slots_ahead(ForecastState.from_json(state.to_json()), at + 60, LEAD_S, (), 0, POLICY)[1]
    more = slots_ahead(state, at + 60, LEAD_S, [(at + 200, 500.0), (at + 4000, 900.0)], 40, POLICY)[1]
    assert more.mean - plain.mean == 540
    assert more.upper >= plain.upper + 540


def test_a_burst_is_answered_at_once_and_held() -> None:
    state = ForecastState()
    for minute in range(60):
        observe(state, minute * 60.0, 2, 10)
        state, calm = slots_ahead(state, minute * 60.0 + 60, LEAD_S, (), 0, POLICY)
    observe(state, 3600.0, 100, 110)
    state, burst = slots_ahead(state, 3660.0, LEAD_S, (), 0, POLICY)
    assert burst.upper > calm.upper + 100
    for minute in range(61, 70):
        observe(state, minute * 60.0, 2, 110)
        state, after = slots_ahead(state, minute * 60.0 + 60, LEAD_S, (), 0, POLICY)
    assert after.upper >= burst.upper


@given(
    st.lists(st.tuples(st.floats(-1e5, 1e5), st.integers(0, 5000), st.integers(0, 100_000)), max_size=80),
    st.floats(0, 1e5),
)
@settings(max_examples=40, deadline=None)
def test_whatever_the_clock_does_it_is_sane_small_and_survives_json(
    minutes: list[tuple[float, int, int]], lead_s: float
) -> None:
    state, at = ForecastState(), 1e9
    for jump, arrivals, running in minutes:
        at += jump
        state = observe(state, at, arrivals, running)
        state, forecast = slots_ahead(state, at, lead_s, (), 0, POLICY)
        assert 0 <= forecast.mean <= forecast.upper
        assert math.isfinite(forecast.upper)
    stored = json.dumps(state.to_json())
    assert len(stored) < 16_384
    again = ForecastState.from_json(json.loads(stored))
    assert slots_ahead(again, at, lead_s, (), 0, NodePolicy(most=7.0))[1].upper <= 7.0


def test_a_season_knows_a_weekday_apart_from_the_others() -> None:
    season = Season()
    for hour in range(3 * 7 * 24):
        weekend = hour // 24 % 7 >= 5
        for half in (0, 1800):
            season.observe(hour * 3600.0 + half, 1800.0 * (5 if weekend else 1), 1800.0)
    monday, sunday = 3 * 604_800.0 + 40_000, 3 * 604_800.0 + 6 * 86_400 + 40_000
    assert season.rate(sunday) > 2.5 * season.rate(monday)  # type: ignore[operator]
    again = Season.from_json(json.loads(json.dumps(season.to_json())))
    assert again.rate(sunday) == pytest.approx(season.rate(sunday), rel=1e-4)
    assert Season().rate(0.0) is None
