"""Idempotency-Key: one effect and one answer, in races, over replicas, after faults and takeovers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from sqlmodel import col, func, select

from fleet.builds.service import BuildService
from fleet.idempotency import service as idempotency
from fleet.pools.spec import pool_spec
from fleet.projects.model import project_ports
from fleet.store.engine import Store
from fleet.store.tables import Build, Idempotency, Project, Server, ServerEvent
from serve_app import idempotency as served
from serve_app.context import AppContext
from serve_app.http import create_app
from tests.unit.api_kit import Api, BookkeepingRegions

SERVERS, BUILDS = "/api/v3/servers", "/api/v3/builds"
START = f"{SERVERS}/start"


def keyed(key: str = "k-1") -> dict[str, str]:
    return {"idempotency-key": key}


async def count(api: Api, model: Any, *where: Any) -> int:
    async with api.store.read() as session:
        return (await session.exec(select(func.count()).select_from(model).where(*where))).one()


@pytest.fixture
async def replicas(api: Api) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Three apps over one database, each with connections of its own."""
    clients, stores = [api.client], []
    for _ in range(2):
        store = Store(api.settings.database)
        regions = BookkeepingRegions(store)
        old: AppContext = api.app.state.context
        builds = BuildService(store, api.settings, api.submitted.append)
        app = create_app(AppContext.make(api.settings, store, old.catalog, builds, regions))
        clients.append(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fleet.test"))
        stores.append(store)
    yield clients
    for client in clients[1:]:
        await client.aclose()
    for store in stores:
        await store.close()


# One effect, one answer -------------------------------------------------------------------------------------------


async def writes(api: Api) -> list[tuple[str, str, dict[str, Any]]]:
    server, other, third = [await api.running() for _ in range(3)]
    build = await api.add_build(name="old")
    image = {"image_url": "registry.example.com/game:1", "name": "image"}
    return [
        ("POST", START, {"json": api.start_body}),
        ("POST", f"{SERVERS}/{server['instance_id']}/update", {"json": {"custom_data": {"round": 2}}}),
        ("POST", f"{SERVERS}/{other['instance_id']}/restart", {"json": {"name": "again"}}),
        ("DELETE", f"{SERVERS}/{third['instance_id']}", {}),
        ("POST", f"{BUILDS}/upload-url", {"params": {"name": "new"}}),
        ("POST", f"{BUILDS}/docker-image", {"json": image}),
        ("DELETE", f"{BUILDS}/{build.build_id}", {}),
        ("POST", "/api/v3/projects/settings", {"json": {"environment_variables": {"A": "b"}}}),
        ("POST", "/v2/servers/start", {"json": api.start_body}),
    ]


async def test_every_write_repeated_is_one_effect_and_one_answer(api: Api) -> None:
    for number, (method, path, said) in enumerate(await writes(api)):
        first = await api.call(method, path, headers=keyed(f"k{number}"), **said)
        assert first.status_code < 300, (path, first.text)
        assert "idempotency-replayed" not in first.headers
        before = await count(api, ServerEvent), await count(api, Build), await count(api, Server)
        again = await api.call(method, path, headers=keyed(f"k{number}"), **said)
        assert (again.status_code, again.content) == (first.status_code, first.content), path
        assert again.headers["idempotency-replayed"] == "true"
        assert again.headers["content-type"] == first.headers["content-type"]
        assert again.headers["x-request-id"] != first.headers["x-request-id"]
        assert (await count(api, ServerEvent), await count(api, Build), await count(api, Server)) == before, path


async def test_refusals_are_answers_too(api: Api) -> None:
    body = {"name": "m", "region": "nowhere"}
    first = await api.call("POST", START, headers=keyed(), json=body)
    again = await api.call("POST", START, headers=keyed(), json=body)
    assert first.status_code == again.status_code == 400
    assert again.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize("what", ["body", "path", "query", "method"])
async def test_the_key_of_another_request_is_refused(api: Api, what: str) -> None:
    await api.call("POST", START, headers=keyed(), json=api.start_body)
    changed: dict[str, tuple[str, str, dict[str, Any]]] = {
        "body": ("POST", START, {"json": {**api.start_body, "name": "other"}}),
        "path": ("POST", f"{SERVERS}/claim", {"json": api.start_body}),
        "query": ("POST", START, {"json": api.start_body, "params": {"wait_for": "running"}}),
        "method": ("DELETE", START, {}),
    }
    method, path, said = changed[what]
    answer = await api.call(method, path, headers=keyed(), **said)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["header", "idempotency-key"]
    assert await count(api, Server) == 1


async def test_keys_of_other_projects_and_kinds_are_others(api: Api) -> None:
    ids = set()
    for key in (api.project.server_key, api.project.client_key, api.other.server_key):
        answer = await api.call("POST", START, key=key, headers=keyed(), json=api.start_body)
        ids.add(answer.json()["instance_id"])
    assert len(ids) == 3


async def test_nobody_gets_an_answer_without_a_key_of_the_project(api: Api) -> None:
    await api.call("POST", START, headers=keyed(), json=api.start_body)
    for key in (None, "pf_unknown"):
        assert (await api.call("POST", START, key=key, headers=keyed(), json=api.start_body)).status_code == 401


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", b"\xff\xfe"])
async def test_malformed_keys_are_refused(api: Api, key: str | bytes) -> None:
    headers = {
        b"idempotency-key": key.encode() if isinstance(key, str) else key,
        b"api-key": api.project.server_key.encode(),
    }
    answer = await api.client.post(START, headers=headers, json=api.start_body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "detail", "status"}


async def test_without_the_header_nothing_is_kept(api: Api) -> None:
    await api.call("POST", START, json=api.start_body)
    await api.call("GET", SERVERS, headers=keyed())
    assert await count(api, Idempotency) == 0


async def test_a_body_over_the_limit_is_413(api: Api) -> None:
    answer = await api.call("POST", START, headers=keyed(), content=b" " * 1_100_000)
    assert answer.status_code == 413
    assert await count(api, Idempotency) == 0


# Administration ---------------------------------------------------------------------------------------------------


async def made_project(api: Api, key: str | None) -> httpx.Response:
    headers = keyed("admin-1") | ({"admin-key": key} if key else {})
    return await api.client.post("/api/admin/v1/projects", headers=headers, json={"name": "three", "plan": "pro"})


async def test_admin_writes_too_and_no_key_is_kept_in_clear(api: Api) -> None:
    key = api.app.state.context.admin_keys.rotate(0)
    before = await count(api, Project)
    first, again = await made_project(api, key), await made_project(api, key)
    assert first.status_code == 201, first.text
    assert first.content == again.content
    assert await count(api, Project) == before + 1
    for stranger in (None, "pfadmin_nobodys"):
        assert (await made_project(api, stranger)).status_code == 401
    async with api.store.read() as session:
        row = (await session.exec(select(Idempotency))).one()
    assert first.json()["server_key"].encode() not in (row.body or b"")


async def test_a_project_made_again_after_a_crash_is_one_and_its_keys_work(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = api.app.state.context.admin_keys.rotate(0)
    before = await count(api, Project)
    with monkeypatch.context() as patch:
        lose_the_answer(patch)
        lost = await made_project(api, key)
    async with api.store.write() as session:
        await session.exec(update(Idempotency).values(lease_until=1))
    made = await made_project(api, key)
    assert (made.status_code, await count(api, Project)) == (201, before + 1)
    assert made.json()["project_id"] == lost.json()["project_id"]
    assert (await api.call("GET", SERVERS, key=made.json()["server_key"])).status_code == 200
    assert (await api.call("GET", SERVERS, key=lost.json()["server_key"])).status_code == 401


# Races ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(10))
async def test_many_at_once_on_three_replicas_are_one_effect(
    api: Api, replicas: list[httpx.AsyncClient], turn: int
) -> None:
    headers = {**keyed(f"race-{turn}"), "api-key": api.project.server_key}
    calls = [replicas[n % 3].post(START, headers=headers, json=api.start_body) for n in range(12)]
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert await count(api, Server) == 1


async def test_the_second_waits_for_the_first_in_another_replica(
    api: Api, replicas: list[httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, may_go = asyncio.Event(), asyncio.Event()
    start = api.regions.start

    async def slow(row: Server) -> Server:
        entered.set()
        await may_go.wait()
        return await start(row)

    monkeypatch.setattr(api.regions, "start", slow)
    headers = {**keyed(), "api-key": api.project.server_key}
    first = asyncio.create_task(replicas[0].post(START, headers=headers, json=api.start_body))
    await entered.wait()
    second = asyncio.create_task(replicas[1].post(START, headers=headers, json=api.start_body))
    assert not (await asyncio.wait({second}, timeout=0.3))[0]
    may_go.set()
    assert (await first).content == (await second).content
    assert await count(api, Server) == 1


async def test_a_client_that_goes_away_finds_its_answer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, may_go = asyncio.Event(), asyncio.Event()
    start = api.regions.start

    async def slow(row: Server) -> Server:
        entered.set()
        await may_go.wait()
        return await start(row)

    monkeypatch.setattr(api.regions, "start", slow)
    first = asyncio.create_task(api.call("POST", START, headers=keyed(), json=api.start_body))
    await entered.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    may_go.set()
    answer = await api.call("POST", START, headers=keyed(), json=api.start_body)
    assert answer.status_code == 201
    assert await count(api, Server) == 1


# Faults and takeovers ---------------------------------------------------------------------------------------------


def lose_the_answer(patch: pytest.MonkeyPatch) -> None:
    async def never(*_args: Any, **_more: Any) -> None:
        return None

    for name in ("finish", "release"):
        patch.setattr(idempotency.IdempotencyService, name, never)


async def crashed_after_effect(api: Api, monkeypatch: pytest.MonkeyPatch, method: str, path: str, **said: Any) -> None:
    """The write has its effect, and then its replica is gone: no answer is kept, and the lease runs out."""
    with monkeypatch.context() as patch:
        lose_the_answer(patch)
        assert (await api.call(method, path, headers=keyed(), **said)).status_code < 300
    async with api.store.write() as session:
        await session.exec(update(Idempotency).values(lease_until=1))


async def test_each_write_carried_out_again_after_a_crash_is_one_effect(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method, path, said in await writes(api):
        async with api.store.write() as session:
            for row in (await session.exec(select(Idempotency))).all():
                await session.delete(row)
        await crashed_after_effect(api, monkeypatch, method, path, **said)
        servers, builds = await count(api, Server), await count(api, Build)
        again = await api.call(method, path, headers=keyed(), **said)
        assert again.status_code < 300, (path, again.text)
        assert (await count(api, Server), await count(api, Build)) == (servers, builds), path
    restarts = await count(api, ServerEvent, col(ServerEvent.type) == "restarted")
    assert restarts == 1


async def test_a_warm_server_is_claimed_once_though_the_pool_is_gone_meanwhile(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = {"enabled": True, "regions": {"us-east": {"small": 1}}}
    await api.call("POST", "/api/v3/projects/settings", json={"pool_config": pools})
    server = await api.running()
    spec = await warm_spec(api)
    await api.regions.change(server["instance_id"], "warm", is_pool_server=True, pool_spec=spec)
    api.regions.warm.append(server["instance_id"])
    await crashed_after_effect(api, monkeypatch, "POST", START, json=api.start_body)
    assert not api.regions.warm, "no warm server was claimed"
    await api.call("POST", "/api/v3/projects/settings", json={"pool_config": {"enabled": False, "regions": {}}})
    again = await api.call("POST", START, headers=keyed(), json=api.start_body)
    assert again.json()["instance_id"] == server["instance_id"]
    assert await count(api, Server) == 1


async def warm_spec(api: Api) -> str:
    build = await BuildService(api.store, api.settings).resolve(api.project.project_id, "default", None)
    return pool_spec(api.project.project_id, "small", build.build_id, {}, project_ports({}))


async def test_faults_are_not_kept_but_what_they_did_counts(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    start = api.regions.start

    async def half(row: Server) -> Server:
        await start(row)
        raise RuntimeError("the answer was lost")

    monkeypatch.setattr(api.regions, "start", half)
    assert (await api.call("POST", START, headers=keyed(), json=api.start_body)).status_code == 500
    monkeypatch.setattr(api.regions, "start", start)
    answer = await api.call("POST", START, headers=keyed(), json=api.start_body)
    assert answer.status_code == 201
    assert await count(api, Server) == 1


async def test_a_write_under_way_is_not_waited_for_for_ever(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "WAIT_S", 0.2)
    await api.call("POST", START, headers=keyed(), json=api.start_body)
    async with api.store.write() as session:
        await session.exec(update(Idempotency).values(status=None, owner="other", lease_until=2**60))
    answer = await api.call("POST", START, headers=keyed(), json=api.start_body)
    assert answer.status_code == 409
    assert "retry-after" in answer.headers


async def test_a_long_write_keeps_its_lease(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "RENEW_S", 0.02)
    renewed = asyncio.Event()
    renew = idempotency.IdempotencyService.renew

    async def seen(*args: Any) -> None:
        await renew(*args)
        renewed.set()

    start = api.regions.start

    async def slow(row: Server) -> Server:
        await renewed.wait()
        return await start(row)

    monkeypatch.setattr(idempotency.IdempotencyService, "renew", seen)
    monkeypatch.setattr(api.regions, "start", slow)
    assert (await api.call("POST", START, headers=keyed(), json=api.start_body)).status_code == 201


# Bounds -----------------------------------------------------------------------------------------------------------


async def test_after_a_day_the_key_is_new(api: Api) -> None:
    first = await api.call("POST", START, headers=keyed(), json=api.start_body)
    async with api.store.write() as session:
        await session.exec(update(Idempotency).values(expires_at=1))
    again = await api.call("POST", START, headers=keyed(), json={**api.start_body, "name": "other"})
    assert again.status_code == 201
    assert again.json()["instance_id"] != first.json()["instance_id"]


async def test_old_rows_are_removed_and_the_number_is_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    service = api.app.state.context.idempotency
    for number in range(7):
        await api.call("POST", f"{SERVERS}/unknown/update", headers=keyed(f"k{number}"), json={})
    async with api.store.write() as session:
        oldest = (await session.exec(select(Idempotency).limit(1))).one()
        oldest.expires_at = 1
        for number, row in enumerate((await session.exec(select(Idempotency))).all()):
            row.created_at = number
    monkeypatch.setattr(idempotency, "MAX_ROWS", 4)
    assert await service.expire() == 3
    assert await count(api, Idempotency) <= 4
