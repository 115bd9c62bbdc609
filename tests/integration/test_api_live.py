"""The API as served by Ray Serve behind its proxy: what the in-process tests cannot see."""

import asyncio
import json
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from httpx_sse import connect_sse

from tests import games
from tests.player import Studio, stopped_after
from tests.waiting import eventually

pytestmark = pytest.mark.fleet


class RunningFleet(Protocol):
    url: str
    server_key: str
    client_key: str
    home: Path


@pytest.fixture(scope="module")
def studio(fleet: RunningFleet) -> Iterator[Studio]:
    opened = Studio(fleet.url, fleet.server_key)
    yield opened
    opened.http.close()


@pytest.fixture(scope="module")
def web(fleet: RunningFleet) -> Iterator[httpx.Client]:
    """A client without a key."""
    with httpx.Client(base_url=fleet.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def build(studio: Studio) -> str:
    """Name of a ready build of the demo game."""
    name = f"live-{uuid.uuid4().hex[:8]}"
    built = studio.push(games.demo_zip(), name)
    assert built["status"] == "ready", built["failure_reason"]
    return name


@pytest.fixture
def server(studio: Studio, build: str) -> Iterator[dict[str, Any]]:
    """A running demo server."""
    started = studio.start(build)
    with stopped_after(studio, started):
        yield started


def test_every_answer_has_exactly_one_request_id(web: httpx.Client) -> None:
    made: list[str] = []
    for path in ("/api/health", "/nowhere", "/api/v3/servers"):
        answer = web.get(path, headers={"x-request-id": "mine-1"})
        assert answer.headers.get_list("x-request-id") == ["mine-1"]
        made += web.get(path).headers.get_list("x-request-id")
    assert len(set(made)) == len(made) == 3


def test_large_bodies_are_refused_before_they_have_been_read(fleet: RunningFleet) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(256):
            yield b" " * 65_536

    headers = {"api-key": fleet.server_key, "content-type": "application/json"}
    answer = httpx.post(f"{fleet.url}/api/v3/servers/start", content=endless(), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"] == "Payload too large"


def test_an_upload_streams_through(studio: Studio) -> None:
    """Many times the body limit, of bytes that are no ZIP: the build fails, and says why."""
    link = studio.call("POST", "/builds/upload-url", 201, params={"name": "noise"})

    def noise() -> Iterator[bytes]:
        for _ in range(64):
            yield os.urandom(262_144)

    assert httpx.put(link["upload_url"], content=noise(), timeout=60).status_code == 200
    build = studio.processed(link["build_id"])
    assert build["status"] == "failed"
    assert "zip" in build["failure_reason"].lower()


def test_a_wait_is_answered_by_the_stop(studio: Studio, server: dict[str, Any]) -> None:
    path = f"/servers/{server['instance_id']}"
    answers: list[dict[str, Any]] = []
    waiter = threading.Thread(target=lambda: answers.append(studio.call("GET", f"{path}?wait_for=stopped&timeout=60")))
    waiter.start()
    studio.call("DELETE", path)
    waiter.join(70)
    assert [answer["status"] for answer in answers] == ["stopped"]


def test_reads_follow_writes_on_every_replica(studio: Studio, server: dict[str, Any]) -> None:
    """Each replica keeps answers; none may be older than an answered write."""
    path = f"/servers/{server['instance_id']}"
    for number in range(30):
        studio.call("POST", f"{path}/update", json={"custom_data": {"number": number}})
        for _ in range(4):
            assert studio.call("GET", path)["custom_data"] == {"number": number}


def test_followed_logs_end_with_the_server_and_can_be_resumed(studio: Studio, server: dict[str, Any]) -> None:
    path = f"/api/v3/servers/{server['instance_id']}/logs?follow=true"
    lines: list[tuple[str, str]] = []
    with connect_sse(studio.http, "GET", path, timeout=60) as source:
        for event in source.iter_sse():
            if event.event == "end":
                break
            lines.append((event.id, event.data))
            if len(lines) == 1:
                studio.call("DELETE", f"/servers/{server['instance_id']}")
    assert lines
    with connect_sse(studio.http, "GET", path, headers={"last-event-id": lines[0][0]}, timeout=60) as source:
        resumed = [event.data for event in source.iter_sse() if event.event == "log"]
    assert resumed == [data for _, data in lines[1:]]


async def test_many_streams_at_once(fleet: RunningFleet, server: dict[str, Any]) -> None:
    url = f"{fleet.url}/api/v3/servers/{server['instance_id']}/logs?follow=true"
    headers = {"api-key": fleet.server_key}
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(timeout=60, limits=limits, headers=headers) as client:

        async def first_line() -> str:
            async with client.stream("GET", url) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                async for line in answer.aiter_lines():
                    if line.startswith("data:"):
                        return line
            return ""

        found = await asyncio.gather(*(first_line() for _ in range(50)))
    assert len(set(found)) == 1
    assert found[0].startswith("data: {")


def test_counts_are_summed_over_the_replicas(web: httpx.Client) -> None:
    def count() -> float:
        text = web.get("/metrics").text
        series = 'fleet_http_requests_total{method="GET",route="/api/health",status="200"}'
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(series))

    web.get("/api/health")
    before = count()
    for _ in range(20):
        web.get("/api/health")
    assert count() >= before + 20


def test_a_request_id_reaches_the_log_of_the_region_and_no_other_server_gets_it(
    fleet: RunningFleet, studio: Studio, server: dict[str, Any]
) -> None:
    request_id = f"trace-{server['instance_id'][:8]}"
    for path, change in (("restart", {}), ("update", {"custom_data": {"traced": True}})):
        studio.call(
            "POST", f"/servers/{server['instance_id']}/{path}", json=change, headers={"x-request-id": request_id}
        )
    log = fleet.home / "logs" / f"manager-{server['region']}.log"

    def traced() -> list[dict[str, Any]]:
        lines = map(json.loads, log.read_text().splitlines())
        return [step for line in lines for step in line.get("steps", []) if step.get("request_id") == request_id]

    eventually(lambda: {step["type"] for step in traced()} >= {"queued", "updated"}, 20, "it is logged")
    assert {step["instance_id"] for step in traced()} == {server["instance_id"]}
    again = studio.call("GET", f"/servers/{server['instance_id']}", params={"wait_for": "running", "timeout": 60})
    assert again["status"] == "running"
    assert "running" not in {step["type"] for step in traced()}, "what a node tells is nobody's request"
