"""The operator's API: projects, plans, keys, and the log of who did what."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlmodel import select

from fleet.projects.admin_keys import AdminKeys
from fleet.store.tables import AdminEvent, ApiKey
from tests.contract.test_project_ending import end
from tests.unit.api_kit import Api

ADMIN = "/api/admin/v1"
SETTINGS = "/api/v3/projects/settings"
POOL = {"enabled": True, "regions": {"us-east": {"small": 2}}}


@pytest.fixture
def key(api: Api) -> str:
    made = AdminKeys(api.settings.home).ensure()
    assert made is not None
    return made


@pytest.fixture(autouse=True)
async def closed(api: Api) -> AsyncIterator[None]:
    yield
    await end(api)  # or it would go on without a database


async def ask(api: Api, key: str | None, method: str, path: str, status: int = 200, **kwargs: Any) -> Any:
    headers = {"admin-key": key} if key else {}
    answer = await api.client.request(method, ADMIN + path, headers=headers, **kwargs)
    assert answer.status_code == status, answer.text
    return answer.json()


async def start(api: Api, key: str) -> httpx.Response:
    return await api.call("POST", "/api/v3/servers/start", key, json=api.start_body)


async def test_only_the_admin_key_opens_it(api: Api, key: str) -> None:
    project = api.project
    for wrong in (None, project.server_key, project.client_key, key[:-1], key + "x", "x" * 10_000):
        refused = await ask(api, wrong, "GET", "/projects", 401)
        assert set(refused) == {"error", "detail", "status"}
    assert (await api.call("GET", f"{ADMIN}/projects")).status_code == 401  # a project's key in its own header
    assert (await ask(api, key, "GET", "/projects"))["total"] == 2
    assert (await api.client.get("/api/v3/servers", headers={"api-key": key})).status_code == 401


async def test_the_admin_key_is_stored_as_a_hash_and_can_be_changed(api: Api, key: str) -> None:
    keys = AdminKeys(api.settings.home)
    assert keys.ensure() is None
    file = api.settings.home / "admin-keys.json"
    assert key not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    second = keys.rotate(3600)
    for both in (key, second):
        await ask(api, both, "GET", "/projects")
    third = keys.rotate(0)
    for old in (key, second):
        await ask(api, old, "GET", "/projects", 401)
    await ask(api, third, "GET", "/projects")


async def test_a_project_is_made_with_keys_that_work_and_are_shown_once(api: Api, key: str) -> None:
    made = await ask(api, key, "POST", "/projects", 201, json={"name": "Studio", "plan": "free"})
    assert (made["name"], made["plan"], made["status"]) == ("Studio", "free", "active")
    assert (await api.call("GET", SETTINGS, made["server_key"])).status_code == 200
    assert (await api.call("GET", SETTINGS, made["client_key"])).status_code == 403
    shown = await ask(api, key, "GET", f"/projects/{made['project_id']}")
    assert {**shown, "server_key": made["server_key"], "client_key": made["client_key"]} == made
    listed = await ask(api, key, "GET", "/projects?limit=2&offset=2")
    assert [one["name"] for one in listed["projects"]] == ["Studio"]
    hints = (await ask(api, key, "GET", f"/projects/{made['project_id']}/keys"))["keys"]
    assert {one["hint"] for one in hints} == {f"pf_…{made['server_key'][-4:]}", f"pfclient_…{made['client_key'][-4:]}"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/projects", {"name": "x", "plan": "golden"}, 400),
        ("POST", "/projects", {"name": " "}, 422),
        ("PATCH", "/projects/{id}", {"plan": "golden"}, 400),
        ("GET", "/projects/unknown", None, 404),
        ("PATCH", "/projects/unknown", {"name": "x"}, 404),
        ("POST", "/projects/unknown/suspend", None, 404),
        ("POST", "/projects/unknown/keys/server/rotate", None, 404),
        ("POST", "/projects/{id}/keys/admin/rotate", None, 422),
        ("GET", "/projects/{id}/export", None, 404),
        ("DELETE", "/projects/unknown", None, 404),
    ],
)
async def test_what_cannot_be_done_changes_nothing(
    api: Api, key: str, method: str, path: str, body: dict[str, Any] | None, status: int
) -> None:
    before = await ask(api, key, "GET", "/projects")
    await ask(api, key, method, path.replace("{id}", api.project.project_id), status, json=body)
    assert await ask(api, key, "GET", "/projects") == before
    assert (await ask(api, key, "GET", "/audit"))["total"] == 0


async def test_a_new_name_and_a_new_plan(api: Api, key: str) -> None:
    await api.call("POST", SETTINGS, json={"pool_config": POOL})
    api.regions.told.clear()
    path = f"/projects/{api.project.project_id}"
    assert (await ask(api, key, "PATCH", path, json={"name": "New name"}))["name"] == "New name"
    assert api.regions.told == []
    moved = await ask(api, key, "PATCH", path, json={"plan": "free"})
    assert (moved["name"], moved["plan"]) == ("New name", "free")
    assert api.regions.told == ["us-east"]  # which empties the pool
    await api.start()
    assert (await start(api, api.project.server_key)).status_code == 409


async def test_a_suspended_project_is_refused_and_its_servers_go_on(api: Api, key: str) -> None:
    await api.call("POST", SETTINGS, json={"pool_config": POOL})
    server = await api.running()
    path = f"/projects/{api.project.project_id}"
    api.regions.told.clear()
    assert (await ask(api, key, "POST", f"{path}/suspend", json={"reason": "unpaid"}))["status"] == "suspended"
    assert api.regions.told == ["us-east"]
    for refused in (
        await start(api, api.project.server_key),
        await start(api, api.project.client_key),
        await api.call("GET", "/api/v3/servers"),
        await api.call("GET", "/api/v2/servers"),
    ):
        assert refused.status_code == 403
        assert refused.json()["error"] == "Project suspended"
    assert (await api.call("GET", "/api/v3/servers", api.other.server_key)).status_code == 200
    assert (await ask(api, key, "POST", f"{path}/resume"))["status"] == "active"
    assert (await api.call("GET", f"/api/v3/servers/{server['instance_id']}")).json()["status"] == "running"


async def test_a_suspension_may_drain(api: Api, key: str) -> None:
    mine = [await api.running() for _ in range(3)]
    theirs = await api.call("POST", "/api/v3/servers/start", api.other.server_key, json=api.start_body)
    path = f"/projects/{api.project.project_id}"
    await ask(api, key, "POST", f"{path}/suspend", json={"drain": True})
    await end(api)
    await ask(api, key, "POST", f"{path}/resume")
    for server in mine:
        assert (await api.call("GET", f"/api/v3/servers/{server['instance_id']}")).json()["status"] == "stopped"
    other = await api.call("GET", f"/api/v3/servers/{theirs.json()['instance_id']}", api.other.server_key)
    assert other.json()["status"] == "launching"


async def test_a_rotated_key_overlaps_as_long_as_asked(api: Api, key: str) -> None:
    path, old = f"/projects/{api.project.project_id}/keys/server/rotate", api.project.server_key
    first = await ask(api, key, "POST", path, json={"overlap_seconds": 3600})
    assert [one["hint"] for one in first["previous"]] == [f"pf_…{old[-4:]}"]
    for working in (old, first["key"], api.project.client_key):
        assert (await api.call("GET", "/api/v3/servers", working)).status_code == 200
    async with api.store.write() as session:  # an hour later
        for row in (await session.exec(select(ApiKey))).all():
            row.expires_at = row.expires_at and 1
    api.app.state.context.projects.forget()
    assert (await api.call("GET", "/api/v3/servers", old)).status_code == 401
    second = await ask(api, key, "POST", path)
    assert second["previous"] == []
    assert (await api.call("GET", "/api/v3/servers", first["key"])).status_code == 401
    assert (await api.call("GET", "/api/v3/servers", second["key"])).status_code == 200


async def test_every_act_is_in_the_audit_log(api: Api, key: str) -> None:
    project = api.project.project_id
    await ask(api, key, "PATCH", f"/projects/{project}", json={"name": "n", "plan": "free"})
    await ask(api, key, "POST", f"/projects/{project}/suspend", json={"reason": "unpaid"})
    await ask(api, key, "POST", f"/projects/{project}/resume")
    await ask(api, key, "POST", f"/projects/{project}/keys/client/rotate")
    made = await ask(api, key, "POST", "/projects", 201, json={"name": "z"})
    await ask(api, key, "DELETE", f"/projects/{made['project_id']}", 202)
    log = await ask(api, key, "GET", "/audit")
    assert [entry["action"] for entry in reversed(log["entries"])] == [
        "project.rename",
        "project.plan",
        "project.suspend",
        "project.resume",
        "project.rotate",
        "project.create",
        "project.delete",
    ]
    assert {entry["actor"] for entry in log["entries"]} == {f"pfadmin_…{key[-4:]}"}
    assert all(entry["request_id"] and entry["at"] for entry in log["entries"])
    assert log["entries"][4]["data"] == {"drain": False, "reason": "unpaid"}
    for secret in (key, made["server_key"], made["client_key"]):
        assert secret not in str(log)
    page = await ask(api, key, "GET", f"/audit?limit=2&project_id={project}")
    rest = await ask(api, key, "GET", f"/audit?project_id={project}&before={page['next_before']}")
    assert (page["total"], len(page["entries"]) + len(rest["entries"])) == (5, 5)
    assert (await ask(api, key, "GET", "/audit?action=project.plan"))["total"] == 1
    async with api.store.read() as session:
        assert len((await session.exec(select(AdminEvent))).all()) == 7
