"""A process that hangs is ended within its bound, and nobody else is; nothing is left of the one who watches."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet.actors.watchdog import Watchdog

HUNG_S = 6.0
BOUND_S = HUNG_S + 12.0  # and what a busy machine may add

ACTOR = """
import asyncio, signal, sys, time
from fleet.actors.watchdog import Watchdog

async def main():
    stuck = []
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: stuck.append(1))
    watchdog = Watchdog(float(sys.argv[1]), anywhere=True)
    while True:
        await asyncio.sleep(0.05)
        if watchdog._child is not None:
            print(watchdog._child.pid, flush=True)
            break
    while not stuck:
        await asyncio.sleep(0.05)
    time.sleep(1000)

asyncio.run(main())
"""


class Actor:
    def __init__(self, hung_s: float) -> None:
        command = [sys.executable, "-c", ACTOR, str(hung_s)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        assert self.process.stdout is not None
        self.child = int(self.process.stdout.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def actor() -> Iterator[Actor]:
    made = Actor(HUNG_S)
    yield made
    made.end()
    assert within(lambda: state(made.child) is None), "whoever watches ends with the actor"


def state(pid: int) -> str | None:
    """Of a process, as in /proc/PID/stat; None: there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def within(holds: Callable[[], bool], seconds: float = BOUND_S) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_a_stopped_process_is_killed(actor: Actor) -> None:
    os.kill(actor.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    assert actor.process.wait(BOUND_S) == -signal.SIGKILL
    assert time.monotonic() - began >= HUNG_S - 2.5


def test_a_process_whose_loop_is_stuck_is_killed(actor: Actor) -> None:
    os.kill(actor.process.pid, signal.SIGUSR1)
    assert actor.process.wait(BOUND_S) == -signal.SIGKILL


def test_a_machine_that_was_frozen_kills_nobody(actor: Actor) -> None:
    for pid in (actor.process.pid, actor.child):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(HUNG_S + 4)
    for pid in (actor.child, actor.process.pid):
        os.kill(pid, signal.SIGCONT)
    time.sleep(HUNG_S + 2)
    assert actor.process.poll() is None


def test_who_watches_is_made_again_and_leaves_no_zombie(actor: Actor) -> None:
    os.kill(actor.child, signal.SIGKILL)
    assert within(lambda: state(actor.child) is None)
    children = Path(f"/proc/{actor.process.pid}/task/{actor.process.pid}/children")

    def others() -> list[str]:
        return [pid for task in children.parents[1].iterdir() for pid in (task / "children").read_text().split()]

    assert within(lambda: len(others()) == 1)
    os.kill(actor.process.pid, signal.SIGSTOP)
    assert actor.process.wait(BOUND_S) == -signal.SIGKILL


async def test_closing_ends_the_child() -> None:
    watchdog = Watchdog(HUNG_S, anywhere=True)
    async with asyncio.timeout(BOUND_S):
        while watchdog._child is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    child = watchdog._child.pid
    await watchdog.close()
    assert state(child) is None


async def test_none_is_made_where_none_is_wanted() -> None:
    """By the setting, or outside of an actor's process, such as this one."""
    for watchdog in (Watchdog(0, anywhere=True), Watchdog(HUNG_S)):
        await asyncio.sleep(0.05)
        assert watchdog._child is None
        await watchdog.close()
