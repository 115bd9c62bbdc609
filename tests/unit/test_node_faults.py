"""What a node was told to do it does in the end, whatever fails meanwhile; what the engine knows, the node tells."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fleet.errors import Conflict
from fleet.node import warm_networks
from fleet.node.model import RunState
from fleet.node.node import Node
from fleet.node.runtime import EngineUnavailable, Network, RunKey
from tests.unit.stub_runtime import AWAY, PORT, StubNetworks, StubRuntime, launch_spec, node_on
from tests.waiting import soon

KEY = RunKey("a", 1)


@asynccontextmanager
async def started(runtime: StubRuntime, **habits: float) -> AsyncIterator[Node]:
    node = node_on(runtime, **habits)
    await node.start()
    yield node
    await node.close()


def state(node: Node, key: RunKey = KEY) -> RunState | None:
    return {run.key: run.state for run in node.hello(1).runs}.get(key)


# Stops and forgets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [AWAY, OSError("anything"), Conflict("in the way")])
async def test_a_stop_that_fails_is_tried_until_it_is_done(error: Exception) -> None:
    """Nobody asks again: within ten seconds of the engine's return the game has ended."""
    runtime = StubRuntime()
    runtime.put(KEY)
    async with started(runtime) as node:
        runtime.faults["stop"] = error
        node.stop(1, KEY, 1.0)
        await soon(lambda: runtime.calls["stop"] >= 3, 5, "it is tried again")
        del runtime.faults["stop"]
        await soon(lambda: state(node) is RunState.EXITED, 10, "the game has ended")


async def test_a_stop_that_is_asked_for_again_is_tried_at_once() -> None:
    runtime = StubRuntime()
    runtime.put(KEY)
    async with started(runtime) as node:
        runtime.faults["stop"] = AWAY
        node.stop(1, KEY, 1.0)
        await soon(lambda: runtime.calls["stop"] >= 4, 10, "the pauses are long by now")
        del runtime.faults["stop"]
        node.stop(1, KEY, 1.0)
        await soon(lambda: state(node) is RunState.EXITED, 0.5, "it is tried at once")


async def test_a_forget_that_fails_is_tried_until_it_is_done() -> None:
    runtime = StubRuntime()
    runtime.put(KEY)
    async with started(runtime) as node:
        runtime.die(KEY)
        await soon(lambda: state(node) is RunState.EXITED, 2)
        runtime.faults["remove"] = OSError("anything")
        node.forget(1, KEY)
        await soon(lambda: runtime.calls["remove"] >= 3, 5, "it is tried again")
        del runtime.faults["remove"]
        await soon(lambda: not node.has(KEY) and KEY not in runtime.containers, 10, "nothing is left")


async def test_a_run_that_was_told_as_failed_and_runs_after_all_is_stopped_when_it_is_forgotten() -> None:
    runtime = StubRuntime()
    async with started(runtime) as node:

        async def begin_then_fail() -> None:
            runtime.put(KEY)
            raise RuntimeError("after the start")

        runtime.faults["launch"] = begin_then_fail
        await node.launch(1, launch_spec(KEY))
        await soon(lambda: state(node) is RunState.FAILED, 2)
        node.forget(1, KEY)
        await soon(lambda: not node.has(KEY) and KEY not in runtime.containers, 10, "nothing is left")


# Ends -------------------------------------------------------------------------------------------------------------


async def test_an_end_during_adoption_is_told() -> None:
    """It comes after the listing and before the run is known here; the engine tells each end once."""
    runtime = StubRuntime(networks := StubNetworks())  # pyright: ignore[reportArgumentType]
    runtime.put(KEY)

    async def dies_meanwhile() -> None:
        if runtime.containers[KEY].running:
            runtime.die(KEY)
            await asyncio.sleep(0.05)

    networks.listing = dies_meanwhile
    async with started(runtime, warm_networks=1, reconcile_every_s=0) as node:
        await soon(lambda: state(node) is RunState.EXITED, 2, "its end is told")
        assert node.hello(1).runs[0].exit_code == 137


@pytest.mark.parametrize("how", ["ended", "removed by hand"])
async def test_an_end_that_no_stream_told_is_found(how: str) -> None:
    runtime = StubRuntime()
    runtime.put(KEY)
    async with started(runtime) as node:
        await soon(lambda: state(node) is RunState.RUNNING, 2)
        if how == "ended":
            runtime.die(KEY, 3, told=False)
        else:
            del runtime.containers[KEY]
        await soon(lambda: state(node) is RunState.EXITED, 2, "its end is told")
        assert node.hello(1).runs[0].exit_code == (3 if how == "ended" else -1)


