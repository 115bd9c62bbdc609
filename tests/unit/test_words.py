"""What games say: understood or refused with a word, and what the region makes of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.node.game_api import CALLS_AT_ONCE, CALLS_PER_S, Door
from fleet.node.model import RunState, RunView
from fleet.node.runtime import RunKey
from fleet.node.words import Beat, Players, Ready, StopMe, Word, to_keep, word_of
from fleet.region.model import Advance, End, Policy, Requeue, StopRun
from fleet.region.plan import plan_server
from fleet.store.tables import Server

KEY = RunKey("i", 1)
POLICY = Policy(120_000, 600_000, 30_000, 180_000, 1000, 60_000, 5, 300_000, 0)


def words() -> st.SearchStrategy[Word]:
    counts = st.integers(0, 100_000)
    return st.one_of(
        st.just(Ready()),
        st.builds(Players, counts, st.none() | counts),
        st.builds(Beat, st.floats(5, 600)),
        st.builds(StopMe, st.text(max_size=200)),
    )


@given(word=words())
def test_what_is_kept_is_the_same_word_again(word: Word) -> None:
    kept = to_keep(word)
    assert (kept is None) == isinstance(word, Players)
    if kept is not None:
        assert word_of(*kept) == word


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2),
)


@given(
    path=st.sampled_from(["/ready", "/players", "/health", "/stop"]),
    body=st.dictionaries(st.sampled_from(["count", "capacity", "within_s", "reason", "x"]), JSON),
)
def test_any_body_is_a_word_within_bounds_or_a_value_error(path: str, body: dict[str, Any]) -> None:
    try:
        word = word_of(path, body)
    except ValueError:
        return
    match word:
        case Players(count, capacity):
            assert 0 <= count <= 100_000
            assert capacity is None or 0 <= capacity <= 100_000
        case Beat(within_s):
            assert 5 <= within_s <= 600
        case StopMe(reason):
            assert len(reason) <= 200
        case _:
            assert path == "/ready"


@given(gaps=st.lists(st.floats(0, 2), max_size=200))
def test_no_game_costs_its_node_more_than_its_share(gaps: list[float]) -> None:
    door, now, let_in = Door(KEY, Path("x")), 1000.0, 0
    begun = now
    for gap in gaps:
        now += gap
        let_in += door.may_call(now)
    assert let_in <= CALLS_AT_ONCE + CALLS_PER_S * (now - begun) + 1e-6
    assert let_in == len(gaps) or len(gaps) > CALLS_AT_ONCE


def server(**changes: Any) -> Server:
    facts: dict[str, Any] = {
        "instance_id": "i", "project_id": "p", "region": "r", "name": "n", "status": "running", "step": "running",
        "compute_size": "small", "build_id": "b", "version_tag": "t", "node_id": "n", "created_at": 0, "updated_at": 0,
        "launched_at": 0, "step_at": 0, "started_at": 0,
    }  # fmt: skip
    return Server(**(facts | changes))


RUN = RunView(KEY, "n", RunState.RUNNING, 0)


def test_a_game_that_asks_to_stop_is_stopped_as_if_it_had_ended() -> None:
    asked = replace(RUN, stop_asked="match over")
    for row in (server(), server(auto_restart=True), server(status="launching", step="booting")):
        end, stop = plan_server(row, asked, {}, 5, POLICY)
        assert isinstance(end, End)
        assert (end.stop_reason, end.shutdown_reason, end.gone) == ("exited", "PROCESS_EXITED", False)
        assert "match over" in end.detail
        assert stop == StopRun(KEY, "n")


@pytest.mark.parametrize("auto_restart", [True, False])
def test_a_broken_promise_to_beat_is_a_crash(auto_restart: bool) -> None:
    silent = replace(RUN, silent="stopped beating")
    verdict, stop = plan_server(server(auto_restart=auto_restart), silent, {}, 5, POLICY)
    assert isinstance(verdict, Requeue if auto_restart else End)
    assert stop == StopRun(KEY, "n")
    assert not silent.well
    assert plan_server(server(), RUN, {}, 5, POLICY) == []
    booting = plan_server(server(status="launching", step="booting"), silent, {}, 5, POLICY)
    assert booting == [Advance("i", "running", 0)], "first things first"
