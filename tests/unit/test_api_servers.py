"""Servers through the API: what is accepted, what is refused, what comes back."""

import asyncio
from typing import Any

import orjson
import pytest
from sqlmodel import select

from fleet.node.runtime import LogLine
from fleet.node.series import FIELDS as SERIES
from fleet.sealing import Variables
from fleet.store.tables import Project, Server
from fleet.times import now_ms
from tests.unit.api_kit import Api

FIELDS = {
    "instance_id", "name", "status", "network_ports", "startup_args", "service_type", "compute_size", "region",
    "version_tag", "version", "started_at", "stopped_at", "auto_restart", "custom_data", "ttl", "is_pool_server",
    "pool_claimed_at", "start_kind", "match_id", "created_at", "updated_at",
}  # fmt: skip


def port(name: str = "game", internal_port: int = 7777, protocol: str = "udp", **more: Any) -> dict[str, Any]:
    return {"name": name, "internal_port": internal_port, "protocol": protocol, **more}


async def stored(api: Api, instance_id: str) -> Server:
    async with api.store.read() as session:
        row = await session.get(Server, instance_id)
    assert row is not None
    return row


async def test_a_start_answers_with_every_field_and_its_ports(api: Api) -> None:
    answer = await api.call("POST", "/api/v3/servers/start", json={**api.start_body, "custom_data": {"map": "dust"}})
    assert answer.status_code == 201
    server = answer.json()
    assert set(server) == FIELDS
    assert server["status"] == "launching"
    assert server["network_ports"] == [
        {
            "name": "game_udp",
            "internal_port": 7777,
            "external_port": 20000,
            "protocol": "udp",
            "host": "127.0.0.1",
            "tls_enabled": False,
        }
    ]
    assert (server["compute_size"], server["version_tag"], server["version"]) == ("small", "default", 1)
    assert server["custom_data"] == {"map": "dust"}
    assert b'"status":"launching"' in answer.content
    got = await api.call("GET", f"/api/v3/servers/{server['instance_id']}")
    assert got.json() == server


async def test_the_environment_is_kept_but_never_returned(api: Api) -> None:
    async with api.store.write() as session:
        project = (await session.exec(select(Project).where(Project.id == api.project.project_id))).one()
        project.settings = {"environment_variables": {"A": "project", "B": "project"}, "port_configs": [port("web")]}
    server = await api.start(environment_variables={"B": "from-caller"})
    row = await stored(api, server["instance_id"])
    assert Variables(api.settings.home).open(row.environment) == {"A": "project", "B": "from-caller"}
    assert "from-caller" not in orjson.dumps(server).decode()
    assert [p["name"] for p in server["network_ports"]] == ["web"]


async def test_a_tls_port_is_shown_as_one(api: Api) -> None:
    server = await api.start(port_configs=[port("web", 8080, protocol="tcp", tls_enabled=True), port("game")])
    assert [(p["name"], p["tls_enabled"]) for p in server["network_ports"]] == [("web", True), ("game", False)]


async def test_aliases_and_numeric_strings_are_understood(api: Api) -> None:
    server = await api.start(region="south-america", version="1", ttl="120")
    assert (server["region"], server["version"], server["ttl"]) == ("south-america-brazil", 1, 120)


async def test_persistent_sizes_have_no_ttl_and_restart_by_themselves(api: Api) -> None:
    server = await api.start(compute_size="persistent-small", ttl=60)
    assert (server["ttl"], server["auto_restart"], server["service_type"]) == (None, True, "persistent_world")


BAD_STARTS: list[tuple[dict[str, Any], int]] = [
    ({"region": "atlantis"}, 400),
    ({"compute_size": "planet"}, 400),
    ({"version_tag": "no-such-build"}, 404),
    ({"ttl": 59}, 422),
    ({"ttl": 86_401}, 422),
    ({"name": ""}, 422),
    ({"name": 7}, 422),
    ({"port_configs": [port(f"p{n}", 7000 + n) for n in range(40)]}, 422),
    ({"port_configs": [port("a"), port("a", 7778)]}, 422),
    ({"port_configs": [port("a"), port("b")]}, 422),
    ({"port_configs": [port(internal_port=0)]}, 422),
    ({"port_configs": [port(internal_port=65_536)]}, 422),
    ({"port_configs": [port(protocol="sctp")]}, 422),
    ({"port_configs": [port(tls_enabled=True)]}, 422),
    ({"custom_data": {"x": "y" * 300_000}}, 413),
    ({"custom_data": {"x": "y" * 1_200_000}}, 413),
    ({"custom_data": [1]}, 422),
    ({"startup_args": "x" * 9000}, 422),
    ({"startup_args": "a\0b"}, 422),
    ({"environment_variables": {f"V{n}": "" for n in range(65)}}, 422),
    ({"environment_variables": {"A=B": ""}}, 422),
    ({"environment_variables": {"A": "x" * 9000}}, 422),
]


