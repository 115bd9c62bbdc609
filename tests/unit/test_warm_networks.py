"""Which networks a node keeps ready."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.node.warm_networks import Shape, wanted

SHAPES = [Shape("127.0.0.1", ((7777, "udp"),)), Shape("127.0.0.1", ((7777, "tcp"),)), Shape("::1", ((1, "udp"),))]


@given(st.lists(st.sampled_from(SHAPES), max_size=16), st.integers(0, 6))
def test_all_are_shared_out_by_what_was_launched(recent: list[Shape], count: int) -> None:
    shares = wanted(recent, count)
    assert shares.total() == (count if recent else 0)
    assert set(shares) <= set(recent)
    for one in shares:
        for other in set(recent):
            if recent.count(one) < recent.count(other):
                assert shares[one] <= shares[other]


def test_the_only_shape_gets_all_and_of_equals_the_latest_is_first() -> None:
    assert wanted([SHAPES[0]], 3) == {SHAPES[0]: 3}
    assert wanted([SHAPES[0], SHAPES[1]], 1) == {SHAPES[1]: 1}
