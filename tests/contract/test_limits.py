"""Windows: exact against the definition, in one process and in several; leases from afar; what a client is told."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.limits.leases import Ask, LeasedWindows
from fleet.limits.limiter import tag_of
from fleet.limits.windows import CELLS, SharedWindows, Taken
from fleet.settings import RateLimits
from serve_app.context import AppContext
from serve_app.http import create_app
from tests.unit.api_kit import Api, by_proxy, open_api

PATH = "/api/v3/servers"
WINDOW = 1.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def allowed(accepted: list[float], limit: int, now: float) -> bool:
    """The definition: fewer than `limit` were let in within the window that ends now."""
    return sum(at > now - WINDOW for at in accepted) < limit


@settings(deadline=None, max_examples=150)
@given(
    limit=st.integers(1, CELLS),
    steps=st.lists(st.tuples(st.floats(0, 0.7), st.integers(1, 60)), max_size=25),
)
def test_a_window_is_exactly_its_definition(
    tmp_path_factory: pytest.TempPathFactory, limit: int, steps: list[tuple[float, int]]
) -> None:
    clock = Clock()
    windows = SharedWindows(tmp_path_factory.mktemp("w") / "w", window_s=WINDOW, slots=8, clock=clock)
    accepted: list[float] = []
    for wait, asks in steps:
        clock.now += wait
        for _ in range(asks):
            may = allowed(accepted, limit, clock.now)
            taken = windows.take(7, limit)
            assert taken.granted == may
            if may:
                accepted.append(clock.now)
            assert taken.remaining == limit - sum(at > clock.now - WINDOW for at in accepted)
            if not may:
                assert 0 < taken.retry_s <= taken.reset_s <= WINDOW


@settings(deadline=None, max_examples=50)
@given(limit=st.integers(CELLS + 1, 20_000), seconds=st.integers(1, 3))
def test_a_great_limit_is_right_within_a_hundredth(
    tmp_path_factory: pytest.TempPathFactory, limit: int, seconds: int
) -> None:
    clock = Clock()
    windows = SharedWindows(tmp_path_factory.mktemp("w") / "w", slots=8, clock=clock)
    granted = 0
    for _ in range(seconds * 20):
        granted += windows.take(7, limit, limit // 10).granted
        clock.now += 0.05
    assert limit * seconds * 0.99 <= granted <= limit * seconds * 1.01 + limit // 10


@given(back=st.floats(0.001, 1e9), used=st.integers(1, 10))
@settings(deadline=None, max_examples=50)
def test_a_clock_that_goes_back_neither_grants_nor_loses(
    tmp_path_factory: pytest.TempPathFactory, back: float, used: int
) -> None:
    clock = Clock()
    clock.now = 2e9
    windows = SharedWindows(tmp_path_factory.mktemp("w") / "w", slots=8, clock=clock)
    for _ in range(used):
        windows.take(7, 10)
    clock.now -= back
    assert windows.take(7, 10, 0).remaining == 10 - used
    clock.now += WINDOW + 1e-6 * clock.now**0
    assert windows.take(7, 10, 0).remaining == 10


def test_the_wall_clock_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = SharedWindows(tmp_path / "w", slots=8)
    assert windows.take(7, 10, 10).granted == 10
    for now in (0.0, 1e12):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert windows.take(7, 10, 10).granted == 0


def test_keys_do_not_share(tmp_path: Path) -> None:
    windows = SharedWindows(tmp_path / "w", slots=64)
    assert windows.take(tag_of(b"a"), 5, 9).granted == 5
    assert windows.take(tag_of(b"b"), 5, 9).granted == 5


def test_a_full_table_forgets_who_came_least_lately(tmp_path: Path) -> None:
    clock = Clock()
    windows = SharedWindows(tmp_path / "w", slots=8, clock=clock)
    for tag in range(1, 10):
        clock.now += 0.001
        windows.take(tag, 10, 10)
    assert [windows.take(tag, 10, 0).remaining for tag in range(9, 1, -1)] == [0] * 8


FLOOD = """
import sys, time
from pathlib import Path
from fleet.limits.windows import SharedWindows
windows = SharedWindows(Path(sys.argv[1]))
start, end = float(sys.argv[2]), float(sys.argv[3])
time.sleep(max(0, start - time.monotonic()))
granted = 0
while time.monotonic() < end:
    granted += windows.take(7, 100).granted
