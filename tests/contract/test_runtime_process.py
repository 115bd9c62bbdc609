"""What is particular to games as plain processes: their keeper, and what it leaves behind."""

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.node.process_folder import RunFolder
from fleet.node.runtime import BuildRef, LaunchFailed, LaunchSpec
from fleet.node.server_folder import server_folder
from tests import games
from tests.contract.runtime_stage import PATIENCE, Stage, ask, until


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage("process", tmp_path / secrets.token_hex(4), None)  # type: ignore[arg-type]
    await stage.open()
    yield stage
    await stage.clear()
    await stage.die()


def folder_of(stage: Stage, spec: LaunchSpec) -> RunFolder:
    return RunFolder(server_folder(stage.folder / "servers", spec.key))


async def test_the_keeper_belongs_to_nobody_who_could_take_it_along(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    keeper = folder_of(stage, spec).shim_pid()
    assert os.getsid(keeper) == keeper
    parent = int(Path(f"/proc/{keeper}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent != os.getpid()


async def test_a_killed_keeper_takes_its_game_along_and_that_is_told(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    run = folder_of(stage, spec)
    game = run.game_pid()
    os.kill(run.shim_pid(), signal.SIGKILL)
    exited = await stage.exit_of(spec.key)
    assert exited.exit_code == -1

    async def dead() -> bool:
        return run.game_pid() == 0

    await until(dead)
    assert game > 0
    assert [observed.exit_code for observed in await stage.runtime.list()] == [-1]


async def test_what_a_game_started_ends_with_it(stage: Stage) -> None:
    child = "setsid sleep 3600 & echo $!; sleep 3600 & echo $!; exit 4"
    spec = stage.spec(stage.build(games.script(child)), ports=())
    await stage.runtime.launch(spec)
    assert (await stage.exit_of(spec.key)).exit_code == 4
    pids = [int(line.message) for line in await stage.runtime.logs(spec.key, None, None, 10)]
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def test_a_game_that_closes_its_output_is_still_kept(stage: Stage) -> None:
    spec = stage.spec(stage.build(games.script("exec >/dev/null 2>&1; exec sleep 3600")), ports=())
    await stage.runtime.launch(spec)
    await stage.runtime.stop(spec.key, PATIENCE)
    assert (await stage.exit_of(spec.key)).exit_code == 143


async def test_ports_are_told_by_environment(stage: Stage) -> None:
    spec = await stage.running(games.demo(), environment={"PLAYFLOW_PORT_GAME": "7777"})
    assert await asyncio.to_thread(ask, spec, "env PLAYFLOW_PORT_GAME") == (
        f"env PLAYFLOW_PORT_GAME={spec.ports[0].external}"
    )


async def test_an_image_build_needs_an_engine(stage: Stage) -> None:
    with pytest.raises(LaunchFailed, match="container engine"):
        await stage.runtime.prepare(BuildRef("b", "image", image="game:1"))
