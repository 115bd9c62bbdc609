"""Slots of a machine, builds made ready once, and what a node says when it is told to drain or to go."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from fleet.node.prepare import Preparer
from fleet.node.runtime import BuildRef, LaunchFailed
from fleet.node.slot import take_slot
from fleet.region.node_leads import NodeLeads

ROOT = Path(__file__).parents[2]
HOLD = (
    "import sys; from pathlib import Path; from fleet.node.slot import take_slot;"
    "print(take_slot(Path(sys.argv[1]), 'r', sys.argv[2]), flush=True); sys.stdin.read()"
)


class Holder:
    """An agent's process, as far as slots are concerned."""

    def __init__(self, folder: Path, agent_id: str) -> None:
        command = [sys.executable, "-c", HOLD, str(folder), agent_id]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.slot = int(self.process.stdout.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def test_an_agent_that_starts_again_finds_its_own_slot(tmp_path: Path) -> None:
    first, second = Holder(tmp_path, "a"), Holder(tmp_path, "b")
    assert (first.slot, second.slot) == (0, 1)
    first.end()
    second.end()
    again = Holder(tmp_path, "b")
    other = Holder(tmp_path, "c")
    assert (again.slot, other.slot) == (1, 0)
    again.end()
    other.end()


def test_slots_of_regions_are_their_own(tmp_path: Path) -> None:
    holder = Holder(tmp_path, "a")
    assert take_slot(tmp_path, "another", "a") == 0
    holder.end()


def build(name: str) -> BuildRef:
    return BuildRef(name, "zip", "hash")


async def test_many_who_ask_for_a_build_wait_for_one_work() -> None:
    begun: list[str] = []
    go = asyncio.Event()

    async def work(one: BuildRef) -> None:
        begun.append(one.build_id)
        await go.wait()

    preparer = Preparer(work)
    waits = [asyncio.create_task(preparer.ensure(build("a"))) for _ in range(5)]
    await asyncio.sleep(0)
    waits[0].cancel()  # a launch that is called off does not stop the others' work
    await asyncio.sleep(0)
    assert preparer.builds == frozenset()
    go.set()
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [None] * 4
    assert begun == ["a"]
    assert preparer.builds == {"a"}


async def test_a_failure_is_told_to_all_and_tried_again_later() -> None:
    tries = 0

    async def work(_one: BuildRef) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise LaunchFailed("STARTUP_FAILURE_URL", "no such image")

    preparer = Preparer(work)
    told = await asyncio.gather(preparer.ensure(build("a")), preparer.ensure(build("a")), return_exceptions=True)
    assert [type(one) for one in told] == [LaunchFailed, LaunchFailed]
    await preparer.ensure(build("a"))
    assert preparer.builds == {"a"}


def test_lead_times_are_guessed_then_measured_then_remembered() -> None:
    leads = NodeLeads({"shared": 90.0})
    assert leads.seconds("shared") == 90.0
    for seconds in (10, 11, 12, 13, 60):
        leads.record("shared", seconds)
    assert leads.seconds("shared") == 60
    for _ in range(20):
        leads.record("shared", 20)
    assert leads.seconds("shared") == 20
    successor = NodeLeads({"shared": 90.0})
    successor.load(leads.to_json())
    assert successor.seconds("shared") == 20
    successor.load("not what was written")
    assert successor.seconds("shared") == 20


@pytest.mark.parametrize("kept", [None, [], {"shared": "x"}])
def test_what_was_kept_in_another_shape_is_left_out(kept: object) -> None:
    leads = NodeLeads({"shared": 90.0})
    leads.load(kept)
    assert leads.seconds("shared") == 90.0
