"""A thousand quiet followers of logs of one project, and the starts of another, through a whole fleet."""

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from tests import games
from tests.conftest import RunningFleet
from tests.e2e.test_tenancy import Operator
from tests.player import Studio

pytestmark = [pytest.mark.fleet, pytest.mark.slow]

FOLLOWERS, STARTS = 1000, 5
PER_KEY = 50  # FLEET_SHARES__LOG_STREAMS_PER_KEY
STALL_S = 10.0  # without lanes and limits a start waits for the followers' polls to end: 20 s


class Followers:
    """Streams of one server's log that nobody writes to."""

    def __init__(self, url: str, key: str, instance_id: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        timeout = httpx.Timeout(60.0, read=None)
        self.http = httpx.AsyncClient(
            base_url=url, headers={"api-key": key}, timeout=timeout, limits=limits, trust_env=False
        )
        self.path = f"/api/v3/servers/{instance_id}/logs"
        self.answers: list[httpx.Response] = []

    async def open(self, streams: AsyncExitStack) -> httpx.Response:
        request = self.http.stream("GET", self.path, params={"follow": True})
        answer = await streams.enter_async_context(request)
        self.answers.append(answer)
        return answer


async def starts(studio: Studio, build: str) -> list[float]:
    """How long each of some starts takes to be answered."""
    took: list[float] = []
    for _ in range(STARTS):
        began = time.monotonic()
        server: dict[str, Any] = await asyncio.to_thread(studio.start, build, wait=False)
        took.append(time.monotonic() - began)
        await asyncio.to_thread(studio.stop, server)
    return took


async def test_a_thousand_followers_of_one_project_stall_no_start_of_another(
    fleet: RunningFleet, studio: Studio
) -> None:
    operator = Operator(fleet)
    made = operator.call("POST", "/projects", 201, json={"name": "followed"})
    loud = Studio(fleet.url, made["server_key"])
    assert loud.push(games.demo_zip(), "followed")["status"] == "ready"
    assert studio.push(games.demo_zip(), "fair")["status"] == "ready"
    followed = loud.start("followed")
    alone = await starts(studio, "fair")
    followers = Followers(fleet.url, made["server_key"], followed["instance_id"])
    async with followers.http, AsyncExitStack() as streams:
        await asyncio.gather(*(followers.open(streams) for _ in range(FOLLOWERS)))
        statuses = Counter(answer.status_code for answer in followers.answers)
        together = await starts(studio, "fair")
        print(f"{statuses}; starts alone {max(alone):.2f} s at most, beside followers {max(together):.2f} s")
        assert max(together) < STALL_S
        assert statuses == {200: PER_KEY, 429: FOLLOWERS - PER_KEY}
        refused = next(answer for answer in followers.answers if answer.status_code == 429)
        await refused.aread()
        assert (refused.json()["error"], refused.headers["retry-after"]) == ("Too many streams", "2")
    # Their clients are gone, through the proxy too: the places are free within what a stream's ping takes.
    again = Followers(fleet.url, made["server_key"], followed["instance_id"])
    async with again.http, AsyncExitStack() as streams:
        for _ in range(80):
            if (await again.open(streams)).status_code == 200:
                break
            await asyncio.sleep(0.5)
        assert again.answers[-1].status_code == 200
    loud.stop(followed)
    loud.http.close()
    operator.http.close()
