"""The fate of simulated runs, and a node's whole life on them."""

import statistics
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import Fenced
from fleet.node.agent import Agent, Order
from fleet.node.logs import LogArchive
from fleet.node.model import NodeShare, RunState, RunView
from fleet.node.node import Node
from fleet.node.runtime import BuildRef, LaunchSpec, Port, RunKey, RuntimePlace
from fleet.node.simulated import SimulatedRuntime, fate_of, run_file
from fleet.node.simulated_host import simulated_nodes
from fleet.settings import LogLimits, NodeSettings, SimulatedSettings

HABITS = SimulatedSettings(create_s=0.01, boot_s=0.02, stop_s=0.01)
SPEC = LaunchSpec(
    RunKey("i", 1), "us-east", "p", BuildRef("b", "zip", "0"), 512, 1.0, False, (Port("game", 7777, 0, "udp"),),
    "127.0.0.1", None, {}, {"instance_id": "i"}, {},
)  # fmt: skip


@given(st.uuids(), st.integers(1, 9), st.integers(0, 9))
def test_the_same_key_and_seed_have_the_same_fate(name: object, generation: int, seed: int) -> None:
    habits = SimulatedSettings(crash_share=0.5, seed=seed)
    key = RunKey(str(name), generation)
    assert fate_of(key, {}, habits) == fate_of(key, {}, habits)
    assert fate_of(key, {}, habits).boot_s > 0


def test_boots_have_the_median_and_crashes_the_share_of_the_settings() -> None:
    habits = SimulatedSettings(boot_s=2.0, boot_spread=0.2, crash_share=0.1, crash_after_s=50)
    fates = [fate_of(RunKey(str(n), 1), {}, habits) for n in range(4000)]
    boots = [fate.boot_s for fate in fates]
    assert statistics.median(boots) == pytest.approx(2.0, rel=0.03)
    assert statistics.quantiles(boots, n=20)[18] == pytest.approx(2.0 * 1.39, rel=0.05)
    lives = [fate.ends_after_s for fate in fates if fate.ends_after_s is not None]
    assert len(lives) / len(fates) == pytest.approx(0.1, abs=0.02)
    assert statistics.mean(lives) == pytest.approx(50, rel=0.2)


@given(st.text(max_size=20))
def test_whatever_the_environment_says_there_is_a_fate(text: str) -> None:
    names = ("SIMULATED_BOOT_S", "SIMULATED_END_AFTER_S", "SIMULATED_EXIT_CODE")
    assert fate_of(RunKey("i", 1), dict.fromkeys(names, text), HABITS).boot_s >= 0


class Region:
    """Follows a node as a region does."""

    def __init__(self, node: Node, epoch: int = 1) -> None:
        self.node = node
        self.epoch = epoch
        self.hello = node.hello(epoch)
        self.seq = 0

    async def until(self, state: RunState) -> RunView:
        while True:
            page = await self.node.poll(self.epoch, self.hello.boot_id, self.seq, 5)
            assert page is not None
            self.seq = page.seq
            for view in page.events:
                if view.state is state:
                    return view


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = make_node(tmp_path)
    await node.start()
    yield node
    await node.close()


def make_node(home: Path) -> Node:
    runtime = SimulatedRuntime(RuntimePlace("f", "us-east", home / "servers", home / "bundles"), HABITS)

    async def nothing(_what: object) -> None:
        return None

    share = NodeShare(4096, 4.0, 20000, 20010, "127.0.0.1", "simulated.invalid")
    return Node("n", share, runtime, nothing, nothing, NodeSettings(), lambda _host, _port: True)


async def test_a_node_on_it_boots_stops_and_forgets(node: Node, tmp_path: Path) -> None:
    region = Region(node)
    assert region.hello.runtime == "simulated"
    assert simulated_nodes(tmp_path, "us-east") == [0]
    ports = await node.launch(1, SPEC)
    assert 20000 <= ports[0].external < 20010
    await region.until(RunState.RUNNING)
    node.stop(1, SPEC.key, 1.0)
    assert (await region.until(RunState.EXITED)).exit_code == 0
    node.forget(1, SPEC.key)


async def test_another_node_object_adopts_what_the_first_left(node: Node, tmp_path: Path) -> None:
    await node.launch(1, SPEC)
    other = replace(SPEC, key=RunKey("other", 1))
    await node.launch(1, other)
    await Region(node).until(RunState.RUNNING)
    await node.close()
    again = make_node(tmp_path)
    await again.start()
    assert {run.key for run in again.hello(2).runs} == {SPEC.key, other.key}
    assert len({port.external for run in again.hello(2).runs for port in run.ports}) == 2
    await again.close()


async def test_the_file_stays_short(tmp_path: Path) -> None:
    runtime = SimulatedRuntime(RuntimePlace("f", "us-east", tmp_path / "servers", tmp_path), HABITS)
    await runtime.start()
    await runtime.launch(SPEC)
    for _ in range(2000):
        await runtime.rewrite_config(SPEC.key, {})
    rows = run_file(tmp_path, "us-east", "0").read_bytes().splitlines()
    await runtime.close()
    assert len(rows) < 600


async def test_several_orders_in_one_call_are_each_carried_out_or_told(node: Node, tmp_path: Path) -> None:
    agent = Agent(node, LogArchive(tmp_path / "logs", LogLimits()))
    await agent.launch(2, SPEC)
    await Region(node, 2).until(RunState.RUNNING)
    orders: list[Order] = [
        ("rewrite_config", (SPEC.key, {"custom_data": 1})),
        ("rewrite_config", (SPEC.key,)),  # what a newer manager might say that this agent does not understand
        ("stop", (SPEC.key, 1.0)),
    ]
    assert await agent.do(2, orders) == [True, False, True]
    assert (await Region(node, 2).until(RunState.EXITED)).exit_code == 0
    with pytest.raises(Fenced):
        await agent.do(1, orders[:1])