@pytest.mark.parametrize(("change", "status"), BAD_STARTS)
async def test_a_bad_start_is_refused_and_changes_nothing(api: Api, change: dict[str, Any], status: int) -> None:
    answer = await api.call("POST", "/api/v3/servers/start", json={**api.start_body, **change})
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert set(problem) == {"error", "detail", "status"}
    assert problem["status"] == status
    if status == 422:
        assert problem["error"] == "Validation error"
        assert all(set(issue) == {"loc", "msg", "type"} for issue in problem["detail"])
    listed = await api.call("GET", "/api/v3/servers?include_launching=true&include_pool=true")
    assert listed.json()["total"] == 0


@pytest.mark.parametrize(
    ("body", "code", "loc"),
    [
        ({"name": "x"}, "invalid_type", ["body", "region"]),
        ({"name": "", "region": "us-east"}, "too_small", ["body", "name"]),
        ({"name": "x", "region": "us-east", "ttl": 100_000}, "too_big", ["body", "ttl"]),
        (
            {"name": "x", "region": "us-east", "port_configs": [port(protocol="x")]},
            "invalid_enum_value",
            ["body", "port_configs", 0, "protocol"],
        ),
    ],
)
async def test_validation_issues_carry_the_known_codes(api: Api, body: Any, code: str, loc: list[Any]) -> None:
    answer = await api.call("POST", "/api/v3/servers/start", json=body)
    assert answer.status_code == 422
    assert [(issue["type"], issue["loc"]) for issue in answer.json()["detail"]] == [(code, loc)]


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b'{"name":"\\ud800","region":"us-east"}', b'{"a":NaN}', b"[" * 5000]
)
async def test_what_is_not_json_is_a_400(api: Api, body: bytes) -> None:
    answer = await api.call("POST", "/api/v3/servers/start", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "detail", "status"}


async def test_deep_custom_data_is_refused(api: Api) -> None:
    deep: Any = 1
    for _ in range(400):
        deep = {"a": deep}
    answer = await api.call("POST", "/api/v3/servers/start", json={**api.start_body, "custom_data": deep})
    assert answer.status_code == 400


async def test_a_build_that_is_not_ready_is_a_conflict(api: Api) -> None:
    await api.add_build(name="half", status="processing")
    answer = await api.call(
        "POST", "/api/v3/servers/start", json={**api.start_body, "version_tag": "half", "version": 1}
    )
    assert answer.status_code == 409


async def test_the_list_shows_running_servers_in_pages(api: Api) -> None:
    launching = await api.start()
    ids = {(await api.running(name=f"match {n}"))["instance_id"] for n in range(5)}
    idle = await api.running(name="idle")
    await api.regions.change(idle["instance_id"], "pooled", is_pool_server=True)
    claimed = await api.running(name="claimed")
    await api.regions.change(claimed["instance_id"], "claimed", is_pool_server=True, pool_claimed_at=now_ms())
    ids.add(claimed["instance_id"])

    seen: list[str] = []
    offset, more = 0, True
    while more:
        page = (await api.call("GET", f"/api/v3/servers?limit=4&offset={offset}")).json()
        assert set(page) == {"total", "servers", "limit", "offset", "has_more"}
        assert (page["total"], page["limit"], page["offset"]) == (6, 4, offset)
        seen += [server["instance_id"] for server in page["servers"]]
        offset, more = offset + 4, page["has_more"]
    assert len(seen) == 6
    assert set(seen) == ids

    everything = (await api.call("GET", "/api/v3/servers?include_launching=true&include_pool=true")).json()
    assert {launching["instance_id"], idle["instance_id"]} <= {s["instance_id"] for s in everything["servers"]}


async def test_the_list_shows_exactly_the_statuses_asked_for(api: Api) -> None:
    launching, running, ended = await api.start(), await api.running(), await api.running()
    await api.call("DELETE", f"/api/v3/servers/{ended['instance_id']}")

    async def ids(query: str) -> set[str]:
        page = (await api.call("GET", f"/api/v3/servers?{query}")).json()
        assert page["total"] == len(page["servers"])
        return {server["instance_id"] for server in page["servers"]}

    assert await ids("status=stopped") == {ended["instance_id"]}
    assert await ids("status=launching&status=stopped") == {launching["instance_id"], ended["instance_id"]}
    assert await ids("status=running&include_launching=true") == {running["instance_id"]}
    assert (await api.call("GET", "/api/v3/servers?status=asleep")).status_code == 422


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "offset=-1", "limit=x", "include_pool=maybe"])
async def test_list_bounds(api: Api, query: str) -> None:
    assert (await api.call("GET", f"/api/v3/servers?{query}")).status_code == 422


