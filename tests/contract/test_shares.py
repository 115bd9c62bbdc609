"""What a project has at once: counted over all replicas, told as 429, given back however it ends."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import TooMany
from fleet.limits.limiter import tag_of
from fleet.limits.places import SharedPlaces
from fleet.limits.shares import open_shares
from fleet.node.runtime import LogLine
from fleet.store.tables import Server
from serve_app.context import AppContext
from serve_app.http import create_app
from tests.live_api import live
from tests.unit.api_kit import Api, open_api
from tests.unit.club import CONFIG, Club
from tests.waiting import soon

HOLDER = """
import sys, time
from pathlib import Path
from fleet.limits.places import SharedPlaces
places = SharedPlaces(Path(sys.argv[1]))
print(sum(places.enter(7, 5) is None for _ in range(int(sys.argv[2]))), flush=True)
time.sleep(60)
"""


def test_processes_share_places_and_a_killed_one_gives_its_own_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "p")]
    places = SharedPlaces(tmp_path / "p", believed_s=0)
    assert [places.enter(7, 5) for _ in range(2)] == [None, None]
    with subprocess.Popen([*command, "9"], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "3\n"
        assert places.enter(7, 5) == 5
        assert places.enter(8, 5) is None
        other.send_signal(signal.SIGKILL)
    assert places.enter(7, 5) is None
    assert places.held(7) == 3
    for _ in range(5):
        places.leave(7)
    assert places.held(7) == 0


@given(
    limit=st.integers(1, 5),
    steps=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["enter", "leave", "die"]), st.integers(1, 4))),
)
def test_places_are_those_of_the_living(
    tmp_path_factory: pytest.TempPathFactory, limit: int, steps: list[tuple[int, str, int]]
) -> None:
    """Against a model, with one set only, so that all tags meet; a process that dies comes again as another one."""
    file = tmp_path_factory.mktemp("places") / "p"
    starts = {pid: 1 for pid in (10, 11, 12)}

    def opened(pid: int) -> SharedPlaces:
        return SharedPlaces(file, sets=1, me=(pid, starts[pid]), started=lambda other: starts[other], believed_s=0)

    tables = {pid: opened(pid) for pid in starts}
    model: dict[int, list[int]] = {pid: [] for pid in starts}
    for number, what, tag in steps:
        pid = 10 + number
        held = sum(tags.count(tag) for tags in model.values())
        if what == "enter":
            assert tables[pid].enter(tag, limit) == (None if held < limit else held)
            model[pid] += [tag] * (held < limit)
        elif what == "leave":
            tables[pid].leave(tag)
            if tag in model[pid]:
                model[pid].remove(tag)
        else:
            starts[pid] += 1
            tables[pid], model[pid] = opened(pid), []


def test_a_full_table_counts_each_process_for_itself(tmp_path: Path) -> None:
    places = SharedPlaces(tmp_path / "p", sets=1)
    assert all(places.enter(tag, 1) is None for tag in range(1, 41))
    assert all(places.enter(tag, 1) == 1 for tag in range(1, 41))
    for tag in range(1, 41):
        places.leave(tag)
    assert all(places.held(tag) == 0 for tag in range(1, 41))
    assert tag_of(b"x")


# What a client sees -----------------------------------------------------------------------------------------------


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    plans = tmp_path / "plans.yaml"
    shares = {"log_streams": 3, "log_streams_per_key": 2, "waits": 2, "uploads": 1, "builds": 3, "log_reads": 1}
    plans.write_text(yaml.safe_dump({"plans": {"free": {}, "pro": {"shares": shares}}}))
    api = await open_api(tmp_path, plans=plans)
    yield api
    await api.close()


async def second(api: Api) -> Api:
    """Another replica over the same database and home."""
    old: AppContext = api.app.state.context
    app = create_app(AppContext.make(api.settings, api.store, old.catalog, old.builds, api.regions))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fleet.test")
    return replace(api, app=app, client=client)


def refused(answer: httpx.Response, error: str) -> None:
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["error"], body["status"]) == (429, error, 429)
    assert answer.headers["retry-after"] == "2"


async def test_streams_of_logs_are_counted_over_replicas_and_freed_when_the_client_goes(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def quiet(_server: Server, _after: str | None) -> AsyncIterator[list[LogLine]]:
        await asyncio.sleep(60)
        yield []

    monkeypatch.setattr(api.regions, "follow_logs", quiet)
    server = await api.running()
    path = f"/api/v3/servers/{server['instance_id']}/logs?follow=true"
    shares = open_shares(api.settings)
    mine, theirs = api.project.project_id, api.other.project_id
    key = {"api-key": api.project.server_key}
    async with live(api.app, key) as http, AsyncExitStack() as streams:
        opened: list[httpx.Response] = []
        parts: list[AsyncIterator[bytes]] = []  # kept: the end of one closes its stream
        for _ in range(2):
            answer = await streams.enter_async_context(http.stream("GET", path))
            assert answer.status_code == 200
            parts.append(answer.aiter_bytes())
            await anext(parts[-1])
            opened.append(answer)
        other = await second(api)
        refused(await other.call("GET", path), "Too many streams")  # of this key
        assert shares.count(mine, "log_streams") == 2
        assert shares.count(theirs, "log_streams") == 0
        await opened[0].aclose()
        await soon(lambda: shares.count(mine, "log_streams") == 1, 10, "the stream's place is free")
        await other.client.aclose()
    await soon(lambda: shares.count(mine, "log_streams") == 0, 10, "all places are free")


async def test_waits_are_limited_and_end_with_their_client(api: Api) -> None:
    server = await api.start()
    path = f"/api/v3/servers/{server['instance_id']}?wait_for=running&timeout=60"
    shares, mine = open_shares(api.settings), api.project.project_id
    waits = [asyncio.create_task(api.call("GET", path)) for _ in range(2)]
    await soon(lambda: shares.count(mine, "waits") == 2, 10, "two wait")
    refused(await api.call("GET", path), "Too many at once")
    build = await api.add_build(name="other", status="processing")
    refused(await api.call("GET", f"/api/v3/builds/{build.build_id}?wait_for=ready"), "Too many at once")
    before = len((await api.call("GET", "/api/v3/servers?include_launching=true")).json()["servers"])
    refused(await api.call("POST", "/api/v3/servers/start?wait_for=running", json=api.start_body), "Too many at once")
    assert len((await api.call("GET", "/api/v3/servers?include_launching=true")).json()["servers"]) == before
    waits[0].cancel()
    await soon(lambda: shares.count(mine, "waits") == 1, 10, "its client has gone")
    await api.regions.change(server["instance_id"], "running", status="running")
    assert (await waits[1]).json()["status"] == "running"
    assert shares.count(mine, "waits") == 0


async def test_a_wait_ends_when_its_client_hangs_up(api: Api) -> None:
    server = await api.start()
    path = f"/api/v3/servers/{server['instance_id']}?wait_for=running&timeout=60"
    shares, mine = open_shares(api.settings), api.project.project_id
    async with live(api.app, {"api-key": api.project.server_key}) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.get(path, timeout=0.5)
        await soon(lambda: shares.count(mine, "waits") == 0, 10, "nobody waits any more")


async def test_uploads_and_builds_are_limited(api: Api) -> None:
    links = [await api.call("POST", "/api/v3/builds/upload-url?name=game") for _ in range(3)]
    assert {answer.status_code for answer in links} == {201}
    refused(await api.call("POST", "/api/v3/builds/upload-url?name=game"), "Too many at once")
    assert (await api.call("POST", "/api/v3/builds/upload-url", key=api.other.server_key)).status_code == 201
    url = links[0].json()["upload_url"].removeprefix("http://fleet.test")
    again = links[1].json()["upload_url"].removeprefix("http://fleet.test")
    assert (await api.client.put(url, content=b"PK")).status_code == 200
    context: AppContext = api.app.state.context
    place = context.shares.take(api.project.project_id, "pro", "uploads")
    refused(await api.client.put(again, content=b"PK"), "Too many at once")
    place.release()
    assert (await api.client.put(again, content=b"PK")).status_code == 200


async def test_a_match_waits_for_its_turn_where_its_project_has_too_much_under_way(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.app.state.context.projects.change_settings(api.project.project_id, {"lobby_configs": [CONFIG]})
    club = Club(api)
    start, refusals = api.regions.start, [TooMany("The project has 128 commands under way.")] * 2

    async def busy(row: Server) -> Server:
        if refusals:
            raise refusals.pop()
        return await start(row)

    monkeypatch.setattr(api.regions, "start", busy)
    for player in ("ann", "bob"):
        await club.lobby(player)
        await club.do("start_matchmaking", player, "duel")
    await club.sees("ann", "in_game")
    assert not refusals
    assert not await club.told("match_failed")
