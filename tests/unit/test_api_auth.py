"""Who may call what, and what the errors look like."""

import hashlib

import pytest
from sqlmodel import select

from fleet.projects.service import ProjectService, create_project, ensure_default_project
from fleet.store.tables import ApiKey
from tests.unit.api_kit import Api

ANY_ID = "00000000-0000-4000-8000-000000000000"
SERVER_ONLY = [
    ("POST", f"/api/v3/servers/{ANY_ID}/update"),
    ("POST", f"/api/v3/servers/{ANY_ID}/restart"),
    ("DELETE", f"/api/v3/servers/{ANY_ID}"),
    ("GET", f"/api/v3/servers/{ANY_ID}/logs"),
    ("GET", f"/api/v3/servers/{ANY_ID}/events"),
    ("GET", "/api/v3/builds"),
    ("POST", "/api/v3/builds/upload-url"),
    ("GET", f"/api/v3/builds/{ANY_ID}"),
    ("GET", f"/api/v3/builds/{ANY_ID}/logs"),
    ("POST", f"/api/v3/builds/{ANY_ID}/process"),
    ("DELETE", f"/api/v3/builds/{ANY_ID}"),
]


async def test_health_needs_no_key(api: Api) -> None:
    answer = await api.call("GET", "/api/health", key=None)
    assert (answer.status_code, answer.text) == (200, '{"status":"ok"}')


@pytest.mark.parametrize("key", [None, "pf_nobody", "x" * 10_000, "pf_é".encode()])
async def test_unknown_keys_are_refused(api: Api, key: str | bytes | None) -> None:
    headers = {} if key is None else {"api-key": key}
    answer = await api.client.get("/api/v3/servers", headers=headers)
    assert answer.status_code == 401
    assert set(answer.json()) == {"error", "detail", "status"}
    assert answer.json()["status"] == 401


@pytest.mark.parametrize(("method", "path"), SERVER_ONLY)
async def test_client_keys_may_not(api: Api, method: str, path: str) -> None:
    answer = await api.call(method, path, key=api.project.client_key)
    assert answer.status_code == 403
    assert answer.json()["error"] == "Forbidden"


async def test_client_keys_may_list_get_and_start(api: Api) -> None:
    key = api.project.client_key
    started = await api.call("POST", "/api/v3/servers/start", key=key, json=api.start_body)
    assert started.status_code == 201
    path = f"/api/v3/servers/{started.json()['instance_id']}"
    assert (await api.call("GET", path, key=key)).status_code == 200
    assert (await api.call("GET", "/api/v3/servers", key=key)).status_code == 200


async def test_another_projects_rows_do_not_exist(api: Api) -> None:
    server = await api.running()
    path, theirs = f"/api/v3/servers/{server['instance_id']}", api.other.server_key
    for method, suffix in [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/logs"),
        ("GET", "/logs?follow=true"),
        ("GET", "/events"),
        ("POST", "/restart"),
        ("POST", "/update"),
    ]:
        answer = await api.call(method, path + suffix, key=theirs)
        assert answer.status_code == 404, suffix
    listed = await api.call("GET", "/api/v3/servers?include_launching=true", key=theirs)
    assert listed.json()["total"] == 0
    unchanged = await api.call("GET", path)
    assert unchanged.json()["status"] == "running"


async def test_keys_are_long_and_stored_as_hashes_only(api: Api) -> None:
    made = await create_project(api.store, "third")
    assert made.server_key.startswith("pf_")
    assert len(made.server_key) == 3 + 43
    assert made.client_key.startswith("pfclient_")
    async with api.store.read() as session:
        hashes = set((await session.exec(select(ApiKey.hash))).all())
    assert hashlib.sha256(made.server_key.encode()).hexdigest() in hashes
    assert made.server_key not in repr(made)


async def test_rotation_replaces_the_key_of_that_kind_only(api: Api) -> None:
    projects = ProjectService(api.store)
    await projects.authenticate(api.project.server_key)
    new = await projects.rotate(api.project.project_id, "server")
    assert (await projects.authenticate(new)).is_server
    assert not (await projects.authenticate(api.project.client_key)).is_server
    with pytest.raises(Exception, match="unknown"):
        await projects.authenticate(api.project.server_key)


async def test_revoked_keys_are_noticed_elsewhere(api: Api) -> None:
    impatient = ProjectService(api.store, memory_s=0)
    await impatient.authenticate(api.project.server_key)
    await ProjectService(api.store).rotate(api.project.project_id, "server")
    with pytest.raises(Exception, match="unknown"):
        await impatient.authenticate(api.project.server_key)


async def test_what_is_remembered_is_bounded(api: Api) -> None:
    projects = ProjectService(api.store, max_remembered=3)
    for number in range(10):
        with pytest.raises(Exception, match="unknown"):
            await projects.authenticate(f"pf_{number}")
    assert len(projects._known) == 3


async def test_the_default_project_is_made_once(api: Api) -> None:
    assert await ensure_default_project(api.store) is None


async def test_another_replicas_change_of_settings_is_seen_at_the_next_request(api: Api) -> None:
    other = ProjectService(api.store)  # as another replica has it
    before = await other.authenticate(api.project.server_key)
    assert before.settings == {}
    pools = {"enabled": True, "regions": {"us-east": {"small": 1}}}
    answer = await api.call("POST", "/api/v3/projects/settings", json={"pool_config": pools})
    assert answer.status_code == 200
    after = await other.authenticate(api.project.server_key)
    assert after.settings["pool_config"]["enabled"] is True
