"""Logs and metrics stay bounded, and say what they should."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from fleet.telemetry.logs import CHECK_EVERY, AppendLog
from fleet.telemetry.metrics import forget_oldest
from fleet.telemetry.request_id import accept_request_id

COUNT = """
import sys
from pathlib import Path
from prometheus_client import generate_latest
from fleet.telemetry.metrics import HttpMetrics
metrics = HttpMetrics(Path(sys.argv[1]))
metrics.observe("GET", "/a", 200, 0.01)
metrics.observe("BREW", "/a", 200, 0.01)
print(generate_latest(metrics).decode())
"""

LOG = """
import sys
from pathlib import Path
import structlog
from fleet.telemetry.logs import setup_logging
from fleet.telemetry.request_id import bind_request_id
setup_logging("part", Path(sys.argv[1]))
bind_request_id("id-1")
try:
    raise ValueError("broken")
except ValueError:
    structlog.get_logger("x").exception("it_failed", number=7)
structlog.get_logger("x").debug("not shown")
"""

OTHER_CONTEXT = """
import asyncio, contextvars, sys
from pathlib import Path
import structlog
from fleet.telemetry.logs import setup_logging
from fleet.telemetry.request_id import bind_request_id, current_request_id

async def say(event):
    structlog.get_logger("x").info(event, id=current_request_id())

async def main():
    setup_logging("part", Path(sys.argv[1]))
    bind_request_id("id-1")
    await asyncio.create_task(say("own"))
    await asyncio.create_task(say("shared"), context=contextvars.Context())
    await asyncio.create_task(say("actor"), context=contextvars.Context())

asyncio.run(main())
"""


def run(script: str, folder: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", script, str(folder)], check=True, capture_output=True, text=True
    ).stdout


def test_processes_count_together_and_the_dead_still_count(tmp_path: Path) -> None:
    run(COUNT, tmp_path)
    text = run(COUNT, tmp_path)
    assert 'fleet_http_requests_total{method="GET",route="/a",status="200"} 2.0' in text
    assert 'fleet_http_requests_total{method="other",route="/a",status="200"} 2.0' in text
    assert 'fleet_http_request_seconds_count{method="GET",route="/a"} 2.0' in text


def test_files_of_ended_processes_are_bounded(tmp_path: Path) -> None:
    for number in range(20):
        file = tmp_path / f"counter_{2**22 + 1 + number}.db"  # above any pid
        file.touch()
        os.utime(file, (number, number))
    mine = tmp_path / f"counter_{os.getpid()}.db"
    mine.touch()
    forget_oldest(tmp_path, keep=5)
    assert mine.exists()
    assert {int(re.sub(r"\D", "", file.name)) - 2**22 - 1 for file in tmp_path.iterdir() if file != mine} == set(
        range(15, 20)
    )


def test_logs_are_json_lines_with_the_request_id_and_the_traceback(tmp_path: Path) -> None:
    run(LOG, tmp_path)
    lines = (tmp_path / "logs" / "part.log").read_bytes().splitlines()
    assert len(lines) == 1
    line = orjson.loads(lines[0])
    assert (line["event"], line["number"], line["level"], line["component"]) == ("it_failed", 7, "error", "part")
    assert line["request_id"] == "id-1"
    assert "ValueError: broken" in line["exception"]


def test_a_task_for_many_requests_logs_the_id_of_none_and_every_line_its_process(tmp_path: Path) -> None:
    run(OTHER_CONTEXT, tmp_path)
    lines = [orjson.loads(line) for line in (tmp_path / "logs" / "part.log").read_bytes().splitlines()]
    assert [(line["event"], line["id"], line.get("request_id")) for line in lines] == [
        ("own", "id-1", "id-1"),
        ("shared", "", None),
        ("actor", "", None),
    ]
    assert {line["component"] for line in lines} == {"part"}
    assert len({line["pid"] for line in lines}) == 1


def test_a_shared_log_is_bounded_and_loses_no_line_of_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "part.log"
    writers = [AppendLog(path, max_bytes=4000) for _ in range(2)]
    for number in range(CHECK_EVERY * 4):
        writers[number % 2].write(b"line %06d" % number)
    kept = path.with_suffix(".log.1").read_bytes().splitlines() + path.read_bytes().splitlines()
    assert {path.name, "part.log.1"} == {file.name for file in tmp_path.iterdir()}
    assert kept[-1] == b"line %06d" % (CHECK_EVERY * 4 - 1)
    assert path.stat().st_size <= 4000 + CHECK_EVERY * 2 * len(b"line 000000\n")


@pytest.mark.parametrize("sent", [None, "", "a b", "x" * 129, "a\nb"])
def test_a_request_id_that_is_not_plain_is_replaced(sent: str | None) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", accept_request_id(sent))


def test_a_full_disk_is_nothing_to_who_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be in the midst of anything. What was lost is counted, and a torn line spoils no other."""
    room = [1000, 20, 0, 0]
    write = os.write

    def disk(fd: int, data: bytes) -> int:
        left = room.pop(0) if room else 1000
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[:left])

    log = AppendLog(tmp_path / "x.log")
    monkeypatch.setattr(os, "write", disk)
    for n in range(5):
        log.msg(orjson.dumps({"n": n, "more": "x" * 30}))
    lines = (tmp_path / "x.log").read_bytes().splitlines()
    assert lines[1] == b'{"n":1,"more":"xxxxx'
    whole = [orjson.loads(line) for line in (lines[0], *lines[2:])]
    assert [line.get("n") for line in whole] == [0, None, 4]
    assert whole[1] == {"event": "log_lines_lost", "level": "error", "count": 3}
