"""Work that nobody awaits."""

import asyncio
import gc
import warnings

import structlog.testing

from fleet.background import Background


async def test_it_is_kept_alive_and_waited_for() -> None:
    background, seen = Background("test"), list[int]()
    gate = asyncio.Event()

    async def work(number: int) -> None:
        await gate.wait()
        seen.append(number)
        if number == 1:
            background.spawn(work(2))

    background.spawn(work(1))
    gc.collect()
    gate.set()
    await background.settled()
    assert seen == [1, 2]


async def test_a_fault_is_logged_with_whose_it_is_and_hurts_no_other() -> None:
    background = Background("stage", region="us-east")

    async def fails() -> None:
        raise ValueError("no")

    with structlog.testing.capture_logs() as lines:
        background.spawn(fails(), match="m")
        await background.settled()
        await asyncio.sleep(0)
    (line,) = lines
    assert (line["of"], line["region"], line["match"], line["log_level"]) == ("stage", "us-east", "m", "error")
    assert "no" in line["error"]


async def test_what_is_closed_before_it_began_leaves_nothing_that_nobody_awaited() -> None:
    background = Background("test")

    async def never() -> None:
        raise AssertionError("it was closed before its first step")

    background.spawn(never())
    await background.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()


async def test_closing_ends_all_of_it_and_is_no_fault() -> None:
    background = Background("test")
    with structlog.testing.capture_logs() as lines:
        task = background.spawn(asyncio.Event().wait())
        await asyncio.sleep(0)
        await background.close()
    assert task.cancelled()
    assert lines == []
