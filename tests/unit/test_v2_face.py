"""What every v2 answer holds, and the quirks that old clients rely on."""

import json

import pytest

from serve_app.v2.face import is_legacy, legacy_error, successor
from serve_app.v2.storage import named_builds
from tests.unit.api_kit import Api

ID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("/health", "/api/health"),
        ("/api/v2/servers", "/api/v3/servers"),
        ("/api/v2/servers/", "/api/v3/servers"),
        ("/api/v2/servers/start", "/api/v3/servers/start"),
        (f"/api/v2/servers/{ID}/update", f"/api/v3/servers/{ID}/update"),
        ('/api/v2/servers/"> x\r\n', "/api/v3/servers/%22%3E%20x%0D%0A"),
        ("/api/v2/builds/builds", "/api/v3/builds"),
        ("/api/v2/builds/builds/upload", "/api/v3/builds/upload-url"),
        ("/api/v2/builds/builds/upload-url", "/api/v3/builds/upload-url"),
        (f"/api/v2/builds/builds/{ID}", f"/api/v3/builds/{ID}"),
        ("/api/v2/builds/builds/my game&x", "/api/v3/builds?name=my%20game%26x"),
        ("/api/v2/project", "/api/v3/projects/settings"),
        ("/api/v2/storage/hook", "/api/v3/builds"),
        ("/api/v2/serversx", "/api/doc"),
        ("/api/v2", "/api/doc"),
    ],
)
def test_every_path_names_its_successor(path: str, there: str) -> None:
    assert successor(path) == there


def test_only_v2_paths_have_the_face() -> None:
    assert all(is_legacy(path) for path in ("/v2", "/v2/", "/v2/x", "/api/v2/x", "/health", "/health/"))
    assert not any(is_legacy(path) for path in ("/v22", "/api/v3/servers", "/api/health", "/api/v20/x", "/healthy"))


def test_an_error_has_its_text_as_message_and_a_422_is_fastapis() -> None:
    body = {"error": "Not found", "detail": "There is none.", "status": 404}
    assert legacy_error(body) == {**body, "message": "Not found: There is none."}
    issues = [{"loc": ["body"], "msg": "no", "type": "missing"}]
    assert legacy_error({"error": "Validation error", "detail": issues, "status": 422}) == {"detail": issues}


async def test_both_prefixes_and_a_slash_at_the_end_are_the_same(api: Api) -> None:
    known = {"/servers": 200, "/builds/builds": 200, "/project": 200, f"/servers/{ID}": 404, "/nowhere": 404}
    for path, status in known.items():
        for spelling in (f"/v2{path}", f"/v2{path}/", f"/api/v2{path}", f"/api/v2{path}/"):
            answer = await api.call("GET", spelling)
            assert (spelling, answer.status_code) == (spelling, status)
            assert answer.headers["deprecation"] == "@1767225600"
            assert answer.headers["link"] == f'<{successor("/api/v2" + path)}>; rel="successor-version"'


