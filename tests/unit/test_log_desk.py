"""Where a run's log is asked for: at the node that has the run, or had it, and nowhere if nobody knows."""

from typing import Any

import pytest

from fleet.errors import Unavailable
from fleet.node.model import RunState, RunView
from fleet.node.runtime import LogLine, RunKey
from fleet.region.log_desk import LogDesk
from fleet.store.tables import Server

KEY = RunKey("a", 1)
LINE = LogLine(1, "hello", "stdout", "1")


class Leases:
    """Nodes that answer, and what they were asked."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = set(nodes)
        self.asked: list[tuple[str, str, float]] = []
        self.comes: str | None = None
        self.waited: list[float] = []

    def views(self) -> set[str]:
        return self.nodes

    async def wait_change(self, timeout_s: float) -> None:
        self.waited.append(timeout_s)
        if self.comes is not None:
            self.nodes.add(self.comes)

    async def call(self, node_id: str, method: str, *_: Any, timeout_s: float) -> Any:
        if node_id not in self.nodes:
            raise Unavailable(f"Node {node_id} is not leased now.")
        self.asked.append((node_id, method, timeout_s))
        return ([LINE], False) if method == "wait_logs" else [LINE]


def desk(leases: Leases, *, run_on: str | None = None, row_on: str | None = None) -> LogDesk:
    runs = {} if run_on is None else {KEY: RunView(KEY, run_on, RunState.RUNNING, 0)}

    async def find(instance_id: str) -> Server | None:
        return None if row_on is None else Server(instance_id=instance_id, node_id=row_on)

    return LogDesk(runs, leases, find)  # pyright: ignore[reportArgumentType]


async def test_the_node_of_the_run_is_asked_wherever_the_row_says_it_is() -> None:
    leases = Leases("here", "there")
    assert await desk(leases, run_on="here", row_on="there").logs(KEY, None, None, 10) == [LINE]
    assert [node for node, _, _ in leases.asked] == ["here"]


async def test_an_ended_run_is_asked_for_at_the_node_that_had_it() -> None:
    leases = Leases("here")
    assert await desk(leases, row_on="here").logs(KEY, None, None, 10) == [LINE]


async def test_what_nobody_knows_of_has_no_lines_and_has_ended() -> None:
    leases = Leases("here")
    assert await desk(leases).logs(KEY, None, None, 10) == []
    assert await desk(leases).wait_logs(KEY, None, 20) == ([], True)
    assert await desk(leases).ask_now(KEY, "usage") is None
    assert leases.asked == []


async def test_a_node_that_is_away_is_waited_for_once_and_for_a_bounded_time() -> None:
    leases = Leases()
    leases.comes = "here"
    assert await desk(leases, row_on="here").logs(KEY, None, None, 10) == [LINE]
    assert len(leases.waited) == 1
    leases = Leases()
    with pytest.raises(Unavailable):
        await desk(leases, row_on="here").logs(KEY, None, None, 10)
    assert len(leases.waited) == 1


async def test_a_follower_of_a_log_is_answered_after_its_own_time_and_some_more_at_most() -> None:
    leases = Leases("here")
    assert await desk(leases, run_on="here").wait_logs(KEY, None, 20) == ([LINE], False)
    assert leases.asked == [("here", "wait_logs", 30)]


async def test_a_question_for_now_does_not_wait_for_a_node() -> None:
    leases = Leases()
    leases.comes = "here"
    assert await desk(leases, run_on="here").ask_now(KEY, "usage") is None
    assert leases.waited == []
