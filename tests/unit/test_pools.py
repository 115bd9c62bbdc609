"""Pools: what may be wished, what a shelf gives, what is ordered and retired."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fleet.pools.config import PoolConfig, is_pooled, pooled_regions, wishes
from fleet.pools.plan import AILING_MS, UNSURE_MS, Levels, missing, upkeep
from fleet.pools.pool import scheduled
from fleet.pools.shelf import Entry, Shelf

NOW = 10_000_000
DAY = 86_400_000


def config(**values: Any) -> dict[str, Any]:
    return {"pool_config": {"enabled": True, "regions": {"us-east": {"small": 3}}, **values}}


def test_the_apis_own_form_is_a_pool_of_the_default_build() -> None:
    [wish] = wishes("p", config(), "us-east")
    assert (wish.compute_size, wish.build_name, wish.floor, wish.ceiling) == ("small", "default", 3, 12)
    assert wishes("p", config(), "eu-west") == []
    assert is_pooled(config(), "us-east", "small")
    assert not is_pooled(config(), "us-east", "large")
    assert not is_pooled(config(enabled=False), "us-east", "small")
    assert not is_pooled({}, "us-east", "small")


def test_an_alias_names_its_region() -> None:
    wished = config(regions={"south-america": {"small": 1}})
    assert pooled_regions(wished) == {"south-america-brazil"}
    assert len(wishes("p", wished, "south-america-brazil")) == 1
    assert is_pooled(wished, "south-america-brazil", "small")


def test_several_builds_share_a_size() -> None:
    both = config(regions={"us-east": {"small": [{"count": 2}, {"count": 1, "build": "beta", "max": 5, "hot": 1}]}})
    wished = {wish.build_name: wish for wish in wishes("p", both, "us-east")}
    assert set(wished) == {"default", "beta"}
    assert (wished["beta"].floor, wished["beta"].ceiling, wished["beta"].hot) == (1, 5, 1)


def test_a_fixed_pool_never_grows() -> None:
    [wish] = wishes("p", config(policy={"mode": "fixed"}), "us-east")
    assert wish.floor == wish.ceiling == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"regions": {"us-east": {"small": -1}}},
        {"regions": {"us-east": {"small": 100_000}}},
        {"regions": {"us-east": {"small": "many"}}},
        {"regions": {"atlantis": {"small": 1}}},
        {"regions": {"us-east": {"huge": 1}}},
        {"regions": {"us-east": {"persistent-small": 1}}},
        {"regions": {"us-east": {"small": {"count": 4, "max": 2}}}},
        {"regions": {"us-east": {"small": [{"count": 1}, {"count": 2}]}}},
        {"policy": {"slo": 1.0}},
        {"policy": {"miss_cost": 1.0}},
        {"schedule": [{"region": "us-east", "compute_size": "small", "at": "2030-01-01T00:00:00", "count": 5}]},
        {"unknown": 1},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PoolConfig.model_validate(config(**wrong)["pool_config"])


def test_a_size_that_was_removed_takes_only_its_own_pool_along() -> None:
    """It can be wished no more; what was wished beside it stays."""
    event = {"compute_size": "removed", "region": "us-east", "at": "2030-06-01T18:00:00Z", "count": 5}
    stored = config(regions={"us-east": {"removed": 2, "small": 3}}, schedule=[event])
    assert [(wish.compute_size, wish.floor, wish.schedule) for wish in wishes("p", stored, "us-east")] == [
        ("small", 3, ())
    ]
    with pytest.raises(ValidationError, match="unknown compute_size 'removed'"):
        PoolConfig.model_validate(stored["pool_config"])


def test_scheduled_starts_are_announced_as_they_come_near() -> None:
    at = datetime(2030, 6, 1, 18, tzinfo=UTC)
    event = {"region": "us-east", "compute_size": "small", "at": at.isoformat(), "count": 600, "duration_seconds": 600}
    [wish] = wishes("p", config(schedule=[event]), "us-east")
    start = at.timestamp()
    assert scheduled(wish, int((start - 3600) * 1000), 30.0) == []
    near = scheduled(wish, int((start - 20) * 1000), 30.0)
    assert near[0] == (start, pytest.approx(10.0))
    assert max(when for when, _ in near) < start - 20 + 80
    whole = scheduled(wish, int((start - 1) * 1000), 3600.0)
    assert sum(count for _, count in whole) == pytest.approx(600)
    assert scheduled(wish, int((start + 700) * 1000), 30.0) == []


def warm(name: str, *, spec: str = "s", since: int = NOW, **values: Any) -> Entry:
    return Entry(name, spec, "warm", since, **values)


def shelf_of(*entries: Entry) -> Shelf:
    shelf = Shelf()
    for entry in entries:
        shelf.put(entry)
    return shelf


def test_the_best_is_given_first() -> None:
    shelf = shelf_of(
        warm("frozen", since=1, frozen=True),
        warm("leaving", since=2, leaving=True),
        warm("young", since=9),
        warm("old", since=3),
        Entry("booting", "s", "booting", 0),
        Entry("ailing", "s", "ailing", 0),
        warm("other build", spec="t", since=0),
    )
    given_out = [entry.instance_id for _ in range(5) if (entry := shelf.claim("s"))]
    assert given_out == ["old", "young", "leaving", "frozen"]
    assert len(shelf) == 3


names = st.sampled_from([f"e{i}" for i in range(8)])
states = st.sampled_from(["booting", "warm", "ailing", "unsure"])
moves = st.one_of(
    st.tuples(st.just("put"), names, states, st.sampled_from("st"), st.booleans(), st.booleans(), st.integers(0, 5)),
    st.tuples(st.just("drop"), names),
    st.tuples(st.just("claim"), st.sampled_from("st")),
)


@given(st.lists(moves, max_size=60))
def test_a_shelf_is_its_entries_whatever_happens(history: list[tuple[Any, ...]]) -> None:
    shelf, model = Shelf(), dict[str, Entry]()
    for move in history:
        if move[0] == "put":
            _, name, state, spec, frozen, leaving, since = move
            model[name] = Entry(name, spec, state, since, None, frozen, leaving)
            shelf.put(model[name])
        elif move[0] == "drop":
            assert shelf.drop(move[1]) == model.pop(move[1], None)
        else:
            fit = [e for e in model.values() if e.state == "warm" and e.spec == move[1]]
            best = min(fit, key=lambda e: e.ticket) if fit else None
            assert shelf.claim(move[1]) == best
            if best is not None:
                del model[best.instance_id]
        for spec in "st":
            for state in ("booting", "warm", "ailing", "unsure"):
                expected = sum(e.spec == spec and e.state == state for e in model.values())
                assert shelf.count(spec, state) == expected
            stays = sum(e.spec == spec and e.state == "warm" and not e.leaving for e in model.values())
            assert shelf.staying(spec) == stays


def test_a_heap_of_old_tickets_does_not_grow() -> None:
    shelf = shelf_of(warm("a"))
    for i in range(10_000):
        shelf.put(warm("a", since=i))
    assert len(shelf._ready["s"]) < 300


def test_what_boots_is_not_ordered_again() -> None:
    shelf = shelf_of(warm("a"), Entry("b", "s", "booting", NOW), Entry("c", "s", "unsure", NOW))
    assert missing(shelf, "s", 5, NOW) == 2
    assert missing(shelf, "s", 2, NOW) == 0
    assert missing(shelf, "other", 2, NOW) == 2
    assert missing(shelf, None, 2, NOW) == 0


def test_what_stands_on_a_node_that_stays_silent_is_ordered_anew() -> None:
    shelf = shelf_of(*(Entry(f"e{i}", "s", "unsure", NOW) for i in range(3)), Entry("other", "t", "unsure", NOW))
    assert missing(shelf, "s", 3, NOW + UNSURE_MS - 1) == 0
    assert missing(shelf, "s", 3, NOW + UNSURE_MS) == 3
    shelf.put(warm("e0"))  # its node is back
    assert missing(shelf, "s", 3, NOW + UNSURE_MS) == 2


def test_a_leaving_entry_is_replaced_before_it_goes() -> None:
    shelf = shelf_of(warm("a", node_id="n1"), warm("b", node_id="n2"))
    first = upkeep(shelf, "s", Levels(2, 2), NOW, max_age_ms=DAY, draining={"n1"})
    assert first.leaving == {"a"}
    assert first.retire == ()
    shelf.put(warm("a", node_id="n1", leaving=True))
    assert missing(shelf, "s", 2, NOW) == 1
    shelf.put(warm("c", node_id="n2"))
    assert upkeep(shelf, "s", Levels(2, 2), NOW, max_age_ms=DAY, draining={"n1"}).retire == ("a",)


def test_old_entries_go_one_by_one() -> None:
    shelf = shelf_of(*(warm(f"e{i}", since=i) for i in range(4)))
    todo = upkeep(shelf, "s", Levels(4, 4), NOW, max_age_ms=1000)
    assert todo.leaving == {"e0"}
    assert todo.retire == ()


def test_a_new_version_takes_over_without_a_gap() -> None:
    shelf = shelf_of(warm("old1"), warm("old2"), Entry("old3", "s", "booting", NOW))
    todo = upkeep(shelf, "new", Levels(2, 2), NOW, max_age_ms=DAY)
    assert todo.retire == ("old3",)
    shelf.put(warm("new1", spec="new"))
    todo = upkeep(shelf, "new", Levels(2, 2), NOW, max_age_ms=DAY)
    assert len([name for name in todo.retire if name.startswith("old") and name != "old3"]) == 1


def test_a_game_whose_ports_stay_closed_goes() -> None:
    shelf = shelf_of(Entry("a", "s", "ailing", NOW - AILING_MS), Entry("b", "s", "ailing", NOW))
    assert upkeep(shelf, "s", Levels(2, 2), NOW, max_age_ms=DAY).retire == ("a",)


def test_all_but_the_hot_ones_are_frozen_and_thawed_in_time() -> None:
    shelf = shelf_of(*(warm(f"e{i}", since=NOW - 60_000 + i) for i in range(3)), warm("new", since=NOW))
    todo = upkeep(shelf, "s", Levels(4, 4), NOW, max_age_ms=DAY, hot=1)
    assert todo.freeze == ("e1", "e2")  # "new" may still be loading
    for name in todo.freeze:
        shelf.put(warm(name, since=NOW - 60_000, frozen=True))
    shelf.drop("e0")
    shelf.drop("new")
    assert upkeep(shelf, "s", Levels(4, 4), NOW, max_age_ms=DAY, hot=1).thaw == ("e1",)
    assert set(upkeep(shelf, "s", Levels(4, 4), NOW, max_age_ms=DAY, hot=None).thaw) == {"e1", "e2"}


def test_a_pool_without_a_product_is_emptied() -> None:
    shelf = shelf_of(warm("a"), Entry("b", "s", "booting", NOW))
    assert set(upkeep(shelf, None, Levels(0, 0), NOW, max_age_ms=DAY).retire) == {"a", "b"}


entries = st.lists(
    st.builds(
        Entry,
        st.uuids().map(str),
        st.sampled_from("st"),
        states,
        st.integers(NOW - 2 * DAY, NOW),
        st.sampled_from(["n1", "n2"]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=12,
)


@given(entries, st.integers(0, 12), st.integers(0, 6), st.sampled_from([None, 0, 2]))
def test_upkeep_never_takes_warm_ones_below_the_target(
    all_entries: list[Entry], target: int, slack: int, hot: int | None
) -> None:
    shelf = shelf_of(*all_entries)
    todo = upkeep(shelf, "s", Levels(target, target + slack), NOW, max_age_ms=DAY, hot=hot, draining={"n1"})
    assert len(set(todo.retire)) == len(todo.retire)
    warm_before = [e for e in all_entries if e.state == "warm"]
    warm_after = [e for e in warm_before if e.instance_id not in todo.retire]
    assert len(warm_after) >= min(len(warm_before), target)
    mine_before = [e for e in warm_before if e.spec == "s"]
    mine_after = [e for e in warm_after if e.spec == "s"]
    assert len(mine_after) >= min(len(mine_before), target)
    assert not set(todo.freeze) & set(todo.thaw)
    assert not (set(todo.freeze) | set(todo.thaw)) & set(todo.retire)
