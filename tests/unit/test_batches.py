"""Batches of calls: everybody of a batch hears how it ended, whatever ended it."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from fleet.errors import Unavailable
from fleet.region.coalesce import MAX_BATCH, Coalescer
from fleet.telemetry.request_id import bind_request_id, current_request_id


async def asked(send: Callable[[list[int]], object], count: int = 3) -> list[int | BaseException]:
    queue = Coalescer[int, int](send)  # pyright: ignore[reportArgumentType]
    return await asyncio.wait_for(asyncio.gather(*map(queue.ask, range(count)), return_exceptions=True), 5)


async def test_each_has_the_answer_to_its_own_item() -> None:
    async def send(items: list[int]) -> Sequence[int]:
        return [10 * item for item in items]

    assert await asked(send, 2 * MAX_BATCH + 3) == [10 * n for n in range(2 * MAX_BATCH + 3)]


async def test_an_error_is_everybodys() -> None:
    async def send(items: list[int]) -> Sequence[int]:
        raise Unavailable("away")

    assert [type(answer) for answer in await asked(send)] == [Unavailable] * 3


@pytest.mark.parametrize("answers", [[], [1]])
async def test_nobody_waits_for_an_answer_that_is_missing(answers: list[int]) -> None:
    async def send(items: list[int]) -> Sequence[int]:
        return answers

    got = await asked(send, 2)
    assert all(answer == 1 or isinstance(answer, ValueError | Unavailable) for answer in got)


async def test_nobody_waits_for_a_batch_whose_call_was_cancelled() -> None:
    async def send(items: list[int]) -> Sequence[int]:
        raise asyncio.CancelledError

    assert [type(answer) for answer in await asked(send)] == [Unavailable] * 3


async def test_what_comes_after_a_failure_goes_out_as_ever() -> None:
    failures = [OSError("once")]

    async def send(items: list[int]) -> Sequence[int]:
        if failures:
            raise failures.pop()
        return items

    queue = Coalescer[int, int](send)
    with pytest.raises(OSError, match="once"):
        await queue.ask(1)
    assert await queue.ask(2) == 2


async def test_a_caller_that_goes_away_hurts_nobody() -> None:
    go_on = asyncio.Event()

    async def send(items: list[int]) -> Sequence[int]:
        await go_on.wait()
        return items

    queue = Coalescer[int, int](send)
    gone, stays = asyncio.create_task(queue.ask(1)), asyncio.create_task(queue.ask(2))
    await asyncio.sleep(0)
    gone.cancel()
    go_on.set()
    assert await asyncio.wait_for(stays, 5) == 2


async def test_a_batch_carries_the_request_id_of_none() -> None:
    seen: list[str] = []

    async def send(items: list[int]) -> Sequence[int]:
        seen.append(current_request_id())
        return items

    bind_request_id("mine")
    assert await Coalescer[int, int](send).ask(1) == 1
    assert seen == [""]
