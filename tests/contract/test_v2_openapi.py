"""Every operation of the two published v2 descriptions, driven, and every answer held against both of them.

The boiled-down copies beside this file are what is checked; where the published files are at hand, those too.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from tests import games
from tests.contract.playflow_v2 import describe
from tests.contract.playflow_v2.describe import Description
from tests.unit.api_kit import Api, open_api

SECRET = "store-and-fleet-know-this"
ERROR = {
    "type": "object",
    "required": ["error", "detail", "status", "message"],
    "properties": {
        "error": {"type": "string"},
        "detail": {"type": "string"},
        "status": {"type": "integer"},
        "message": {"type": "string"},
    },
    "additionalProperties": False,
}
# Called with an id by the one file, with a name by the other.
SAME_PATH = {"{build_id}": "{build}", "{name}": "{build}"}


@dataclass
class Client:
    """Calls operations of the files, and checks whatever comes back."""

    api: Api
    files: list[Description]
    prefix: str
    driven: set[str] = field(default_factory=set[str])

    async def call(self, operation: str, status: int, **kwargs: Any) -> Any:
        """Call "METHOD /v2/path" with `parts` for its placeholders; the body, which fits the files that know it."""
        method, template = operation.split(" ")
        path = template.format(**kwargs.pop("parts", {}))
        if path.startswith("/v2"):
            path = self.prefix + path.removeprefix("/v2")
        answer = await self.api.call(method, path, **kwargs)
        assert answer.status_code == status, f"{operation}: {answer.status_code} {answer.text}"
        self.check(operation, answer)
        return answer.json()

    def check(self, operation: str, answer: httpx.Response) -> None:
        assert answer.headers["deprecation"].startswith("@")
        assert 'rel="successor-version"' in answer.headers["link"]
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        for file in self.files:
            known = next((op for op in file.operations if _common(op) == operation), None)
            if known and file.says(known, answer.status_code):
                file.check_answer(known, answer.status_code, body)
                self.driven.add(f"{file.name}: {known} {answer.status_code}")
            else:
                assert answer.status_code >= 400 or known is None, (
                    f"{file.name}: no {answer.status_code} of {operation}"
                )
        if answer.status_code >= 400 and answer.status_code != 422:
            Draft202012Validator(ERROR).validate(body)
            assert body["status"] == answer.status_code


def _common(operation: str) -> str:
    for old, new in SAME_PATH.items():
        operation = operation.replace(old, new)
    return operation


def _files() -> list[Description]:
    found = [describe.boiled_down(name) for name in describe.NAMES]
    folder = describe.originals()
    for name in describe.NAMES if folder else ():
        document = json.loads((folder / f"{name}.json").read_text())
        assert describe.boil_down(document) == describe.read(name), "run tests.contract.playflow_v2.describe again"
        found.append(describe.original(name, document))
    return found


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    opened = await open_api(tmp_path)
    opened.app.state.context.settings.storage_hook_secret = SECRET
    yield opened
    await opened.close()


@pytest.mark.parametrize("prefix", ["/v2", "/api/v2"])
async def test_every_operation_answers_as_both_files_say(api: Api, prefix: str) -> None:
    client = Client(api, _files(), prefix)
    await drive_servers(client)
    await drive_builds(client)
    await drive_uploads(client)
    await drive_the_rest(client)
    answers = {
        f"{file.name}: {operation} {status}"
        for file in client.files
        for operation, said in file.operations.items()
        for status in said["answers"]
    }
    # A body-less operation without bounded parameters has nothing that could be invalid.
    never = {answer for answer in answers - client.driven if answer.endswith(" 422")}
    assert answers - client.driven == never
    assert {answer.split(": ")[1] for answer in never} == CANNOT_BE_INVALID
    assert len(client.driven) >= 30


CANNOT_BE_INVALID = {
    "DELETE /v2/servers/{instance_id} 422",
    "GET /v2/servers/{instance_id} 422",
    "GET /v2/builds/builds/{name} 422",
    "DELETE /v2/builds/builds/{name} 422",
    "GET /v2/builds/builds/{build_id} 422",
    "DELETE /v2/builds/builds/{build_id} 422",
}


async def drive_servers(client: Client) -> None:
    start, one = "POST /v2/servers/start", "/v2/servers/{instance_id}"
    body: dict[str, Any] = {"name": "arena", "region": "us-east"}
    plain = await client.call(start, 201, json=body)
    whole = body | {
        "startup_args": "-x",
        "compute_size": "medium",
        "version_tag": "default",
        "version": 1,
        "ttl": 600,
        "auto_restart": True,
        "custom_data": {"map": {"name": "dust"}},
    }
    full = await client.call(start, 201, json=whole)
    nothing = dict.fromkeys(("startup_args", "version_tag", "version", "ttl", "auto_restart", "custom_data"))
    await client.call(start, 201, json=body | nothing)
    await client.call(start, 422, json={"name": "arena"})
    await client.call(start, 400, json=body | {"compute_size": "huge"})
    await client.call(start, 404, json=body | {"version_tag": "unheard-of"})
    await client.call(start, 401, json=body, key="pf_of_nobody")
    await client.call(start, 413, json=body | {"custom_data": {"x": "y" * 300_000}})

    for include in ("true", "false", "1", "True"):
        await client.call("GET /v2/servers/", 200, params={"include_launching": include})
    await client.call("GET /v2/servers/", 422, params={"include_launching": "perhaps"})
    await client.call("GET /v2/servers/", 401, key=None)

    for server in (plain, full):
        await client.call(f"GET {one}", 200, parts=server)
    await client.call(f"GET {one}", 404, parts={"instance_id": "none"})
    update = f"PUT {one}/update"
    await client.api.regions.change(full["instance_id"], "running", status="running", started_at=1_764_000_000_000)
    await client.call(update, 200, parts=full, headers={"X-Server-Status": "running"})
    await client.call(update, 422, parts=full)
    await client.call(update, 404, parts={"instance_id": "none"}, headers={"X-Server-Status": "running"})
    await client.call(
        update, 403, parts=full, headers={"X-Server-Status": "running"}, key=client.api.project.client_key
    )
    await client.call(update, 200, parts=full, headers={"X-Server-Status": "stopped"})
    stopped = await client.call(f"GET {one}", 200, parts=full)
    assert stopped["status"] == "stopped"
    restart = f"POST {one}/restart"
    await client.call(restart, 200, parts=plain)
    await client.call(restart, 200, parts=plain, json={"name": "again", "ttl": "120", "version": "1"})
    await client.call(restart, 422, parts=plain, json={"ttl": "soon"})
    await client.call(restart, 409, parts=full)
    for status, server in ((200, plain), (200, plain), (404, {"instance_id": "none"})):
        await client.call(f"DELETE {one}", status, parts=server)


async def drive_builds(client: Client) -> None:
    one = "/v2/builds/builds/{build}"
    for params in ({}, {"name": "default"}, {"name": "none"}):
        await client.call("GET /v2/builds/builds", 200, params=params)
    await client.call("GET /v2/builds/builds", 422, params={"name": "n" * 200})
    await client.call("GET /v2/builds/builds", 403, key=client.api.project.client_key)
    for status in ("uploading", "processing", "ready", "failed"):
        made = await client.api.add_build(name=f"was {status}", status=status)
        for which in (made.build_id, made.name):
            found = await client.call(f"GET {one}", 200, parts={"build": which})
            assert found["build"]["build_id"] == made.build_id
    assert (await client.call(f"GET {one}", 200, parts={"build": "none"}))["found"] is False
    second = await client.api.add_build(name="was ready", version=2)
    assert (await client.call(f"GET {one}", 200, parts={"build": "was ready"}))["build"]["version"] == 2
    await client.call(f"DELETE {one}", 200, parts={"build": second.build_id})
    left = await client.call("GET /v2/builds/builds", 200, params={"name": "was ready"})
    assert [build["version"] for build in left["builds"]] == [1]
    await client.call(f"DELETE {one}", 200, parts={"build": "was ready"})
    await client.call(f"DELETE {one}", 404, parts={"build": "was ready"})
    assert (await client.call(f"GET {one}", 200, parts={"build": "was ready"}))["found"] is False
    other = await client.api.add_build(name="theirs", project_id=client.api.other.project_id)
    await client.call(f"DELETE {one}", 404, parts={"build": other.build_id})


async def drive_uploads(client: Client) -> None:
    link, upload = "POST /v2/builds/builds/upload-url", "POST /v2/builds/builds/upload"
    given = await client.call(link, 200)
    assert given["name"] == "default"
    given = await client.call(link, 200, params={"name": "by link"})
    await client.call(link, 422, params={"name": "n" * 200})
    await client.call(link, 401, key=None)
    headers = {"content-type": "application/octet-stream"}
    put = await client.api.client.put(given["upload_url"], content=games.demo_zip(), headers=headers)
    assert put.status_code == 200

    file = {"file": ("server.zip", games.demo_zip(), "application/zip")}
    sent = await client.call(upload, 202, params={"name": "by form"}, files=file)
    assert sent["file_size"] == len(games.demo_zip())
    assert (await client.call(upload, 202, files=file, data={"comment": "first"}))["name"] == "default"
    await client.call(upload, 422, files={"archive": b"PK"})
    await client.call(upload, 422, json={"file": "PK"})
    await client.call(upload, 400, files={"file": ("empty.zip", b"", "application/zip")})
    await client.call(upload, 400, content=b"no boundary", headers={"content-type": "multipart/form-data; boundary=x"})
    await client.call(upload, 403, files=file, key=client.api.project.client_key)
    assert {given["build_id"], sent["build_id"]} <= set(client.api.submitted)
    settings = client.api.app.state.context.settings
    settings.upload.max_packed_mb, before = 0, settings.upload.max_packed_mb
    await client.call(upload, 413, files=file)
    settings.upload.max_packed_mb = before


async def drive_the_rest(client: Client) -> None:
    hook = "POST /v2/storage/hook"
    link = await client.call("POST /v2/builds/builds/upload-url", 200)
    build_id = link["build_id"]
    message = {"Records": [{"s3": {"object": {"key": f"uploads/{build_id}.zip"}}}]}
    headers = {"authorization": f"Bearer {SECRET}"}
    await client.call(hook, 401, key=None, json=message)
    await client.call(hook, 401, key=None, json=message, headers={"authorization": "Bearer guess"})
    await client.call(hook, 422, key=None, headers={"authorization": "x" * 2000})
    nothing_yet = await client.call(hook, 200, key=None, json=message, headers=headers)
    assert nothing_yet["accepted"] == []
    uploads = client.api.settings.artefacts / "uploads"
    uploads.mkdir(parents=True, exist_ok=True)
    (uploads / f"{build_id}.zip").write_bytes(games.demo_zip())
    assert (await client.call(hook, 200, key=None, json=message, headers=headers))["accepted"] == [build_id]
    assert (await client.call(hook, 200, key=None, json=message, headers=headers))["accepted"] == []
    assert client.api.submitted.count(build_id) == 1
    await client.call(hook, 200, key=None, headers={"authorization": SECRET})
    client.api.app.state.context.settings.storage_hook_secret = None
    await client.call(hook, 403, key=None, headers=headers)

    project = await client.call("GET /v2/project", 200)
    assert project == {"project_id": client.api.project.project_id}
    await client.call("GET /v2/project", 403, key=client.api.project.client_key)
    await client.call("GET /health", 200, key=None)
    client.api.app.state.context.settings.storage_hook_secret = SECRET
