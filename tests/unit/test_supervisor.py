"""The supervisor: the first start is patient, and once the fleet has been up only a signal ends it."""

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.ops import api, supervisor
from fleet.ops.head import Head, without_traces
from fleet.ops.home import OpsError, StartFailed, open_home
from fleet.ops.processes import ProcessId, identify
from fleet.ops.supervisor import Supervisor, WallClock
from fleet.settings import FleetSettings

WAIT_S = 20
TRACE = """Some words before
Traceback (most recent call last):
  File "node.py", line 441, in __init__
    raise Exception(
Exception: The current node timed out during startup.
"""


def process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def identified(child: subprocess.Popen[bytes]) -> ProcessId:
    found = identify(child.pid)
    assert found is not None
    return found


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Stand for Ray's two processes."""
    made = [process(), process()]
    yield made
    for one in made:
        one.kill()
        one.wait()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def one(tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    monkeypatch.setattr(supervisor, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(supervisor, "LOOK_S", 0.05)
    monkeypatch.setattr(api, "lives", lambda _url: True)
    made = Supervisor(open_home(tmp_path), FleetSettings(home=tmp_path), told.append)

    async def nothing() -> None:
        return None

    monkeypatch.setattr(made, "_prepare", nothing)
    return made


def head_of(children: list[subprocess.Popen[bytes]]) -> Head:
    gcs, raylet = (identified(child) for child in children)
    return Head("127.0.0.2:1", gcs, raylet, {})


async def until(condition: object, told: list[str]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not any(str(condition) in line for line in told):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_first_start_that_fails_on_a_busy_machine_is_tried_again(
    one: Supervisor, told: list[str], children: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each failure is told in a line, and no trace is."""
    failures = [StartFailed("Ray did not start: it timed out."), OSError(errno.EMFILE, "Too many open files")]

    def start() -> Head:
        if failures:
            raise failures.pop(0)
        return head_of(children)

    monkeypatch.setattr(one, "_start", start)
    work = asyncio.ensure_future(one._work())
    await until("healthy", told)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert told[0].startswith("Ray did not start: it timed out. Trying again in")
    assert "Too many open files" in told[1]
    assert not any("Traceback" in line for line in told)


async def test_a_first_start_gives_up_in_time_and_says_what_to_do(
    one: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> Head:
        raise StartFailed("Ray did not start: it timed out.")

    monkeypatch.setattr(one, "_start", start)
    monkeypatch.setattr(supervisor, "FIRST_START_S", 0.2)
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(OpsError, match=r"timed out. It was tried \d+ times.*free the machine.*supervisor.log"):
            await one._work()


async def test_what_no_try_can_mend_is_said_at_once(
    one: Supervisor, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> Head:
        raise OpsError("Port 8000 is taken by another program.")

    monkeypatch.setattr(one, "_start", start)
    with pytest.raises(OpsError, match="taken"):
        await one._work()
    assert told == []


async def test_a_start_that_fails_later_for_any_reason_is_tried_again(
    one: Supervisor, told: list[str], children: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head ends while the disk is full: once it has been freed there is a head again, and nobody did a thing."""
    successor = [process(), process()]
    starts: list[object] = [
        head_of(children),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("a fault of ours"),
        head_of(successor),
    ]
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def start() -> Head:
        found = starts.pop(0)
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, Head)
        if not starts:
            loop.call_soon_threadsafe(started.set)
        return found

    monkeypatch.setattr(one, "_start", start)
    work = asyncio.ensure_future(one._work())
    try:
        await until("healthy", told)
        children[0].kill()
        async with asyncio.timeout(WAIT_S):
            await started.wait()
        assert not work.done()
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        for child in successor:
            child.kill()
            child.wait()


async def test_without_descriptors_the_end_of_a_process_is_still_seen(
    one: Supervisor, children: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", none_left)
    watch = asyncio.ensure_future(one._watch(head_of(children)))
    await asyncio.sleep(0.2)
    assert not watch.done()
    children[1].kill()
    async with asyncio.timeout(WAIT_S):
        assert await watch == f"process {children[1].pid} ended"


async def test_a_silent_api_that_cannot_be_deployed_for_a_full_disk_costs_no_head(
    one: Supervisor, children: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "HEALTH_EVERY_S", 0.01)
    monkeypatch.setattr(api, "lives", lambda _url: False)
    tries = 0

    def deploy(*_arguments: object) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        raise StartFailed("It does not start.")

    monkeypatch.setattr(api, "deploy", deploy)
    async with asyncio.timeout(WAIT_S):
        assert await one._watch(head_of(children)) == "the API stays silent: It does not start."
    assert tries == 4


async def test_a_report_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    def broken(_text: str) -> None:
        raise BrokenPipeError

    Supervisor(open_home(tmp_path), FleetSettings(home=tmp_path), broken)._say("a step")


def test_of_a_trace_only_its_error_is_told() -> None:
    assert without_traces(TRACE) == "Exception: The current node timed out during startup."
    assert without_traces("") == ""


def test_a_clock_that_is_set_back_is_noticed_once() -> None:
    """Steps forward, and the time that passes, are nothing."""
    now = {"wall": 5000.0, "steady": 10.0}
    clock = WallClock(lambda: now["wall"], lambda: now["steady"])
    seen: list[float] = []
    for wall, steady in ((10, 10), (3600, 0), (10, 10), (-3590, 10), (10, 10)):
        now["wall"] += wall
        now["steady"] += steady
        seen.append(clock.stepped_back_s())
    assert seen == [0, 0, 0, 3600, 0]
