"""Work that many ask for at the same time is done once."""

import asyncio

import pytest

from fleet.actors.single_flight import SingleFlight
from fleet.errors import Conflict


async def test_those_who_come_meanwhile_share_the_answer() -> None:
    once, gate, runs = SingleFlight[str, int](), asyncio.Event(), []

    async def work() -> int:
        runs.append(1)
        await gate.wait()
        return len(runs)

    asks = [asyncio.create_task(once.do("a", work)) for _ in range(100)]
    await asyncio.sleep(0)
    assert "a" in once
    assert "b" not in once
    asks[0].cancel()  # the one that began it goes away
    gate.set()
    assert await asyncio.gather(*asks[1:]) == [1] * 99
    assert "a" not in once
    assert await once.do("a", work) == 2  # and who comes later has it done again


async def test_they_share_the_error_too() -> None:
    once = SingleFlight[str, int]()

    async def work() -> int:
        await asyncio.sleep(0)
        raise Conflict("no room")

    asked = await asyncio.gather(*(once.do("a", work) for _ in range(5)), return_exceptions=True)
    assert [type(error) for error in asked] == [Conflict] * 5
    with pytest.raises(Conflict):
        await once.do("a", work)
