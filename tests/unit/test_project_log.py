"""The log of a whole project: every line once, in the order of time, a page at a time, bounded in what it asks."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import BadRequest, Unavailable
from fleet.node.log_tokens import format_ns, unix_ns
from fleet.node.runtime import LogLine
from fleet.servers import project_log
from fleet.servers.model import LogPage
from fleet.servers.project_log import LATE_MS, MAX_OPEN, Position, _Merge
from fleet.store.tables import Server
from fleet.times import iso, now_ms
from tests.unit.api_kit import Api

BEGAN = 1_800_000_000_000
LOGS = "/api/v3/projects/logs"


class Shelf:
    """Logs of servers as regions give them."""

    def __init__(self, lines: dict[str, list[LogLine]], *, missing: frozenset[str] = frozenset()) -> None:
        self.lines = lines
        self.missing = missing
        self.asked: list[str] = []

    async def logs(self, server: Server, after: str | None, since_ms: int | None, limit: int) -> LogPage:
        self.asked.append(server.instance_id)
        if server.instance_id in self.missing:
            raise Unavailable("its node does not answer")
        lines = self.lines.get(server.instance_id, [])
        if after is not None:
            lines = lines[[line.token for line in lines].index(after) + 1 :]
        elif since_ms is not None:
            lines = [line for line in lines if unix_ns(line.at) >= since_ms * 1_000_000]
        return LogPage(lines[:limit], "n", None)


def server_of(name: str, created_at: int, **values: Any) -> Server:
    return Server(
        **{
            "instance_id": name,
            "region": "us-east",
            "name": name,
            "status": "running",
            "created_at": created_at,
            **values,
        }
    )


def line_of(name: str, number: int, ns: int) -> LogLine:
    return LogLine(format_ns(ns), f"{name} {number}", "stdout", f"1:{number}")


async def read(shelf: Shelf, servers: list[Server], start: Position, end_ms: int, limit: int) -> list[str]:
    """Every page, one after the other."""
    said: list[str] = []
    position: Position | None = start
    while position is not None:
        alive = [s for s in servers if s.stopped_at is None or s.stopped_at >= position.ms - LATE_MS]
        lines, position = await _Merge(shelf, position, end_ms, alive[: MAX_OPEN + 1]).page(limit)
        said += [line.message for _, line in lines]
        assert len(lines) <= limit
    return said


lanes = st.lists(
    st.tuples(st.integers(0, 60_000), st.lists(st.integers(0, 60_000), max_size=12)), min_size=1, max_size=8
)


@given(lanes=lanes, limit=st.integers(1, 9), start=st.integers(0, 60_000), length=st.integers(0, 60_000))
async def test_every_line_comes_once_and_in_order(
    lanes: list[tuple[int, list[int]]], limit: int, start: int, length: int
) -> None:
    servers: list[Server] = []
    shelf = Shelf({})
    for number, (created, offsets) in enumerate(sorted(lanes)):
        name = f"s{number}"
        servers.append(server_of(name, BEGAN + created))
        times = sorted((BEGAN + created + offset) * 1_000_000 + number * 62_500 for offset in offsets)
        shelf.lines[name] = [line_of(name, i, at) for i, at in enumerate(times)]
    end = BEGAN + start + length
    wanted = sorted(
        (line.at, name, i, line.message)
        for name, lines in shelf.lines.items()
        for i, line in enumerate(lines)
        if (BEGAN + start) * 1_000_000 <= unix_ns(line.at) < (end + 1) * 1_000_000
    )
    said = await read(shelf, servers, Position.since(BEGAN + start), end, limit)
    assert said == [message for *_, message in wanted]


async def test_a_page_asks_the_servers_of_its_time_only() -> None:
    servers = [server_of(f"s{n:03}", BEGAN + n * 60_000) for n in range(150)]
    lines = {
        s.instance_id: [line_of(s.instance_id, i, (s.created_at + i) * 1_000_000) for i in range(5)] for s in servers
    }
    shelf = Shelf(lines)
    page, rest = await _Merge(shelf, Position.since(BEGAN), BEGAN + 10**8, servers).page(10)
    assert [line.message for _, line in page] == [f"s00{n} {i}" for n in (0, 1) for i in range(5)]
    assert rest is not None
    assert len(set(shelf.asked)) <= 20


async def test_more_servers_than_may_be_asked_are_read_over_several_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project_log, "MAX_OPEN", 20)
    servers = [
        server_of(f"s{n:03}", BEGAN + n * 60_000, status="stopped", stopped_at=BEGAN + n * 60_000 + 1_000)
        for n in range(90)
    ]
    shelf = Shelf({s.instance_id: [line_of(s.instance_id, 0, s.created_at * 1_000_000)] for s in servers[::7]})
    assert len(await read(shelf, servers, Position.since(BEGAN), BEGAN + 10**8, 1000)) == len(shelf.lines)


async def test_more_at_one_time_than_may_be_asked_are_refused() -> None:
    servers = [server_of(f"s{n:03}", BEGAN) for n in range(MAX_OPEN + 1)]
    with pytest.raises(BadRequest, match="single servers"):
        await _Merge(Shelf({}), Position.since(BEGAN + 60_000), BEGAN + 10**8, servers).page(10)


async def test_a_stopped_servers_lost_log_hides_no_others_and_a_living_ones_silence_is_told() -> None:
    gone = [server_of(f"g{n}", BEGAN, status="stopped", node_id="gone", stopped_at=BEGAN) for n in range(30)]
    here = server_of("here", BEGAN)
    lines = {"here": [line_of("here", 0, BEGAN * 1_000_000)]}
    shelf = Shelf(lines, missing=frozenset(one.instance_id for one in gone))
    page, _ = await _Merge(shelf, Position.since(BEGAN), BEGAN + 1, [*gone, here]).page(10)
    assert [line.message for _, line in page] == ["here 0"]
    assert len(shelf.asked) < 30  # its node is asked no more
    with pytest.raises(Unavailable):
        await _Merge(Shelf(lines, missing=frozenset({"here"})), Position.since(BEGAN), BEGAN + 1, [here]).page(10)


async def test_the_api_pages_through_it(api: Api) -> None:
    server = await api.running(name="mine")
    now = now_ms()
    api.regions.lines = [line_of("x", n, (now - 5_000 + n) * 1_000_000) for n in range(7)]
    first = (await api.call("GET", f"{LOGS}?start_time=-1m&limit=4")).json()
    assert [line["message"] for line in first["logs"]] == [f"x {n}" for n in range(4)]
    assert first["logs"][0] == {
        "timestamp": api.regions.lines[0].at,
        "message": "x 0",
        "level": "info",
        "instance": server["instance_id"],
        "region": "us-east",
        "server_name": "mine",
    }
    rest = (await api.call("GET", LOGS, params={"start_time": first["next_token"]})).json()
    assert [line["message"] for line in rest["logs"]] == ["x 4", "x 5", "x 6"]
    assert rest["next_token"] is None
    early = (await api.call("GET", LOGS, params={"start_time": "-1m", "end_time": iso(now - 4_998)})).json()
    assert [line["message"] for line in early["logs"]] == ["x 0", "x 1", "x 2"]
    theirs = (await api.call("GET", f"{LOGS}?start_time=-1m", api.other.server_key)).json()
    assert theirs == {"logs": [], "next_token": None}


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 422),
        ("?start_time=yesterday", 400),
        ("?start_time=t.AAAA", 400),
        ("?start_time=-1h&end_time=t.AAAA", 400),
        ("?start_time=-1h&limit=1001", 422),
        ("?start_time=9999-12-31T23:59:59Z&end_time=9999-12-31T23:59:59Z", 200),
    ],
)
async def test_positions_that_are_none(api: Api, query: str, status: int) -> None:
    assert (await api.call("GET", LOGS + query)).status_code == status
    assert (await api.call("GET", f"{LOGS}?start_time=-1h", api.project.client_key)).status_code == 403
