"""Runs by key, server and node, also while two nodes tell of the same one: one counts, the rest is ended."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.node.model import RunState, RunView
from fleet.node.runtime import RunKey
from fleet.region.model import Forget, StopRun
from fleet.region.plan import plan_runs
from fleet.region.runs import Runs
from fleet.store.tables import Server

NODES = ("a", "b", "c")
KEY = RunKey("s1", 1)


def view(node: str, state: RunState = RunState.RUNNING, key: RunKey = KEY) -> RunView:
    return RunView(key, node, state, 1)


def test_a_run_told_by_another_node_than_the_rows_is_ended_and_changes_nothing() -> None:
    """Whichever of the two is heard first."""
    for order in (("a", "b"), ("b", "a")):
        runs = Runs()
        runs.place_of = lambda _key: "a"
        for node in order:
            runs.replace_node(node, [view(node)])
        assert {key: run.node_id for key, run in runs.items()} == {KEY: "a"}
        owned = {"s1": Server(instance_id="s1", generation=1)}
        assert plan_runs(owned, runs, runs.rivals()) == [StopRun(KEY, "b")]
        runs[KEY] = view("b", RunState.EXITED)
        assert plan_runs(owned, runs, runs.rivals()) == [Forget(KEY, "b")]
        runs.forget_rival(KEY, "b")
        assert plan_runs(owned, runs, runs.rivals()) == []


def test_both_runs_of_a_server_that_is_gone_are_ended() -> None:
    runs = Runs()
    for node in "ab":
        runs.replace_node(node, [view(node)])
    assert set(plan_runs({}, runs, runs.rivals())) == {StopRun(KEY, "a"), StopRun(KEY, "b")}


def test_a_run_counts_no_more_once_the_row_names_another_node() -> None:
    runs, place = Runs(), dict.fromkeys([KEY], "a")
    runs.place_of = place.get
    runs.replace_node("a", [view("a")])
    place[KEY] = "b"
    runs.replace_node("a", [view("a")])
    assert runs == {}
    runs.replace_node("b", [view("b")])
    assert [run.node_id for run in runs.values()] == ["b"]
    assert [run.node_id for run in runs.rivals()] == ["a"]


STATES = st.sampled_from([RunState.CREATING, RunState.RUNNING, RunState.EXITED])
KEYS = st.builds(RunKey, st.sampled_from(["s1", "s2"]), st.integers(1, 2))
TELLS = st.tuples(st.just("tell"), st.sampled_from(NODES), st.dictionaries(KEYS, STATES, max_size=4))
PLACES = st.tuples(st.just("place"), KEYS, st.sampled_from([None, *NODES]))


@given(st.lists(st.one_of(TELLS, PLACES), max_size=12))
def test_every_run_that_a_node_has_told_is_known_once(steps: list[tuple[str, object, object]]) -> None:
    """As what counts or as a rival, by every index; what counts is on the row's node if the row names one."""
    place: dict[RunKey, str | None] = {}
    truth: dict[str, dict[RunKey, RunState]] = {node: {} for node in NODES}
    runs = Runs()
    runs.place_of = place.get
    for what, whom, how in steps:
        if what == "place":
            place[whom] = how  # pyright: ignore[reportArgumentType]
            continue
        truth[whom] = how  # pyright: ignore[reportArgumentType]
        told = [view(whom, state, key) for key, state in how.items()]  # pyright: ignore
        runs.replace_node(whom, told)  # pyright: ignore[reportArgumentType]
        for key in how:  # pyright: ignore
            counted = runs.get(key)
            assert counted is None or place.get(key) in (None, counted.node_id) or counted.node_id != whom
        known = {(run.key, run.node_id, run.state) for run in [*runs.values(), *runs.rivals()]}
        assert known == {(key, node, state) for node, found in truth.items() for key, state in found.items()}
        for node in NODES:
            assert set(runs.on(node)) == {key for key, run in runs.items() if run.node_id == node}
        for name in ("s1", "s2"):
            assert runs.of(name) == {key: run for key, run in runs.items() if key.instance_id == name}
            assert {(r.key, r.node_id) for r in runs.rivals_of(name)} == {
                (r.key, r.node_id) for r in runs.rivals() if r.key.instance_id == name
            }
