"""The Python client against the real API: what is repeated has one effect, what breaks goes on."""

import asyncio
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.client import (
    NO_RETRIES,
    AsyncFleetClient,
    Conflict,
    FleetClient,
    Forbidden,
    Invalid,
    NotFound,
    RateLimited,
    RetryPolicy,
    Unauthorized,
    Unreachable,
    WaitFailed,
    verify_webhook,
)
from fleet.client._async import servers as servers_module
from fleet.client.address import address
from fleet.client.errors import BadRequest as Refused
from fleet.client.errors import error_of
from fleet.client.retry import passes, retry_after_s, wait_s
from fleet.errors import BadRequest
from fleet.errors import Unauthorized as WrongSignature
from fleet.events.deliveries import message, secret_of
from fleet.events.journal import project_event
from fleet.settings import RateLimits
from fleet.times import now_ms
from tests.live_api import live
from tests.unit.api_kit import Api, open_api
from tests.unit.client_kit import QUICK, BadLine, client_of

START = {"name": "match", "region": "us-east"}
WAIT_S = 30


# Decisions -------------------------------------------------------------------------------------------------------


@given(
    attempt=st.integers(1, 10_000),
    chance=st.floats(0, 1, exclude_max=True),
    asked=st.none() | st.floats(0, 1e9),
    first=st.floats(0.01, 5),
)
def test_waits_are_bounded_and_never_shorter_than_asked(
    attempt: int, chance: float, asked: float | None, first: float
) -> None:
    policy = RetryPolicy(first_s=first, most_s=10, asked_most_s=30)
    wait = wait_s(policy, attempt, chance, asked)
    assert first / 2 <= wait <= 30 + first + 10
    if asked is None:
        assert wait <= 10
    else:
        assert wait >= min(asked, 30)


@given(st.text(max_size=60))
def test_any_retry_after_is_none_or_a_time_to_come(header: str) -> None:
    seconds = retry_after_s(header, 1e9)
    assert seconds is None or seconds >= 0


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2026, 2, 1, 12, 0, 0, tzinfo=UTC)
    later = format_datetime(now.replace(second=7), usegmt=True)
    assert retry_after_s(later, now.timestamp()) == 7
    assert retry_after_s("2", now.timestamp()) == 2
    assert retry_after_s("nan", 0) is None
    assert retry_after_s(format_datetime(now, usegmt=True), now.timestamp() + 99) == 0


def test_what_may_pass() -> None:
    assert [status for status in range(100, 600) if passes(status)] == [429, 502, 503, 504]
    assert passes(409, asked=True)  # a write whose first try is still served


def test_an_address_may_end_as_other_tools_write_it() -> None:
    assert {address(f"http://f:1{end}") for end in ("", "/", "/api", "/api/v3/", "/v3")} == {"http://f:1"}
    for wrong in ("", "f:1", "ftp://f"):
        with pytest.raises(BadRequest):
            address(wrong)


def test_an_answer_that_is_not_the_apis_is_an_error_in_words() -> None:
    error = error_of(httpx.Response(502, text="<h1>Bad gateway</h1>", headers={"x-request-id": "r1"}), 0)
    assert (error.status, error.error, error.request_id) == (502, "HTTP 502", "r1")
    assert "Bad gateway" in str(error)


def test_the_client_needs_neither_ray_nor_the_api() -> None:
    code = "import sys, fleet.client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"ray", "fastapi", "sqlalchemy", "serve_app", "numpy"} & set(done.stdout.split()) == set()


# Both clients over a socket --------------------------------------------------------------------------------------


async def test_both_clients_tell_the_same(api: Api) -> None:
    async with live(api.app, {}) as http:
        url = str(http.base_url)

        def whole() -> list[object]:
            with FleetClient(url, api.project.server_key) as client:
                server = client.servers.start(**START, custom_data={"a": 1})
                found = client.servers.get(server.instance_id)
                client.servers.stop(server.instance_id, "over")
                with pytest.raises(WaitFailed, match="has stopped"):
                    client.servers.wait(server.instance_id)
                stopped = client.servers.wait(server.instance_id, "stopped")
                steps = [event.type for event in client.servers.events(server.instance_id).events]
                return [found == server, stopped.status, steps, client.health().status]

        async with AsyncFleetClient(url, api.project.server_key) as client:
            server = await client.servers.start(**START, custom_data={"a": 1})
            found = await client.servers.get(server.instance_id)
            await client.servers.stop(server.instance_id, "over")
            stopped = await client.servers.wait(server.instance_id, "stopped")
            steps = [event.type for event in (await client.servers.events(server.instance_id)).events]
            told = [found == server, stopped.status, steps, (await client.health()).status]
        assert await asyncio.to_thread(whole) == told
        assert told[:2] == [True, "stopped"]


