"""A manager that stood still, or could not write, does not hold that time against its servers."""

from collections.abc import Iterator

import pytest

from fleet import times
from fleet.region.attention import GAP_MS, Attention


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now * 1_000_000


@pytest.fixture
def clock() -> Iterator[Clock]:
    before, clock = times._clock, Clock()
    times.use_clock(clock)
    yield clock
    times.use_clock(before)


def test_beats_in_time_are_no_break(clock: Clock) -> None:
    attention = Attention(lambda: 0)
    began = clock.now
    for _ in range(5):
        clock.now += GAP_MS
        attention.beat()
    assert attention.since() == began


def test_who_asks_first_after_a_standstill_hears_of_it(clock: Clock) -> None:
    attention = Attention(lambda: 0)
    clock.now += GAP_MS + 1
    woke = clock.now
    assert attention.since() == woke
    clock.now += GAP_MS
    assert attention.since() == woke


def test_the_later_end_of_both_kinds_of_break_counts(clock: Clock) -> None:
    steady = [0]
    attention = Attention(lambda: steady[0])
    steady[0] = clock.now + 5
    assert attention.since() == clock.now + 5