async def test_a_stream_of_ends_that_breaks_is_opened_again() -> None:
    runtime = StubRuntime()
    runtime.put(KEY)
    async with started(runtime, reconcile_every_s=0) as node:
        runtime.cut(KeyError("an event of another shape"))
        await soon(lambda: runtime.calls["exits"] == 2, 2, "it is opened again")
        runtime.die(KEY)
        await soon(lambda: state(node) is RunState.EXITED, 2, "its end is told")


async def test_a_game_that_cannot_be_looked_at_for_a_while_is_not_given_up() -> None:
    runtime = StubRuntime()
    runtime.put(KEY)
    runtime.faults["readiness"] = AWAY
    async with started(runtime) as node:
        await soon(lambda: runtime.calls["readiness"] >= 2, 5, "it is looked at again")
        assert state(node) is RunState.BOOTING
        del runtime.faults["readiness"]
        await soon(lambda: state(node) is RunState.RUNNING, 3, "it runs")


# What nobody owns -------------------------------------------------------------------------------------------------


async def test_a_container_that_was_never_started_is_removed_if_no_launch_comes() -> None:
    runtime = StubRuntime()
    runtime.put(KEY, running=False)
    async with started(runtime) as node:
        await soon(lambda: KEY not in runtime.containers, 5, "it is removed")
        assert state(node) is None


async def test_a_container_that_was_never_started_waits_for_its_launch() -> None:
    runtime = StubRuntime()
    runtime.put(KEY, running=False)
    async with started(runtime) as node:
        await node.launch(1, launch_spec(KEY))
        await soon(lambda: state(node) is RunState.RUNNING, 2)
        await asyncio.sleep(0.6)
        assert runtime.calls["remove"] == 0


async def test_a_game_that_begins_to_run_after_it_was_called_off_is_told_to_the_region() -> None:
    """The engine carries out what it was asked, even if the answer never came."""
    runtime = StubRuntime()
    async with started(runtime) as node:
        runtime.put(KEY)
        await soon(lambda: state(node) is RunState.RUNNING, 3, "the region can stop it")
        node.stop(1, KEY, 1.0)
        await soon(lambda: state(node) is RunState.EXITED, 3)


async def test_a_network_whose_game_is_gone_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_networks, "_ALIVE_S", 0.05)
    runtime = StubRuntime(networks := StubNetworks())  # pyright: ignore[reportArgumentType]
    async with started(runtime, warm_networks=1):
        networks.there["left"] = Network("left", "127.0.0.1", (PORT,), taken=True)
        await soon(lambda: "left" not in networks.there, 5, "it is dropped")


# Start and close --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [(AWAY, "does not answer"), (OSError(errno.ENOSPC, "No space left on device"), "No space left")],
)
async def test_a_launch_waits_for_an_engine_that_is_away_and_for_room_on_the_disk(fault: Exception, said: str) -> None:
    runtime = StubRuntime()
    async with started(runtime) as node:
        runtime.faults["launch"] = fault
        await node.launch(1, launch_spec(KEY))
        await soon(lambda: runtime.calls["launch"] >= 3, 5, "it is tried again")
        assert state(node) is RunState.CREATING
        assert said in node.hello(1).runs[0].message
        del runtime.faults["launch"]
        await soon(lambda: state(node) is RunState.RUNNING, 10, "it runs")


async def test_a_launch_that_is_called_off_while_its_build_is_fetched_ends_without_the_engine() -> None:
    """So a download that never ends holds nothing once the region has had enough of it."""
    runtime = StubRuntime()
    async with started(runtime) as node:
        runtime.faults["prepare"] = asyncio.Event().wait  # pyright: ignore[reportArgumentType]
        runtime.faults["stop"] = AWAY
        await node.launch(1, launch_spec(KEY))
        await soon(lambda: runtime.calls["prepare"] == 1, 2)
        node.stop(1, KEY, 1.0)
        await soon(lambda: state(node) is RunState.EXITED, 1, "it has ended")
        assert not node._ports.held_by(str(KEY)), "its ports are free"


async def test_the_sampler_and_the_vigil_outlive_their_errors() -> None:
    runtime = StubRuntime()
    runtime.put(KEY)
    async with started(runtime, usage_every_s=0.05, health_every_s=0.05) as node:
        await soon(lambda: state(node) is RunState.RUNNING, 2)
        runtime.faults["usage"] = runtime.faults["readiness"] = KeyError("anything")
        await soon(lambda: runtime.calls["usage"] >= 3, 5, "usage is looked at again")
        runtime.faults.clear()
        runtime.open.discard(KEY)
        await soon(lambda: not node.hello(1).runs[0].healthy, 3, "its closed port is told")
        assert node.hello(1).failures.get("node.sample_usage", 0) >= 3


def test_the_stub_raises_what_the_engine_client_raises() -> None:
    assert isinstance(AWAY, EngineUnavailable)
