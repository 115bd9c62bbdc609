"""Looking at running games costs a bounded share of the time, whatever their number and the machine's speed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.node.vigil import SHARE, pause_after


@given(cost=st.floats(1e-6, 1.0), games=st.integers(1, 5000), every_s=st.floats(0.1, 10))
def test_the_share_of_time_is_bounded(cost: float, games: int, every_s: float) -> None:
    pause = pause_after(cost, games, every_s)
    assert cost / (cost + pause) <= SHARE * 1.001


@given(games=st.integers(1, 500))
def test_cheap_looks_come_round_on_time(games: int) -> None:
    cost = 50e-6
    assert games * (cost + pause_after(cost, games, 3.0)) == pytest.approx(3.0, rel=0.01)
