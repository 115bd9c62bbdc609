"""Boot slots: nobody waits for ever behind somebody else's pools."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fleet.pools.slots import Asks, share_slots, slot_ms


def test_projects_come_before_pools() -> None:
    """Three pools of one project have together what the one pool of another has."""
    asks = [Asks(f"a{i}", "a", 0, 9) for i in range(3)] + [Asks("b", "b", 0, 9)]
    assert share_slots(6, asks) == {"a0": 1, "a1": 1, "a2": 1, "b": 3}


def test_who_holds_slots_waits_for_who_holds_none() -> None:
    assert share_slots(8, [Asks("a", "a", 6, 9), Asks("b", "b", 0, 9)]) == {"b": 2}


def test_what_nobody_else_wants_goes_to_who_wants_it() -> None:
    assert share_slots(8, [Asks("a", "a", 0, 20), Asks("b", "b", 0, 1)]) == {"a": 7, "b": 1}


def test_a_slow_pool_holds_its_slot_as_long_as_its_like_take() -> None:
    assert slot_ms(1.0) == 60_000
    assert slot_ms(120.0) == 360_000


asked = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 6), st.integers(0, 12)),
    max_size=10,
).map(lambda rows: [Asks(i, project, booting, wanted) for i, (project, booting, wanted) in enumerate(rows)])


@given(st.integers(0, 20), asked)
def test_the_shares_are_max_min_fair(slots: int, asks: list[Asks[int]]) -> None:
    given_out = share_slots(slots, asks)
    by_key = {ask.key: ask for ask in asks}
    held = sum(ask.booting for ask in asks)
    assert all(0 < number <= by_key[key].wanted for key, number in given_out.items())
    assert held + sum(given_out.values()) <= max(slots, held)
    left = [ask for ask in asks if given_out.get(ask.key, 0) < ask.wanted]
    if left:
        assert held + sum(given_out.values()) >= slots, "a slot stays free though somebody wants it"
    has = Counter[str]()
    for ask in asks:
        has[ask.project_id] += ask.booting + given_out.get(ask.key, 0)
    for ask in left:  # whoever still wants has at most one less than anybody who was given some
        for key in given_out:
            assert has[by_key[key].project_id] <= has[ask.project_id] + 1