async def test_faults_and_missing_keys_have_the_face_too(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_args: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(api.app.state.context.servers, "page", broken, raising=False)
    answers = [await api.call("GET", "/v2/servers/"), await api.call("GET", "/v2/servers/", key=None)]
    assert [answer.status_code for answer in answers] == [500, 401]
    for answer in answers:
        assert set(answer.json()) == {"error", "detail", "status", "message"}
        assert answer.headers["deprecation"].startswith("@")
        assert int(answer.headers["content-length"]) == len(answer.content)


async def test_the_answers_of_v3_are_untouched(api: Api) -> None:
    answer = await api.call("GET", "/api/v3/servers/none")
    assert set(answer.json()) == {"error", "detail", "status"}
    assert "deprecation" not in answer.headers


async def test_bad_input_is_told_as_fastapi_tells_it(api: Api) -> None:
    good = {"name": "x", "region": "us-east"}
    for body, loc, kind in (
        ({"name": "x"}, ["body", "region"], "missing"),
        ({**good, "ttl": 59}, ["body", "ttl"], "greater_than_equal"),
        ({**good, "version": "new"}, ["body", "version"], "int_parsing"),
        ({**good, "startup_args": "a\0"}, ["body", "startup_args"], "custom"),
    ):
        answer = await api.call("POST", "/v2/servers/start", json=body)
        assert answer.status_code == 422
        assert set(answer.json()) == {"detail"}
        issue = answer.json()["detail"][0]
        assert (issue["loc"], issue["type"]) == (loc, kind)


async def test_a_body_that_is_no_json_is_a_422(api: Api) -> None:
    answer = await api.call("POST", "/v2/servers/start", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["type"] == "json_invalid"


async def test_numbers_may_come_as_strings_and_nothing_as_an_empty_one(api: Api) -> None:
    await api.add_build(version=2)
    sent = {"name": "x", "region": "us-east", "version": "1", "ttl": "600", "auto_restart": None}
    pinned = await api.call("POST", "/v2/servers/start", json=sent)
    assert pinned.status_code == 201
    assert pinned.json()["version"] == 1
    empty = {"name": "x", "region": "us-east", "version": "", "version_tag": "", "ttl": "", "compute_size": ""}
    newest = await api.call("POST", "/v2/servers/start", json=empty)
    assert newest.status_code == 201
    assert (newest.json()["version"], newest.json()["version_tag"]) == (2, "default")
    server = (await api.call("GET", f"/api/v3/servers/{pinned.json()['instance_id']}")).json()
    assert (server["ttl"], server["auto_restart"]) == (600, False)


async def test_what_there_is_not_is_left_out_where_null_would_break_readers(api: Api) -> None:
    server = await api.start()
    view = (await api.call("GET", f"/v2/servers/{server['instance_id']}")).json()
    assert not {"startup_args", "ttl", "started_at", "created_at", "match_id"} & set(view)
    assert view["custom_data"] is None
    full = await api.running(startup_args="-x", ttl=600)
    view = (await api.call("GET", f"/v2/servers/{full['instance_id']}")).json()
    assert (view["startup_args"], view["ttl"]) == ("-x", 600)
    assert view["started_at"]


async def test_a_list_has_no_pages(api: Api) -> None:
    for _ in range(60):
        await api.start()
    answer = (await api.call("GET", "/v2/servers/?include_launching=true")).json()
    assert (answer["total_servers"], len(answer["servers"])) == (60, 60)
    assert (await api.call("GET", "/v2/servers/")).json() == {"total_servers": 0, "servers": []}


async def test_a_game_reports_its_status(api: Api) -> None:
    server = await api.start()
    path = f"/v2/servers/{server['instance_id']}/update"
    assert (await api.call("PUT", path, headers={"X-Server-Status": "launching"})).json()["status"] == "launching"
    assert (await api.call("PUT", path)).status_code == 422
    assert (await api.call("PUT", path, headers={"x-server-status": "busy"})).status_code == 422
    assert (await api.call("PUT", path, headers={"X-Server-Status": "running"})).json()["status"] == "running"
    stopped = await api.call("PUT", path, headers={"X-Server-Status": "stopped"})
    assert (stopped.status_code, stopped.json()["status"]) == (200, "stopped")


async def test_a_restart_keeps_what_is_not_given(api: Api) -> None:
    server = await api.running(custom_data={"map": "a"}, ttl=600)
    path = f"/v2/servers/{server['instance_id']}/restart"
    assert (await api.call("POST", path)).json()["status"] == "launching"
    again = (await api.call("POST", path, json={"custom_data": {"map": "b"}, "version": "", "ttl": None})).json()
    assert (again["custom_data"], again["ttl"], again["instance_id"]) == ({"map": "b"}, 600, server["instance_id"])


async def test_a_client_key_reads_and_starts_servers_only(api: Api) -> None:
    server, client = f"/v2/servers/{(await api.start())['instance_id']}", api.project.client_key
    assert (await api.call("GET", server, key=client)).status_code == 200
    for method, path in (("DELETE", server), ("POST", f"{server}/restart"), ("GET", "/v2/builds/builds/default")):
        answer = await api.call(method, path, key=client)
        assert (path, answer.status_code) == (path, 403)


async def test_v2_has_its_own_description_and_v3_does_not_name_it(api: Api) -> None:
    old = (await api.call("GET", "/v2/doc", key=None)).json()
    new = (await api.call("GET", "/api/doc", key=None)).json()
    assert len(old["paths"]) == 23
    assert not set(old["paths"]) & set(new["paths"])
    assert "/api/v2" not in json.dumps(new)
    assert "/api/v2/doc" in (await api.call("GET", "/api/reference?v2", key=None)).text


@pytest.mark.parametrize(
    ("message", "builds"),
    [
        ({"build_id": "b-1"}, ["b-1"]),
        ({"EventName": "s3:ObjectCreated:Put", "Key": "bucket/uploads/b-1.zip"}, ["b-1"]),
        ({"Records": [{"s3": {"object": {"key": "uploads%2Fb-1.zip", "size": 3}}}]}, ["b-1"]),
        ({"object": {"key": "b-1.zip"}, "bucket": "x"}, ["b-1"]),
        ({"type": "INSERT", "record": {"name": "p/b-1.zip"}}, ["b-1"]),
        (None, []),
        ([1, "b-1", {"key": 3, "name": ""}], []),
    ],
)
def test_the_stores_messages_are_understood(message: object, builds: list[str]) -> None:
    assert named_builds(message) == builds
