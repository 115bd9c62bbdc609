"""A node's runs on the real engine, without Ray: what the region is told, in order, and what it may rely on."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.errors import Fenced, NotFound
from fleet.node.model import RunState
from fleet.node.node_ports import NodePorts
from fleet.node.runtime import Port, Readiness, RunKey
from tests import games
from tests.contract.node_bench import FIRST, HABITS, LAST, Bench, open_bench
from tests.contract.runtime_stage import HOST, PATIENCE
from tests.waiting import eventually


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, HABITS) as bench:
        yield bench


async def test_a_run_is_told_step_by_step_and_forgotten_only_on_command(bench: Bench) -> None:
    key, ports = await bench.running(games.demo())
    assert [v.state.value for v in bench.views] == ["preparing", "creating", "booting", "running"]
    assert FIRST <= ports[0].external < LAST
    assert games.udp_ask(HOST, ports[0].external, b"quit") == b"bye"
    ended = await bench.until(lambda v: v.state is RunState.EXITED)
    assert ended.exit_code == 0
    assert [run.key for run in bench.node.hello(1).runs] == [key]
    bench.node.forget(1, key)
    await asyncio.to_thread(eventually, lambda: not bench.node.has(key), PATIENCE, "the run is removed")
    assert bench.archived == [key]


async def test_a_port_that_something_else_took_is_no_failure(bench: Bench) -> None:
    """The allocator looks before it gives, so the race is made: it believes everything to be free."""
    believing = NodePorts(bench.node.share, lambda _host, _port: True)
    bench.node._ports = bench.node._launcher._ports = believing
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.bind((HOST, FIRST))
        _, ports = await bench.running(games.demo())
    assert ports[0].external != FIRST
    assert games.udp_ask(HOST, ports[0].external, b"ping 1").startswith(b"pong")


async def test_a_replaced_manager_commands_nothing(bench: Bench) -> None:
    key, _ = await bench.running(games.demo())
    bench.node.hello(2)
    with pytest.raises(Fenced):
        bench.node.stop(1, key, 1)
    with pytest.raises(Fenced):
        await bench.node.poll(1, bench.hello.boot_id, 0, 1)
    bench.node.stop(2, key, 1)


async def test_the_next_life_adopts_runs_and_ports_and_tells_what_ended(bench: Bench) -> None:
    alive, ports = await bench.running(games.demo())
    dying, dying_ports = await bench.running(games.demo())
    await bench.node.close()
    assert games.udp_ask(HOST, dying_ports[0].external, b"crash 6") == b"crashing"
    old_boot = bench.hello.boot_id
    await bench.open()
    assert await bench.node.poll(1, old_boot, 0, 1) is None, "a number of another life means nothing here"
    seen = {run.key: run for run in bench.hello.runs}
    assert seen[alive].ports == ports
    if not seen[dying].state.ended:
        await bench.until(lambda v: v.key == dying and v.state.ended)
    await asyncio.to_thread(eventually, lambda: bench.state(alive) is RunState.RUNNING, PATIENCE, "it is adopted")
    assert bench.runs()[dying].exit_code == 6
    _, third_ports = await bench.running(games.demo())
    assert third_ports[0].external != ports[0].external
    assert games.udp_ask(HOST, ports[0].external, b"ping x").startswith(f"pong {alive.instance_id[:8]}".encode())


async def test_a_launch_called_off_before_its_process_ran_ends_all_the_same(bench: Bench) -> None:
    spec = replace(bench.stage.spec(bench.stage.build(games.demo())), ports=(Port("game", 7777, 0, "udp"),))
    await bench.node.launch(1, spec)
    bench.node.stop(1, spec.key, 1)
    await bench.until(lambda v: v.key == spec.key and v.state.ended)


async def test_a_game_that_cannot_be_executed_says_so(bench: Bench) -> None:
    files = games.script("exit 0", "/no/such/interpreter")
    spec = replace(bench.stage.spec(bench.stage.build(files)), ports=(Port("game", 7777, 0, "udp"),))
    await bench.node.launch(1, spec)
    view = await bench.until(lambda v: v.state.ended)
    assert view.state is RunState.FAILED
    assert view.reason == "STARTUP_FAILURE_EXECUTABLE"
    assert "#!" in view.message


async def test_a_frozen_game_wakes_for_whoever_wants_it(bench: Bench) -> None:
    key, ports = await bench.running(games.demo())
    await bench.node.freeze(1, key)
    assert (await bench.until(lambda v: v.frozen)).state is RunState.RUNNING
    assert bench.runs()[key].frozen
    await bench.node.thaw(1, key)
    assert not (await bench.until(lambda v: v.key == key)).frozen
    freezing = asyncio.create_task(bench.node.freeze(1, key))
    await asyncio.sleep(0)
    await bench.node.rewrite_config(1, key, {"instance_id": "claimed", "custom_data": {"n": 1}})
    await freezing
    assert not bench.runs()[key].frozen, "a claim that overtakes a freeze is not left with a game that stands still"
    assert b'"n": 1' in games.udp_ask(HOST, ports[0].external, b"state")


async def test_the_next_life_knows_who_is_frozen_and_a_stop_ends_it(bench: Bench) -> None:
    key, ports = await bench.running(games.demo())
    await bench.node.freeze(1, key)
    await bench.node.close()
    await bench.open()
    await asyncio.to_thread(eventually, lambda: bench.state(key) is RunState.RUNNING, PATIENCE, "it is adopted")
    assert bench.runs()[key].frozen
    bench.node.stop(1, key, PATIENCE)
    assert (await bench.until(lambda v: v.key == key and v.state.ended)).exit_code == 0
    with pytest.raises(NotFound):
        await bench.node.thaw(1, key)
    assert ports


async def test_a_game_whose_ports_close_is_told_and_so_is_its_recovery(bench: Bench) -> None:
    key, ports = await bench.running(games.port_that_closes())
    bystander, _ = await bench.running(games.demo())
    assert games.udp_ask(HOST, ports[0].external, b"close") == b"closing"
    ailing = await bench.until(lambda v: not v.healthy)
    assert (ailing.key, ailing.state) == (key, RunState.RUNNING)
    assert "7777/udp" in ailing.message
    assert bench.runs()[bystander].healthy
    well = await bench.until(lambda v: v.key == key and v.healthy)  # it opens again after a second
    assert (well.state, well.message) == (RunState.RUNNING, "")


async def test_a_frozen_game_is_left_alone(bench: Bench) -> None:
    """It cannot close its ports, and a look that finds them open proves nothing."""
    key, ports = await bench.running(games.port_that_closes())
    looks: list[RunKey] = []
    inside = bench.node._runtime._inside  # type: ignore[attr-defined]
    look = inside.readiness

    async def counted(wanted: tuple[Port, ...], run: RunKey) -> Readiness:
        looks.append(run)
        return await look(wanted, run)

    await bench.node.freeze(1, key)
    inside.readiness = counted
    other, _ = await bench.running(games.demo())
    await asyncio.to_thread(eventually, lambda: looks.count(other) > 10, PATIENCE, "others are looked at")
    assert ports
    assert key not in looks


async def test_what_a_game_used_is_kept_for_a_while_after_its_end(bench: Bench) -> None:
    key, ports = await bench.running(games.busy())

    def percent() -> list[float]:
        return [value for _, value in bench.node.usage(key, 300, 15)["series"]["cpu_percent"]]

    await asyncio.to_thread(eventually, lambda: percent() and max(percent()) > 20, PATIENCE, "its CPU is seen")
    assert ports
    bench.node.stop(1, key, 5)
    await bench.until(lambda v: v.key == key and v.state.ended)
    bench.node.forget(1, key)
    await asyncio.to_thread(eventually, lambda: not bench.node.has(key), PATIENCE, "the run is removed")
    assert max(percent()) > 20
    assert bench.node.usage(RunKey("unknown", 1), 300, 15)["series"]["memory_mb"] == []
