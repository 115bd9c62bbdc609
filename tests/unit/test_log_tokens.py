"""Log tokens and the engine's stream: nothing lost, nothing twice, whatever the cut."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import BadRequest
from fleet.node import log_file
from fleet.node.docker_logs import FrameParser
from fleet.node.log_tokens import Counter, format_ns, page, parse_token, unix_ns
from fleet.node.logs import LogArchive
from fleet.node.runtime import LogLine, RunKey
from fleet.settings import LogLimits

START = 1_767_225_600_000_000_000


def lines_at(times: list[int]) -> list[LogLine]:
    counter = Counter()
    stamps = [format_ns(START + ns) for ns in times]
    return [LogLine(at, f"line {n}", "stdout", counter.token(at)) for n, at in enumerate(stamps)]


@given(ns=st.integers(0, 2**62))
def test_times_survive_being_text(ns: int) -> None:
    assert unix_ns(format_ns(ns)) == ns


@given(steps=st.lists(st.sampled_from([0, 0, 1, 1000, 10**9]), max_size=60), size=st.integers(1, 9))
def test_pages_join_to_the_whole(steps: list[int], size: int) -> None:
    times = [sum(steps[: n + 1]) for n in range(len(steps))]
    whole = lines_at(times)
    joined: list[LogLine] = []
    token = None
    while found := page(whole, token, None, size):
        joined += found
        token = found[-1].token
    assert joined == whole


def test_streams_a_moment_out_of_order_are_neither_lost_nor_repeated() -> None:
    whole = lines_at([5000, 7000, 6000, 9000])
    assert page(whole, whole[2].token, None, 10) == whole[3:]
    assert page(whole, whole[1].token, None, 10) == whole[2:]


def test_a_token_whose_line_was_rotated_away_goes_on_with_what_is_newer() -> None:
    whole = lines_at([0, 10**9, 2 * 10**9, 3 * 10**9])
    assert page(whole[2:], whole[0].token, None, 10) == whole[2:]
    assert page(whole[:2], whole[3].token, None, 10) == []


def test_since_is_by_time() -> None:
    whole = lines_at([0, 10**9, 2 * 10**9])
    assert page(whole, None, START // 1_000_000 + 1000, 10) == whole[1:]


@pytest.mark.parametrize("token", ["", "x", "2026-01-31T12:00:00.123456789Z", "~1", "2026-13-31T12:00:00.123456789Z~1"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(BadRequest):
        parse_token(token)


def frame(stream: int, ns: int, text: bytes) -> bytes:
    payload = format_ns(START + ns).encode() + b" " + text
    return bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


@given(cuts=st.lists(st.integers(1, 200), max_size=20))
def test_frames_may_be_cut_anywhere(cuts: list[int]) -> None:
    data = b"".join(frame(1 + n % 2, n, f"line {n}\n".encode()) for n in range(20))
    parser, found = FrameParser(), []
    for cut in [*cuts, len(data)]:
        found += parser.feed(data[:cut])
        data = data[cut:]
    assert [line.message for line in found] == [f"line {n}" for n in range(20)]
    assert [line.stream for line in found] == ["stdout", "stderr"] * 10


@pytest.mark.parametrize("end", [b"\n", b""])
def test_pieces_of_a_long_line_are_joined_across_the_other_stream(end: bytes) -> None:
    piece = b"x" * 16384
    data = frame(1, 0, piece) + frame(2, 1, b"oops\n") + frame(1, 0, b"yz" + end) + frame(1, 2, b"next\n")
    found = list(FrameParser().feed(data))
    assert [line.message for line in found] == ["oops", "x" * 16384 + "yz", "next"]


def test_a_line_without_end_is_bounded() -> None:
    parser = FrameParser()
    found = [line for _ in range(40) for line in parser.feed(frame(1, 0, b"x" * 16384))]
    assert max(len(line.message) for line in found) <= 80 << 10


@given(message=st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])), stream=st.booleans())
def test_a_line_survives_the_file(message: str, stream: bool) -> None:
    at = format_ns(START)
    line = LogLine(at, message, "stderr" if stream else "stdout", f"{at}~3")
    assert list(log_file.decode([log_file.encode(line), b"1 cut"])) == [line]


async def test_old_logs_are_swept(tmp_path: Path) -> None:
    old, new = tmp_path / "a" / "1.log.gz", tmp_path / "b" / "1.log.gz"
    for path in (old, new):
        path.parent.mkdir()
        path.touch()
    os.utime(old, (1, 1))
    assert await LogArchive(tmp_path, LogLimits()).sweep() == 1
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize("bad", ["../x", "", "a/b", "a" * 65])
def test_no_id_leads_out_of_the_archive(tmp_path: Path, bad: str) -> None:
    with pytest.raises(BadRequest):
        LogArchive(tmp_path, LogLimits()).path(RunKey(bad, 1))
