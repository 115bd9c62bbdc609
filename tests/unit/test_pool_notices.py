"""What a pool tells of itself: few words, each true, and none per claim."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fleet.pools.notices import BLOCKED_FAILURES, EMPTY_MS, GAP_MS, Notice, Told, notices

LOOK_MS = 10_000


def tell(looks: list[tuple[int, int, int]]) -> list[tuple[int, Notice]]:
    """(failures, warm, target) at each look -> what was told when."""
    told, found, now = Told(), [], GAP_MS
    for failures, warm, target in looks:
        told, words = notices(told, now, failures, warm, target)
        found += [(now, word) for word in words]
        now += LOOK_MS
    return found


def test_a_new_pool_tells_once_it_is_ready() -> None:
    assert [word for _, word in tell([(0, 0, 3), (0, 0, 3), (0, 0, 3), (0, 2, 3), (0, 3, 3), (0, 3, 3)])] == ["ready"]


def test_it_tells_of_emptiness_that_lasts_and_of_being_ready_again() -> None:
    looks = [(0, 2, 2)] + [(0, 0, 2)] * 8 + [(0, 2, 2)] * 8
    assert [word for _, word in tell(looks)] == ["ready", "empty", "ready"]


def test_boots_that_fail_in_a_row_block_it_until_one_works() -> None:
    looks = [(n, 0, 2) for n in range(BLOCKED_FAILURES + 5)] + [(0, 1, 2)] * 3
    assert [word for _, word in tell(looks)] == ["blocked", "unblocked"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 4)), max_size=80))
def test_words_alternate_and_come_seldom(looks: list[tuple[int, int, int]]) -> None:
    found = tell(looks)
    levels = [(at, word) for at, word in found if word in ("empty", "ready")]
    doors = [word for _, word in found if word in ("blocked", "unblocked")]
    assert [word for _, word in levels] == [("ready", "empty")[i % 2] for i in range(len(levels))]
    assert doors == [("blocked", "unblocked")[i % 2] for i in range(len(doors))]
    assert all(later - earlier >= GAP_MS for (earlier, _), (later, _) in pairwise(levels))
    assert EMPTY_MS > LOOK_MS  # one look never tells of emptiness
