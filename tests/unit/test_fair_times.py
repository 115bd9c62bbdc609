"""Deadlines begin when somebody could have kept them, and act in every step. Stamps of a node whose clock is off are
taken only as far as they can be true."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.node.model import RunState, RunView
from fleet.node.runtime import RunKey
from fleet.region.model import Advance, End, Finish, Launch, NodeView, Place, Requeue, StopRun
from fleet.region.plan import STEPS, deadline, plan_server
from fleet.store.tables import Server
from tests.unit.test_region_machine import POLICY

NOW = 100_000_000
DAY = 86_400_000
NODE = NodeView("n", "h", 4096, 4.0, synced=True, synced_since=1)
LAUNCHING = STEPS[:-1]
LIVE_STEPS = (*STEPS, "stopping")


def server(step: str, since: int, **values: Any) -> Server:
    status = "running" if step == "running" else "stopped" if step == "stopping" else "launching"
    given: dict[str, Any] = {
        "instance_id": "a",
        "project_id": "p",
        "region": "us-east",
        "name": "s",
        "status": status,
        "step": step,
        "compute_size": "small",
        "build_id": "b",
        "version_tag": "default",
        "node_id": None if step == "queued" else "n",
        "generation": 1,
        "started_at": since if step == "running" else None,
    }
    times = dict.fromkeys(("created_at", "updated_at", "launched_at", "step_at"), since)
    return Server(**{**given, **times, **values})


def run(state: str, at: int, **values: Any) -> RunView:
    return RunView(RunKey("a", 1), "n", RunState(state), at, **values)


def planned(row: Server, view: RunView | None, node: NodeView | None = NODE, **policy: Any) -> list[Any]:
    nodes = {} if node is None else {"n": node}
    return plan_server(row, view, nodes, NOW, replace(POLICY, **policy))


# Begin when somebody could have acted ------------------------------------------------------------------------------


def test_a_crash_during_an_outage_is_followed_by_a_whole_wait_for_a_node() -> None:
    crashed = run("exited", NOW - 20 * 60_000, exit_code=139)
    requeue, _ = planned(server("running", NOW - DAY, auto_restart=True), crashed)
    assert isinstance(requeue, Requeue)
    assert (requeue.at, requeue.queued_at) == (crashed.at, NOW)
    again = server("queued", requeue.queued_at, generation=2, retry_at=requeue.retry_at)
    assert planned(again, None) == [Place("a")]
    assert (deadline(again, NOW, POLICY) or 0) >= NOW + POLICY.queue_deadline_ms


def test_the_queue_is_not_over_before_this_manager_has_looked() -> None:
    waits = server("queued", NOW - DAY)
    assert planned(waits, None, watching_since=NOW - 1000) == [Place("a")]
    assert isinstance(planned(waits, None, watching_since=NOW - POLICY.queue_deadline_ms)[0], End)


def test_a_node_that_has_just_come_back_is_tried_before_a_wait_counts_as_vain() -> None:
    back = replace(NODE, synced_since=NOW - 1000)
    assert planned(server("queued", NOW - DAY), None, back) == [Place("a")]


def test_a_game_that_booted_during_an_outage_is_looked_at_before_it_is_never_ready() -> None:
    boots, adopted = server("booting", NOW - DAY), run("booting", NOW - DAY)
    back = replace(NODE, synced_since=NOW - 1000)
    assert planned(boots, adopted, back) == []
    assert planned(boots, adopted, watching_since=NOW - 1000) == []
    assert planned(boots, adopted, replace(NODE, synced=False, unsynced_since=NOW - 1000)) == []
    late = replace(NODE, synced_since=NOW - POLICY.ready_deadline_ms)
    assert [end.stop_reason for end in planned(boots, adopted, late)[:1]] == ["never_ready"]


# Act in every step -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["preparing", "creating", "booting"])
@pytest.mark.parametrize("auto_restart", [False, True])
def test_a_launch_that_does_not_come_on_ends_or_is_tried_again(step: str, auto_restart: bool) -> None:
    verdict, stop = planned(server(step, NOW - DAY, auto_restart=auto_restart), run(step, NOW - DAY))
    assert isinstance(verdict, Requeue if auto_restart else End)
    assert isinstance(stop, StopRun)


def test_a_download_that_comes_on_is_not_given_up() -> None:
    assert planned(server("preparing", NOW - DAY), run("preparing", NOW - 60_000)) == []


@pytest.mark.parametrize("step", LAUNCHING)
def test_the_ttl_acts_while_the_server_still_launches(step: str) -> None:
    row = server(step, NOW - 1000, ttl=600, launched_at=NOW - DAY)
    view = None if step in ("queued", "placed") else run(step, NOW - 1000)
    assert planned(row, view)[0].stop_reason == "ttl"


@pytest.mark.parametrize("step", LAUNCHING)
def test_every_launching_step_has_a_deadline(step: str) -> None:
    assert deadline(server(step, NOW), NOW, POLICY) is not None


# A node that is lost -----------------------------------------------------------------------------------------------

LOST = [
    replace(NODE, synced=False, unsynced_since=NOW - 1000, lost=True),
    replace(NODE, synced=False, unsynced_since=NOW - DAY),
    None,
]


@pytest.mark.parametrize("node", LOST, ids=["said to be lost", "silent for a day", "unknown for a day"])
@pytest.mark.parametrize("step", LIVE_STEPS)
def test_nothing_waits_for_a_lost_node_though_its_run_is_known(step: str, node: NodeView | None) -> None:
    alive = run("running" if step == "stopping" else step, NOW - DAY) if step not in ("queued", "placed") else None
    acts = planned(server(step, NOW - DAY, auto_restart=False), alive, node)
    expected = {"queued": End, "running": End, "stopping": Finish}.get(step, Requeue)
    assert isinstance(acts[0], expected)


def test_a_silent_node_keeps_its_servers_while_its_agent_may_be_begun_anew() -> None:
    silent = replace(NODE, synced=False, unsynced_since=NOW - 2 * POLICY.node_lost_ms)
    assert planned(server("running", NOW - DAY), run("running", NOW - DAY), silent) == []


# Clocks that are off -----------------------------------------------------------------------------------------------


@given(
    step=st.sampled_from(LIVE_STEPS),
    state=st.sampled_from(list(RunState)),
    at=st.integers(-DAY, NOW + DAY),
    since=st.integers(1, NOW),
    auto_restart=st.booleans(),
    code=st.sampled_from([None, 0, 139]),
)
def test_what_a_node_says_of_times_is_between_the_step_and_now(
    step: str, state: RunState, at: int, since: int, auto_restart: bool, code: int | None
) -> None:
    row = server(step, since, auto_restart=auto_restart)
    for act in planned(row, run(state.value, at, exit_code=code)):
        if isinstance(act, Advance | End | Finish | Requeue):
            assert since <= act.at <= NOW
        if isinstance(act, Requeue):
            assert act.queued_at >= NOW


def test_a_launch_that_a_node_lost_is_told_again() -> None:
    assert planned(server("placed", NOW - 1000), None) == [Launch("a")]
