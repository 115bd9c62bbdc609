"""Logs of both runtimes: pages, following, rotation, and the archive that continues them."""

import asyncio
from pathlib import Path

import pytest

from fleet.errors import BadRequest
from fleet.node.logs import LogArchive
from fleet.settings import LogLimits
from tests import games
from tests.contract.runtime_stage import PATIENCE, Stage, ask, until


async def test_an_endless_log_is_rotated(stage: Stage) -> None:
    spec = await stage.running(games.log_writer())
    first = await anext(aiter(stage.runtime.follow(spec.key, None)))

    async def rotated() -> bool:
        return (await stage.runtime.logs(spec.key, None, None, 1))[0] != first

    await until(rotated)
    await stage.runtime.stop(spec.key, 0)
    await stage.exit_of(spec.key)
    size = sum([len(line.message) async for line in stage.runtime.follow(spec.key, None)])
    assert size <= spec.log_mb << 20


async def test_log_pages_join_without_loss_or_repetition(stage: Stage) -> None:
    spec = await stage.running(games.log_writer(500))
    await stage.runtime.stop(spec.key, 0)
    await stage.exit_of(spec.key)
    whole = await stage.runtime.logs(spec.key, None, None, 10_000)
    numbered = [line.message for line in whole if line.message.startswith("line ")]
    assert numbered == [f"line {n}" for n in range(len(numbered))]
    pages, token = [], None
    while page := await stage.runtime.logs(spec.key, token, None, 7):
        pages += page
        token = page[-1].token
    assert pages == whole
    assert len({line.token for line in whole}) == len(whole)
    with pytest.raises(BadRequest):
        await stage.runtime.logs(spec.key, "yesterday", None, 7)


async def test_following_shows_lines_as_they_come_and_ends_with_the_run(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    booted = await stage.runtime.logs(spec.key, None, None, 100)
    seen: list[str] = []
    said = asyncio.Event()

    async def follow() -> None:
        async for line in stage.runtime.follow(spec.key, booted[-1].token):
            seen.append(line.message)
            said.set()

    task = asyncio.create_task(follow())
    await asyncio.to_thread(ask, spec, "say hello there")
    async with asyncio.timeout(PATIENCE):
        await said.wait()
    await asyncio.to_thread(ask, spec, "quit")
    await asyncio.wait_for(task, PATIENCE)
    assert seen == ["hello there", "quit: bye"]


async def test_both_streams_and_long_lines_are_kept_whole(stage: Stage) -> None:
    long = "x" * 40_000
    spec = stage.spec(stage.build(games.script(f"echo {long}; echo oops >&2; printf unfinished")), ports=())
    await stage.runtime.launch(spec)
    await stage.exit_of(spec.key)
    lines = await stage.runtime.logs(spec.key, None, None, 10)
    assert sorted((line.stream, line.message) for line in lines) == sorted(
        [("stdout", long), ("stderr", "oops"), ("stdout", "unfinished")]
    )


async def test_the_archive_continues_where_a_live_reader_stopped(stage: Stage, tmp_path: Path) -> None:
    spec = await stage.running(games.demo())
    live = await stage.runtime.logs(spec.key, None, None, 1)
    await asyncio.to_thread(ask, spec, "crash 3")
    await stage.exit_of(spec.key)
    whole = await stage.runtime.logs(spec.key, None, None, 100)
    archive = LogArchive(tmp_path / "archive", LogLimits())
    await archive.keep(stage.runtime, spec.key)
    await archive.keep(stage.runtime, spec.key)  # again: no change
    await stage.runtime.remove(spec.key)
    assert await archive.page(spec.key, None, None, 100) == whole
    assert await archive.page(spec.key, live[-1].token, None, 100) == whole[1:]
    assert await stage.runtime.logs(spec.key, None, None, 100) == []
