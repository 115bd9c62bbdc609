"""What the simulated runtime keeps of the contract: all that does not need a game to answer.

Tests of the common suite that ask a game something cannot hold, since nothing runs; what they protect and the
simulation has (crashes, adoption, ports of siblings, other places) is asked here in its own words.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.errors import Conflict, NotFound
from fleet.node.runtime import Port, PortTaken, RunKey, RuntimePlace
from fleet.node.simulated import SimulatedRuntime
from tests import games
from tests.contract.runtime_stage import Stage, make_runtime
from tests.contract.test_runtime import (
    test_a_cancelled_launch_can_still_be_stopped,
    test_launching_one_key_twice_is_one_game,
)

__all__ = ["test_a_cancelled_launch_can_still_be_stopped", "test_launching_one_key_twice_is_one_game"]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage("simulated", tmp_path / secrets.token_hex(4), None)  # type: ignore[arg-type]
    await stage.open()
    yield stage
    await stage.clear()
    await stage.die()


async def test_not_ready_until_it_has_booted(stage: Stage) -> None:
    spec = stage.spec(stage.build(games.demo()), environment={"SIMULATED_BOOT_S": "0.2"})
    await stage.runtime.launch(spec)
    assert (await stage.runtime.readiness(spec.ports, spec.key)).missing == spec.ports
    await stage.ready(spec)
    undeclared = (Port("other", 9, 9, "tcp"),)
    assert (await stage.runtime.readiness(undeclared, spec.key)).missing == undeclared


async def test_a_crash_tells_exit_code_and_last_words_once(stage: Stage) -> None:
    crash = {"SIMULATED_BOOT_S": "0", "SIMULATED_END_AFTER_S": "0.05", "SIMULATED_EXIT_CODE": "3"}
    spec = stage.spec(stage.build(games.demo()), environment=crash)
    await stage.runtime.launch(spec)
    exited = await stage.exit_of(spec.key)
    assert (exited.exit_code, exited.oom) == (3, False)
    assert "simulated crash" in exited.tail
    await stage.runtime.stop(spec.key, 1)  # again: no error
    assert [(run.running, run.exit_code) for run in await stage.runtime.list()] == [(False, 3)]
    assert [report.key for report in stage.reports] == [spec.key]


async def test_stopping_takes_its_time_or_its_grace(stage: Stage) -> None:
    polite, deaf = await stage.running(games.demo()), await stage.running(games.demo())
    await stage.runtime.stop(polite.key, 10)
    await stage.runtime.stop(deaf.key, 0)
    assert (await stage.exit_of(polite.key)).exit_code == 0
    assert (await stage.exit_of(deaf.key)).exit_code == 137
    await stage.runtime.stop(RunKey("unknown", 1), 1)


async def test_a_port_of_a_sibling_is_taken(stage: Stage) -> None:
    first = await stage.running(games.demo())
    second = stage.spec(stage.build(games.demo()), ports=first.ports)
    with pytest.raises(PortTaken) as taken:
        await stage.runtime.launch(second)
    assert taken.value.ports == first.ports
    await stage.runtime.stop(first.key, 1)
    await stage.runtime.launch(second)


async def test_a_new_object_adopts_what_runs_and_tells_what_was_due_meanwhile(stage: Stage) -> None:
    stays = await stage.running(games.demo())
    due = await stage.running(games.demo(), environment={"SIMULATED_BOOT_S": "0", "SIMULATED_END_AFTER_S": "0.2"})
    await stage.die()
    await asyncio.sleep(0.3)  # nobody is there to see its end
    await stage.open()
    assert (await stage.exit_of(due.key)).exit_code == 1
    run = {run.key: run for run in await stage.runtime.list()}[stays.key]
    assert (run.running, run.ports, run.memory_mb) == (True, stays.ports, 256)
    assert run.labels["fleet.test"] == "1"
    await stage.ready(stays)
    await stage.runtime.rewrite_config(stays.key, {"custom_data": {"n": 1}})
    assert '"n":1' in (await stage.runtime.logs(stays.key, None, None, 10))[-1].message


async def test_a_half_written_row_of_a_killed_process_is_no_row(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    await stage.die()
    file = next((stage.folder / "simulated").iterdir())
    with file.open("ab") as rows:
        rows.write(b'{"key":{"instance_id":"x","gene')
    await stage.open()
    assert [run.key for run in await stage.runtime.list()] == [spec.key]


async def test_removal_leaves_nothing_and_refuses_what_runs(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    with pytest.raises(Conflict):
        await stage.runtime.remove(spec.key)
    await stage.runtime.stop(spec.key, 10)
    await stage.exit_of(spec.key)
    await stage.runtime.remove(spec.key)
    await stage.runtime.remove(spec.key)  # again: no error
    with pytest.raises(NotFound):
        await stage.runtime.rewrite_config(spec.key, {})
    await stage.die()
    await stage.open()
    assert await stage.runtime.list() == []


async def test_other_regions_and_nodes_are_not_seen(stage: Stage) -> None:
    await stage.running(games.demo())
    place = stage.place()
    other_region = make_runtime("simulated", RuntimePlace("x", "eu-west", place.servers_dir, place.bundles))
    assert isinstance(stage.runtime, SimulatedRuntime)
    other_node = SimulatedRuntime(place, stage.runtime.habits, "7")
    for stranger in (other_region, other_node):
        await stranger.start()
        assert await stranger.list() == []
        await stranger.close()


async def test_followers_see_lines_until_the_end(stage: Stage) -> None:
    spec = await stage.running(games.demo())

    async def follow() -> list[str]:
        return [line.message async for line in stage.runtime.follow(spec.key, None)]

    following = asyncio.create_task(follow())
    await stage.runtime.rewrite_config(spec.key, {"custom_data": "ice"})
    await stage.runtime.stop(spec.key, 1)
    lines = await asyncio.wait_for(following, 10)
    assert [line.split(":")[0].split(" ")[0] for line in lines] == ["simulated"] * 3
    first = (await stage.runtime.logs(spec.key, None, None, 1))[0]
    rest = await stage.runtime.logs(spec.key, first.token, None, 10)
    assert [line.message for line in [first, *rest]] == lines


async def test_a_frozen_game_does_not_come_nearer_to_its_end(stage: Stage) -> None:
    assert isinstance(stage.runtime, SimulatedRuntime)
    mortal = {"SIMULATED_BOOT_S": "0", "SIMULATED_END_AFTER_S": "0.3"}
    spec = await stage.running(games.demo(), environment=mortal)
    await stage.runtime.freeze(spec.key)
    await asyncio.sleep(0.5)  # longer than it had to live
    assert [run.running for run in await stage.runtime.list()] == [True]
    await stage.runtime.thaw(spec.key)
    assert (await stage.exit_of(spec.key)).exit_code == 1