async def test_errors_have_their_kind_words_and_request(api: Api) -> None:
    client = client_of(api)
    with pytest.raises(NotFound) as missing:
        await client.servers.get("nope")
    assert missing.value.request_id
    with pytest.raises(Invalid) as invalid:
        await client.servers.start(name="", region="us-east")
    assert [issue["loc"] for issue in invalid.value.issues] == [["body", "name"]]
    stranger = AsyncFleetClient("http://fleet.test", "pf_x", http=httpx.AsyncClient(transport=BadLine(_asgi(api))))
    with pytest.raises(Unauthorized):
        await stranger.servers.list()
    player = AsyncFleetClient("http://fleet.test", api.project.client_key, http=httpx.AsyncClient(transport=_asgi(api)))
    with pytest.raises(Forbidden):
        await player.builds.list()
    with pytest.raises(Conflict):
        await client.servers.claim(region="us-east")


def _asgi(api: Api) -> httpx.ASGITransport:
    return httpx.ASGITransport(api.app)


async def test_a_fleet_that_is_not_there_is_said_after_all_tries() -> None:
    async with AsyncFleetClient("http://127.0.0.1:9", "pf_x", retry=RetryPolicy(attempts=2, first_s=0.01)) as client:
        with pytest.raises(Unreachable, match="does not answer"):
            await client.health()


async def test_pages_follow_each_other(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers_module, "PAGE", 2)
    made = {(await api.start(name=f"s{number}"))["instance_id"] for number in range(5)}
    found = [server.instance_id async for server in client_of(api).servers.iterate(include_launching=True)]
    assert set(found) == made
    assert len(found) == 5


# Repetitions -----------------------------------------------------------------------------------------------------


async def test_a_write_whose_answer_is_lost_has_one_effect(api: Api) -> None:
    line = BadLine(_asgi(api), lost=2, only="POST /api/v3/servers/start")
    client = client_of(api, line)
    server = await client.servers.start(**START)
    page = await client.servers.list(include_launching=True)
    assert [found.instance_id for found in page.servers] == [server.instance_id]
    starts = [request for request in line.seen if request.url.path.endswith("start")]
    assert len(starts) == 3
    assert len({request.headers["idempotency-key"] for request in starts}) == 1
    again = await client.servers.start(**START)
    assert again.instance_id != server.instance_id  # another call is another server


async def test_a_key_of_ones_own_makes_two_calls_one(api: Api) -> None:
    client = client_of(api)
    first = await client.servers.start(**START, idempotency_key="match-7")
    assert await client.servers.start(**START, idempotency_key="match-7") == first


async def test_over_the_limit_the_client_waits_as_it_is_told(tmp_path: Path) -> None:
    api = await open_api(tmp_path, limits=RateLimits(writes_per_s=2))
    line = BadLine(_asgi(api))
    made = [await client_of(api, line).servers.start(**START, match_id=str(n)) for n in range(4)]
    assert len({server.instance_id for server in made}) == 4
    assert len(line.seen) > 4  # some were refused first
    impatient = client_of(api, retry=NO_RETRIES)
    calls = [impatient.servers.start(**START, match_id=f"at once {n}") for n in range(4)]
    refused = [answer for answer in await asyncio.gather(*calls, return_exceptions=True) if not hasattr(answer, "name")]
    assert {type(error) for error in refused} == {RateLimited}
    assert {error.retry_after for error in refused if isinstance(error, RateLimited)} == {1}
    await api.close()


# Uploads ---------------------------------------------------------------------------------------------------------


async def test_a_big_upload_is_never_in_memory(api: Api, tmp_path: Path) -> None:
    size = 96 << 20
    archive = tmp_path / "big.zip"
    with archive.open("wb") as file:
        file.truncate(size)
    heard: list[tuple[int, int]] = []
    async with live(api.app, {}) as http:
        client = AsyncFleetClient(str(http.base_url), api.project.server_key)
        tracemalloc.start()
        try:
            build = await client.builds.upload(archive, progress=lambda *told: heard.append(told))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        await client.aclose()
    assert build.status == "processing"
    assert heard[-1] == (size, size)
    assert peak < 24 << 20  # of the client and the server together