@pytest.mark.parametrize("name", ["nope", "x" * 500, "%00", "%FF", "é"])
async def test_unknown_servers_are_404(api: Api, name: str) -> None:
    answer = await api.call("GET", f"/api/v3/servers/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"] == "Server not found"


async def test_a_read_is_never_stale(api: Api) -> None:
    server = await api.running()
    path = f"/api/v3/servers/{server['instance_id']}"
    for number in range(20):
        await api.regions.update("us-east", server["instance_id"], {"number": number})
        for _ in range(3):
            assert (await api.call("GET", path)).json()["custom_data"] == {"number": number}


async def test_update_replaces_custom_data(api: Api) -> None:
    server = await api.running(custom_data={"a": 1})
    path = f"/api/v3/servers/{server['instance_id']}/update"
    assert (await api.call("POST", path, json={"custom_data": {"b": 2}})).json()["custom_data"] == {"b": 2}
    assert (await api.call("POST", path, json={})).json()["custom_data"] == {"b": 2}
    assert (await api.call("POST", path)).json()["custom_data"] == {"b": 2}
    too_much = await api.call("POST", path, json={"custom_data": {"x": "y" * 300_000}})
    assert too_much.status_code == 413
    await api.call("DELETE", f"/api/v3/servers/{server['instance_id']}")
    assert (await api.call("POST", path, json={"custom_data": {}})).status_code == 409


async def test_restart_changes_what_is_given_and_keeps_the_rest(api: Api) -> None:
    await api.add_build(version=2)
    server = await api.running(version=1, startup_args="-old", match_id="m", ttl=600)
    path = f"/api/v3/servers/{server['instance_id']}/restart"
    plain = (await api.call("POST", path)).json()
    assert (plain["version"], plain["startup_args"], plain["status"]) == (1, "-old", "launching")
    changed = await api.call("POST", path, json={"version_tag": "default", "startup_args": None, "ttl": 120})
    assert changed.status_code == 200
    restarted = changed.json()
    assert (restarted["version"], restarted["startup_args"], restarted["ttl"]) == (2, None, 120)
    assert restarted["match_id"] == "m"
    assert len(set(api.regions.ops)) == 2


async def test_stopped_and_pool_servers_cannot_be_restarted(api: Api) -> None:
    stopped, pooled = await api.running(), await api.running()
    await api.call("DELETE", f"/api/v3/servers/{stopped['instance_id']}")
    await api.regions.change(pooled["instance_id"], "pooled", is_pool_server=True)
    for server in (stopped, pooled):
        answer = await api.call("POST", f"/api/v3/servers/{server['instance_id']}/restart")
        assert answer.status_code == 409


async def test_stopping_twice_is_the_same_success(api: Api) -> None:
    server = await api.start()
    path = f"/api/v3/servers/{server['instance_id']}"
    for _ in range(2):
        answer = await api.call("DELETE", f"{path}?shutdown_reason=done")
        assert (answer.status_code, answer.text) == (200, '{"status":"Server stopped successfully"}')
    after = (await api.call("GET", path)).json()
    assert (after["status"], after["network_ports"]) == ("stopped", [])
    assert (await stored(api, server["instance_id"])).stop_detail == "done"
    assert (await api.call("DELETE", "/api/v3/servers/unknown")).status_code == 404


async def test_events_tell_the_life_in_order(api: Api) -> None:
    server = await api.running()
    await api.call("DELETE", f"/api/v3/servers/{server['instance_id']}")
    journal = (await api.call("GET", f"/api/v3/servers/{server['instance_id']}/events")).json()
    assert [event["type"] for event in journal["events"]] == ["accepted", "running", "stopped"]
    page = (await api.call("GET", f"/api/v3/servers/{server['instance_id']}/events?limit=1&offset=1")).json()
    assert [event["type"] for event in page["events"]] == ["running"]
    assert page["has_more"] is True


async def test_waiting_is_answered_by_the_change(api: Api) -> None:
    server = await api.start()
    path = f"/api/v3/servers/{server['instance_id']}?wait_for=running&timeout=60"
    waiting = asyncio.create_task(api.call("GET", path))
    await api.regions.waiting.wait()
    await api.regions.change(server["instance_id"], "running", status="running", started_at=now_ms())
    answer = await waiting
    assert answer.json()["status"] == "running"
    again = await api.call("GET", path)
    assert again.json()["status"] == "running"


