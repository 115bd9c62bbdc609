"""A machine's notice reaches the agents that listen, and the region hears of it through the poll under way."""

import asyncio
import os
from pathlib import Path

from fleet.node.notice import SUFFIX, listen, send
from fleet.node.outbox import Outbox


async def test_every_agent_that_listens_is_told_and_others_are_passed_over(tmp_path: Path) -> None:
    heard: list[tuple[str, int | None]] = []
    done = asyncio.Event()

    def hear(name: str, until: int | None) -> None:
        heard.append((name, until))
        if len(heard) == 2:
            done.set()

    ends = [
        listen(tmp_path / f"{name}{SUFFIX}", lambda until, name=name: hear(name, until))
        for name in ("us-east", "eu-west")
    ]
    os.mkfifo(tmp_path / f"gone{SUFFIX}")
    assert send(tmp_path, 1234) == ["eu-west", "us-east"]
    await asyncio.wait_for(done.wait(), 5)
    assert sorted(heard) == [("eu-west", 1234), ("us-east", 1234)]
    for end in ends:
        end()
    assert send(tmp_path, None) == []


async def test_what_is_no_notice_is_passed_over(tmp_path: Path) -> None:
    heard: asyncio.Queue[int | None] = asyncio.Queue()
    end = listen(tmp_path / f"us-east{SUFFIX}", heard.put_nowait)
    (tmp_path / f"us-east{SUFFIX}").write_bytes(b"what?\n[]\n" + b'{"until": null}\n')
    assert await asyncio.wait_for(heard.get(), 5) is None
    assert heard.empty()
    end()


async def test_a_wake_answers_the_poll_though_there_is_no_event() -> None:
    box = Outbox()
    poll = asyncio.create_task(box.after(0, 30))
    await asyncio.sleep(0)
    box.wake()
    assert (await asyncio.wait_for(poll, 5)).events == ()