@pytest.mark.parametrize("lost", ["PUT /upload/", "POST /api/v3/builds/upload-url"])
async def test_an_upload_whose_answer_is_lost_is_one_build(api: Api, tmp_path: Path, lost: str) -> None:
    folder = tmp_path / "game"
    folder.mkdir()
    (folder / "Server.x86_64").write_text("#!/bin/sh\n")
    client = client_of(api, BadLine(_asgi(api), lost=1, only=lost))
    build = await client.builds.upload(folder, name="lost", ready_by="game")
    assert build.status == "processing"
    assert [found.build_id async for found in client.builds.iterate(name="lost")] == [build.build_id]
    with pytest.raises(WaitFailed, match="still processing"):
        await client.builds.wait_ready(build.build_id, within=0.05)


# Streams ---------------------------------------------------------------------------------------------------------


async def happen(api: Api, count: int) -> None:
    for number in range(count):
        async with api.store.write() as session:
            data = {"n": number}
            session.add(project_event(api.project.project_id, "build", f"b{number}", "build.ready", data))
        await asyncio.sleep(0.02)


async def follow(client: AsyncFleetClient, count: int, begun: asyncio.Event, after: str | None = None) -> list[Any]:
    """The next `count` events."""
    found: list[Any] = []
    async with asyncio.timeout(WAIT_S), aclosing(client.events.follow(after=after, only=["build"])) as coming:
        begun.set()
        async for event in coming:
            found.append(event)
            if len(found) == count:
                return found
    return found


@pytest.mark.parametrize("how", ["the server ends it", "the line breaks"])
async def test_a_stream_goes_on_over_breaks_with_nothing_twice_or_left_out(api: Api, how: str) -> None:
    count = 60
    if how == "the server ends it":
        api.settings.events.max_stream_s = 0.2
    start = await _first_position(api)
    async with live(api.app, {}) as http:
        line = BadLine(httpx.AsyncHTTPTransport(), break_after=4 if how == "the line breaks" else None)
        client = AsyncFleetClient(
            str(http.base_url), api.project.server_key, retry=QUICK, http=httpx.AsyncClient(transport=line)
        )
        begun = asyncio.Event()
        reading = asyncio.create_task(follow(client, count, begun, start))
        await begun.wait()
        await happen(api, count)
        events = await reading
        await line.aclose()
    assert [event.data["n"] for event in events] == list(range(count))
    assert len(line.seen) > 3
    assert all("last-event-id" in request.headers for request in line.seen)


async def _first_position(api: Api) -> str:
    """Where the stream stands now."""
    answer = await api.call("GET", "/api/v3/events", params={"timeout": 0.05})
    return answer.text.split("id: ")[1].split("\n")[0]


async def test_a_refused_stream_is_an_error_at_once(api: Api) -> None:
    events: AsyncIterator[Any] = client_of(api).events.follow(only=["nonsense"])
    with pytest.raises(Refused, match="Unknown event"):
        await anext(events)


# Webhooks --------------------------------------------------------------------------------------------------------


SECRET = secret_of(bytes(range(32)))
PAYLOAD = {"type": "server.running", "timestamp": "2026-02-01T00:00:00.000Z", "id": "evt_s1", "kind": "server"} | {
    "subject": "s1",
    "project_id": "p",
    "region": "us-east",
    "data": {},
}


def test_a_webhook_of_the_fleet_is_known_by_its_signature() -> None:
    body, headers = message(SECRET, "evt_s1", PAYLOAD, now_ms())
    event = verify_webhook(SECRET, {name.title(): value for name, value in headers.items()}, body)
    assert (event.type, event.subject, event.at) == ("server.running", "s1", PAYLOAD["timestamp"])
    old = message(SECRET, "evt_s1", PAYLOAD, now_ms() - 3_600_000)
    for headers_then, body_then in ((headers, body.replace(b"s1", b"s2")), ({}, body), (old[1], old[0])):
        with pytest.raises(WrongSignature):
            verify_webhook(SECRET, headers_then, body_then)


@given(body=st.binary(max_size=50), signature=st.text(max_size=50), at=st.text(max_size=12))
def test_no_forged_webhook_passes(body: bytes, signature: str, at: str) -> None:
    with pytest.raises(WrongSignature):
        verify_webhook(
            SECRET, {"webhook-id": "1", "webhook-timestamp": at or "1", "webhook-signature": signature or "v1,"}, body
        )
