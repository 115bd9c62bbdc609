"""Builds through the API: the signed upload, what is listed, what is refused."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from fleet.store.tables import Build
from tests.unit.api_kit import Api

PATH = "/api/v3/builds"
FIELDS = {
    "build_id", "name", "version", "status", "created_at", "updated_at", "build_type", "executable_path", "image_url",
    "failure_reason",
}  # fmt: skip


async def ask(api: Api, query: str = "") -> dict[str, str]:
    answer = await api.call("POST", f"{PATH}/upload-url{query}")
    assert answer.status_code == 201, answer.text
    asked: dict[str, str] = answer.json()
    assert set(asked) == {"build_id", "name", "upload_url", "message"}
    return asked


@pytest.mark.parametrize("kind", ["application/zip", "application/octet-stream", None])
async def test_an_upload_needs_no_key_and_takes_any_type(api: Api, kind: str | None) -> None:
    asked = await ask(api, "?name=arena&executable_path=bin/game&writable=true")
    headers = {"content-type": kind} if kind else {}
    answer = await api.call("PUT", asked["upload_url"], key=None, content=b"PK zip bytes", headers=headers)
    assert answer.status_code == 200, answer.text
    assert b'"status":"uploaded"' in answer.content
    assert api.submitted == [asked["build_id"]]
    build = (await api.call("GET", f"{PATH}/{asked['build_id']}")).json()
    assert set(build) == FIELDS
    assert (build["name"], build["version"], build["status"]) == ("arena", 1, "processing")
    assert (build["build_type"], build["executable_path"]) == ("zip", "bin/game")
    log = (await api.call("GET", f"{PATH}/{asked['build_id']}/logs")).json()
    assert "12 bytes" in log["logs"][0]["message"]


async def test_an_upload_may_be_larger_than_other_bodies(api: Api) -> None:
    asked = await ask(api)

    async def zip_bytes() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"z" * 65_536

    answer = await api.call("PUT", asked["upload_url"], key=None, content=zip_bytes())
    assert answer.status_code == 200
    assert (api.settings.artefacts / "uploads" / f"{asked['build_id']}.zip").stat().st_size == 50 * 65_536


@pytest.mark.parametrize("tamper", ["signature", "build", "expires"])
async def test_only_the_signed_link_may_upload(api: Api, tamper: str) -> None:
    asked, other = await ask(api), await ask(api)
    url = asked["upload_url"]
    if tamper == "signature":
        url += "0"
    elif tamper == "build":
        url = url.replace(asked["build_id"], other["build_id"])
    else:
        url = url.replace("expires=", "expires=9")
    answer = await api.call("PUT", url, key=None, content=b"zip")
    assert answer.status_code == 403
    assert api.submitted == []


async def test_a_second_upload_is_a_conflict(api: Api) -> None:
    asked = await ask(api)
    assert (await api.call("PUT", asked["upload_url"], key=None, content=b"zip")).status_code == 200
    assert (await api.call("PUT", asked["upload_url"], key=None, content=b"other")).status_code == 409


async def test_processing_again_changes_nothing(api: Api) -> None:
    asked = await ask(api)
    path = f"{PATH}/{asked['build_id']}/process"
    assert (await api.call("POST", path)).status_code == 409
    await api.call("PUT", asked["upload_url"], key=None, content=b"zip")
    for _ in range(2):
        answer = await api.call("POST", f"{path}?name=default")
        assert (answer.status_code, answer.json()["status"]) == (200, "accepted")
    assert api.submitted == [asked["build_id"]]
    assert (await api.call("POST", f"{path}?name=other")).status_code == 400


async def test_a_read_may_wait_until_a_build_is_ready(api: Api) -> None:
    asked = await ask(api)
    path = f"{PATH}/{asked['build_id']}?wait_for=ready"
    assert (await api.call("GET", f"{path}&timeout=0.1")).json()["status"] == "uploading"
    waiting = asyncio.create_task(api.call("GET", f"{path}&timeout=60"))
    await asyncio.sleep(0)
    async with api.store.write() as session:
        build = await session.get(Build, asked["build_id"])
        assert build is not None
        build.status = "ready"
    answer = await asyncio.wait_for(waiting, 10)
    assert answer.json()["status"] == "ready"
    assert (await api.call("GET", f"{path}&timeout=121")).status_code == 422


async def test_images_need_a_tag(api: Api) -> None:
    body = {"image_url": "registry.example.com/game:1.4", "name": "image"}
    answer = await api.call("POST", f"{PATH}/docker-image", json=body)
    assert (answer.status_code, answer.json()["status"]) == (200, "accepted")
    untagged = await api.call("POST", f"{PATH}/docker-image", json={**body, "image_url": "game"})
    assert untagged.status_code == 400
    half = {**body, "registry_credentials": {"username": "me"}}
    assert (await api.call("POST", f"{PATH}/docker-image", json=half)).status_code == 422


async def test_versions_count_per_name_and_lists_page(api: Api) -> None:
    for name in ("a", "a", "b"):
        await ask(api, f"?name={name}")
    page = (await api.call("GET", f"{PATH}?name=a&limit=1")).json()
    assert set(page) == {"builds", "total", "limit", "offset", "has_more"}
    assert (page["total"], page["has_more"], page["builds"][0]["version"]) == (2, True, 2)
    assert (await api.call("GET", PATH)).json()["total"] == 4


async def test_a_deleted_build_starts_nothing(api: Api) -> None:
    build_id = (await api.call("GET", PATH)).json()["builds"][0]["build_id"]
    answer = await api.call("DELETE", f"{PATH}/{build_id}")
    assert answer.json() == {"status": "success", "message": "Build deleted successfully"}
    assert (await api.call("DELETE", f"{PATH}/{build_id}")).status_code == 404
    started = await api.call("POST", "/api/v3/servers/start", json=api.start_body)
    assert (started.status_code, started.json()["error"]) == (404, "No ready build")


async def test_another_projects_builds_do_not_exist(api: Api) -> None:
    asked = await ask(api)
    path, theirs = f"{PATH}/{asked['build_id']}", api.other.server_key
    for method, suffix in [("GET", ""), ("GET", "/logs"), ("POST", "/process"), ("DELETE", "")]:
        assert (await api.call(method, path + suffix, key=theirs)).status_code == 404
    assert (await api.call("GET", path)).json()["status"] == "uploading"