async def test_waiting_ends_when_what_is_waited_for_cannot_come(api: Api) -> None:
    server = await api.start()
    waiting = asyncio.create_task(
        api.call("GET", f"/api/v3/servers/{server['instance_id']}?wait_for=running&timeout=60")
    )
    await api.regions.waiting.wait()
    await api.call("DELETE", f"/api/v3/servers/{server['instance_id']}")
    assert (await waiting).json()["status"] == "stopped"


async def test_a_wait_that_runs_out_tells_the_present_state(api: Api) -> None:
    answer = await api.call("POST", "/api/v3/servers/start?wait_for=running&timeout=0.01", json=api.start_body)
    assert (answer.status_code, answer.json()["status"]) == (201, "launching")


@pytest.mark.parametrize("query", ["wait_for=launching", "wait_for=running&timeout=121", "wait_for=running&timeout=-1"])
async def test_wait_bounds(api: Api, query: str) -> None:
    answer = await api.call("POST", f"/api/v3/servers/start?{query}", json=api.start_body)
    assert answer.status_code == 422


def lines(count: int) -> list[LogLine]:
    return [
        LogLine(f"2026-01-31T12:00:{n:02d}.000000000Z", f"line {n}", "stderr" if n % 2 else "stdout", f"{n:04d}")
        for n in range(count)
    ]


async def test_logs_are_paged_by_token(api: Api) -> None:
    server = await api.running()
    api.regions.lines = lines(5)
    path = f"/api/v3/servers/{server['instance_id']}/logs"
    first = (await api.call("GET", f"{path}?limit=3")).json()
    assert set(first) == {"logs", "instance_id", "machine_id", "next_token"}
    assert first["logs"][1] == {
        "timestamp": "2026-01-31T12:00:01.000000000Z",
        "message": "line 1",
        "level": "error",
        "instance": server["instance_id"],
        "region": "us-east",
    }
    rest = (await api.call("GET", path, params={"limit": 3, "start_time": first["next_token"]})).json()
    assert [line["message"] for line in rest["logs"]] == ["line 3", "line 4"]
    assert rest["next_token"] is None


@pytest.mark.parametrize("start", ["-1h", "-30m", "-45s", "-2d", "2026-01-31T12:00:00Z", "2026-01-31T12:00:00+01:00"])
async def test_log_start_times(api: Api, start: str) -> None:
    server = await api.running()
    answer = await api.call("GET", f"/api/v3/servers/{server['instance_id']}/logs?start_time={start}")
    assert answer.status_code == 200


@pytest.mark.parametrize("start", ["yesterday", "-1y", "t.%%%", "t._w", "9999999999999"])
async def test_bad_log_start_times(api: Api, start: str) -> None:
    server = await api.running()
    answer = await api.call("GET", f"/api/v3/servers/{server['instance_id']}/logs", params={"start_time": start})
    assert answer.status_code == 400


async def test_followed_logs_are_server_sent_events(api: Api) -> None:
    server = await api.running()
    api.regions.lines = lines(3)
    path = f"/api/v3/servers/{server['instance_id']}/logs?follow=true"
    answer = await api.call("GET", path)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    assert [block[0] for block in events] == [": open", "event: log", "event: log", "event: log", "event: end"]
    assert orjson.loads(events[1][2].removeprefix("data: "))["message"] == "line 0"
    resumed = await api.call("GET", path, headers={"last-event-id": events[2][1].removeprefix("id: ")})
    assert resumed.text.count("event: log") == 1
    assert "line 2" in resumed.text


async def test_metrics_are_series_over_a_period(api: Api) -> None:
    server = await api.running()
    path = f"/api/v3/servers/{server['instance_id']}/metrics"
    seen = (await api.call("GET", f"{path}?period=6h&step=15s")).json()
    assert seen["instance_id"] == server["instance_id"]
    assert (seen["period"], seen["step"]) == ("6h", "60s"), "the step is what is kept for such a period"
    assert set(seen["series"]) == set(SERIES)
    assert seen["series"]["cpu_percent"] == [[60, 12.5]]
    assert api.regions.asked_usage == (1, 21_600, 15)
    assert (await api.call("GET", path)).json()["period"] == "1h"
    for query in ("period=2h", "step=1s", "step=15"):
        assert (await api.call("GET", f"{path}?{query}")).status_code == 422
    assert (await api.call("GET", "/api/v3/servers/nobody/metrics")).status_code == 404
    assert (await api.call("GET", path, key=api.project.client_key)).status_code == 403
