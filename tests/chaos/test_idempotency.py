"""A replica is killed between a write's effect and its answer: sent again with its key, it is one effect."""

import time
import uuid
from typing import Any

import httpx
import pytest

from tests import games
from tests.conftest import RunningFleet
from tests.player import Studio

pytestmark = [pytest.mark.fleet, pytest.mark.docker]

POINTS = ["idempotency.begun", "idempotency.served", "idempotency.kept"]
RETRY_S = 60.0


def until_answered(fleet: RunningFleet, method: str, path: str, key: str, **said: Any) -> httpx.Response:
    """As a client with retries sends it: the same request again, until there is an answer that is no fault."""
    deadline = time.monotonic() + RETRY_S
    with fleet.client() as client:
        while True:
            try:
                answer = client.request(method, f"/api/v3{path}", headers={"idempotency-key": key}, **said)
                if answer.status_code < 500:
                    return answer
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, "no answer"
            time.sleep(0.2)


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_replica_starts_one_server(fleet: RunningFleet, studio: Studio, point: str) -> None:
    assert studio.push(games.demo_zip(), "keyed-demo")["status"] == "ready"
    match = uuid.uuid4().hex
    body = {"name": "keyed", "region": "eu-west", "version_tag": "keyed-demo", "match_id": match}
    (fleet.faults / point).touch()
    first = until_answered(fleet, "POST", "/servers/start", match, json=body)
    assert first.status_code == 201, first.text
    assert not (fleet.faults / point).exists(), "nobody passed the point"
    again = until_answered(fleet, "POST", "/servers/start", match, json=body)
    assert again.content == first.content
    listed = studio.call("GET", "/servers", params={"include_launching": True, "limit": 100})["servers"]
    mine = [server for server in listed if server["match_id"] == match]
    assert [server["instance_id"] for server in mine] == [first.json()["instance_id"]]
    until_answered(fleet, "DELETE", f"/servers/{first.json()['instance_id']}", f"stop-{match}")


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_replica_makes_one_build(fleet: RunningFleet, studio: Studio, point: str) -> None:
    name = f"keyed-{uuid.uuid4().hex[:12]}"
    (fleet.faults / point).touch()
    made = until_answered(fleet, "POST", "/builds/upload-url", name, params={"name": name})
    assert made.status_code == 201
    assert not (fleet.faults / point).exists(), "nobody passed the point"
    builds = studio.call("GET", "/builds", params={"name": name})["builds"]
    assert [build["build_id"] for build in builds] == [made.json()["build_id"]]
    gone = until_answered(fleet, "DELETE", f"/builds/{made.json()['build_id']}", f"delete-{name}")
    assert gone.status_code == 200