print(granted)
"""


def test_processes_share_a_limit_exactly(tmp_path: Path) -> None:
    """Three processes ask as fast as they can for less than three windows."""
    start = time.monotonic() + 2.0
    command = [sys.executable, "-c", FLOOD, str(tmp_path / "w"), str(start), str(start + 2.5)]
    floods = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    counts = [int(flood.communicate(timeout=60)[0]) for flood in floods]
    assert sum(counts) == 300


# From afar --------------------------------------------------------------------------------------------------------


async def test_nodes_share_a_limit_within_a_twentieth(tmp_path: Path) -> None:
    clock, calls = Clock(), 0
    door = SharedWindows(tmp_path / "door", slots=8, clock=clock)

    async def ask(asks: list[Ask]) -> Sequence[Taken]:
        nonlocal calls
        calls += 1
        return [door.take(*each) for each in asks]

    nodes = [
        LeasedWindows(ask, SharedWindows(tmp_path / f"own{n}", slots=8, clock=clock), clock=clock) for n in range(3)
    ]
    granted = asked = 0
    for step in range(5000):  # 5 s, each node asking 333 times a second
        clock.now += 0.001
        node = nodes[step % 3]
        taken = node.try_take(7, 100) or await node.fetch(7, 100)
        granted, asked = granted + taken.granted, asked + 1
    assert 475 <= granted <= 525
    assert calls < asked / 3  # most of them after refusals, at most a hundred times a second


async def test_a_slow_trickle_is_not_refused_for_what_lapsed(tmp_path: Path) -> None:
    clock = Clock()
    door = SharedWindows(tmp_path / "door", slots=8, clock=clock)

    async def ask(asks: list[Ask]) -> Sequence[Taken]:
        return [door.take(*each) for each in asks]

    node = LeasedWindows(ask, door, clock=clock)
    for _ in range(100):
        clock.now += 0.1
        taken = node.try_take(7, 10) or await node.fetch(7, 10)
        assert taken.granted == 1


async def test_without_the_door_a_node_counts_by_itself(tmp_path: Path) -> None:
    async def ask(_asks: list[Ask]) -> Sequence[Taken]:
        raise ConnectionError("the head is gone")

    node = LeasedWindows(ask, SharedWindows(tmp_path / "own", slots=8))
    taken = [node.try_take(7, 10) or await node.fetch(7, 10) for _ in range(15)]
    assert sum(each.granted for each in taken) == 10


# What a client sees -----------------------------------------------------------------------------------------------


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[Api]:
    api = await open_api(tmp_path, limits=RateLimits(unknown_keys_per_minute=5))
    yield api
    await api.close()


async def test_reads_are_limited_and_told(strict: Api) -> None:
    answers = [await strict.call("GET", PATH) for _ in range(110)]
    ok = [answer for answer in answers if answer.status_code == 200]
    over = [answer for answer in answers if answer.status_code == 429]
    assert len(ok) >= 100  # more only if this took over a second
    first = ok[0]
    assert first.headers["x-ratelimit-limit"] == "100"
    assert first.headers["x-ratelimit-remaining"] == "99"
    assert first.headers["x-ratelimit-reset"] == "1"
    for answer in over:
        assert set(answer.json()) == {"error", "detail", "status"}
        assert answer.json()["status"] == 429
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["x-ratelimit-remaining"] == "0"


async def test_exactly_the_limit_of_writes_at_once_over_two_replicas(strict: Api) -> None:
    """Replicas of a node share their counts: the file is in the home that both have."""
    second = await open_api_again(strict)
    calls = [replica.call("POST", f"{PATH}/unknown/update", json={}) for _ in range(15) for replica in (strict, second)]
    statuses = [answer.status_code for answer in await asyncio.gather(*calls)]
    await second.client.aclose()
    assert statuses.count(404) == 10
    assert statuses.count(429) == 20


async def open_api_again(api: Api) -> Api:
    """A second replica over the same database and home."""
    old: AppContext = api.app.state.context
    context = AppContext.make(api.settings, api.store, old.catalog, old.builds, api.regions)
    app = create_app(context)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fleet.test")
    return replace(api, app=app, client=client)


async def test_one_key_slows_no_other(strict: Api) -> None:
    for _ in range(15):
        await strict.call("POST", f"{PATH}/unknown/update", json={})
    for key in (strict.other.server_key, strict.project.client_key):
        answer = await strict.call("GET", PATH, key=key)
        assert answer.headers["x-ratelimit-remaining"] == "99"
    assert (await strict.call("POST", f"{PATH}/x/update", key=strict.other.server_key)).status_code == 404


async def test_reads_and_writes_are_counted_apart(strict: Api) -> None:
    for _ in range(11):
        await strict.call("POST", f"{PATH}/unknown/update", json={})
    assert (await strict.call("GET", PATH)).status_code == 200


async def test_unknown_keys_are_limited_by_address(strict: Api) -> None:
    async def tried(key: str, address: str) -> int:
        headers = by_proxy(client=address)
        return (await strict.call("GET", PATH, key=key, headers=headers)).status_code

    assert await tried(strict.project.server_key, "192.0.2.1") == 200
    assert [await tried(f"pf_guess{n}", "192.0.2.1") for n in range(7)] == [401] * 5 + [429] * 2
    assert await tried("pf_guess", "192.0.2.2") == 401
    assert await tried(strict.project.server_key, "192.0.2.1") == 200  # the same household's good key
    guesses = [await tried(f"pf_six{n}", f"2001:db8:0:1::{n}") for n in range(6)]
    assert guesses == [401] * 5 + [429]  # a /64 is one


async def test_unknown_admin_keys_are_limited_by_address_too(strict: Api) -> None:
    good = strict.app.state.context.admin_keys.rotate(0)

    async def tried(key: str) -> int:
        headers = {"admin-key": key, **by_proxy(client="192.0.2.7")}
        return (await strict.client.get("/api/admin/v1/projects", headers=headers)).status_code

    assert [await tried(f"pfadmin_{n}") for n in range(7)] == [401] * 5 + [429] * 2
    assert await tried(good) == 200


async def test_what_needs_no_key_is_not_counted(strict: Api) -> None:
    for path in ("/api/health", "/api/doc", "/api/reference"):
        assert "x-ratelimit-limit" not in (await strict.call("GET", path)).headers
