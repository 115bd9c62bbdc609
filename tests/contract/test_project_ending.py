"""A project that is deleted: what is kept for the operator, what goes, and that nothing is half done for ever."""

import io
import json
import zipfile
from contextlib import suppress
from typing import Any

import pytest
from sqlmodel import SQLModel, select

from fleet.events.journal import project_event
from fleet.projects import ending
from fleet.projects.admin_keys import AdminKeys
from fleet.projects.admin_service import Admin, AdminService, status_of
from fleet.projects.ending import ProjectEnding
from fleet.projects.export import TABLES
from fleet.projects.scope import owned
from fleet.store.lobby_tables import Lobby, Match, PlayerRating
from fleet.store.tables import (
    Build,
    BuildLog,
    Idempotency,
    MatchStart,
    Project,
    Server,
    ServerEvent,
    UsageHour,
    Webhook,
)
from fleet.times import now_ms
from tests.unit.api_kit import Api

ADMIN = Admin("test")
KEPT = {"AdminEvent", "UsageHour"}  # the log of who did what, and what was used


def service(api: Api) -> AdminService:
    return api.app.state.context.admin


async def end(api: Api) -> None:
    """What is to be done is done, by whoever began it."""
    ending: ProjectEnding = api.app.state.context.ending
    await ending.tasks.settled()
    await ending.look()


async def fill(api: Api) -> None:
    """Something of every kind, for both projects."""
    for project in (api.project, api.other):
        key, owner = project.server_key, project.project_id
        for name in ("a", "b"):
            sent = {"json": {**api.start_body, "name": name}, "headers": {"idempotency-key": name}}
            await api.call("POST", "/api/v3/servers/start", key, **sent)
        await api.call(
            "POST", "/api/v3/projects/settings", key, json={"environment_variables": {"PASSWORD": "hunter2"}}
        )
        async with api.store.write() as session:
            build = (await session.exec(owned(Build, owner))).one()
            session.add(BuildLog(build_id=build.build_id, at=1, level="info", message="unpacked"))
            build.registry_credentials = "sealed-login"
            session.add(MatchStart(project_id=owner, match_id="m", instance_id="i", region="us-east", created_at=1))
            hook = {"id": f"hook-{owner}", "url": "https://x.example", "secret": "hook-secret"}
            session.add(Webhook(**hook, project_id=owner, created_at=1, updated_at=1))
            used = {"hour": 0, "region": "us-east", "compute_size": "small", "kind": "used", "ms": 1}
            session.add(UsageHour(project_id=owner, **used))
            at = {"created_at": 1, "updated_at": 1}
            here = {"project_id": owner, "shard": 0, "config": "duels", "status": "waiting", **at}
            of = {"code": "c", "name": "l", "region": "us-east", "host": "ann", "max_players": 2, "current_players": 1}
            session.add(Lobby(id=f"lobby-{owner}", **here, **of))
            session.add(Match(match_id=f"match-{owner}", mode="duel", **here))
            rating = {"config": "duels", "mode": "duel", "player_id": "ann", "mu": 25.0, "sigma": 8.3, "updated_at": 1}
            session.add(PlayerRating(project_id=owner, **rating))
            session.add_all(project_event(owner, "lobby", str(n), "lobby.created") for n in range(30))


async def counts(api: Api, project_id: str) -> dict[str, int]:
    found: dict[str, int] = {}
    async with api.store.read() as session:
        for table in TABLES:
            found[table.__name__] = len((await session.exec(owned(table, project_id))).all())
        builds = (await session.exec(owned(Build, project_id))).all()
        logs = (await session.exec(select(BuildLog))).all()
        repeatable = (await session.exec(select(Idempotency.scope))).all()
        found["Idempotency"] = sum(scope.startswith(project_id) for scope in repeatable)
        found["BuildLog"] = sum(log.build_id in {build.build_id for build in builds} for log in logs)
    return found


def lines(archive: zipfile.ZipFile, table: type[SQLModel] | str) -> list[dict[str, Any]]:
    name = table if isinstance(table, str) else table.__name__.lower()
    return [json.loads(line) for line in archive.read(f"{name}.jsonl").splitlines()]


async def test_its_servers_stop_its_data_is_kept_for_the_operator_and_then_gone(api: Api) -> None:
    await fill(api)
    before, others = await counts(api, api.project.project_id), await counts(api, api.other.project_id)
    assert before["Idempotency"] == 2
    project = await service(api).delete(ADMIN, api.project.project_id, grace_s=0)
    assert status_of(project) == "deleting"
    refused = await api.call("GET", "/api/v3/servers")
    assert (refused.status_code, refused.json()["error"]) in {(403, "Project suspended"), (401, "Invalid API key")}
    await end(api)
    assert (await api.call("GET", "/api/v3/servers")).status_code == 401
    assert status_of(await service(api).get(api.project.project_id)) == "deleted"
    left = await counts(api, api.project.project_id)
    assert {name for name, number in left.items() if number} <= KEPT
    now = await counts(api, api.other.project_id)
    assert now == others

    key = AdminKeys(api.settings.home).ensure() or ""
    path = f"/api/admin/v1/projects/{api.project.project_id}/export"
    answer = await api.client.get(path, headers={"admin-key": key})
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert {row["status"] for row in lines(archive, Server)} == {"stopped"}
        assert len(lines(archive, ServerEvent)) == before["ServerEvent"] + 2  # and the two stops
        assert len(lines(archive, "projectevent")) > 30
        assert lines(archive, "buildlog")[0]["message"] == "unpacked"
        assert json.loads(archive.read("project.json"))["name"] == "one"
        everything = b"".join(archive.read(name) for name in archive.namelist())
    for secret in (b"hook-secret", b"sealed-login", api.other.project_id.encode(), api.project.server_key.encode()):
        assert secret not in everything
    # It is there once more, for the operator only, and with no keys to anything.
    listed, total = await service(api).page(10, 0)
    assert (total, [one.id for one in listed]) == (1, [api.other.project_id])
    assert (await service(api).page(10, 0, deleted=True))[1] == 2


async def test_a_grace_is_waited_for_unless_it_is_taken_back(api: Api) -> None:
    server = await api.running()
    await service(api).delete(ADMIN, api.project.project_id, grace_s=3600)
    await end(api)
    async with api.store.read() as session:
        row = (await session.exec(owned(Server, api.project.project_id))).one()
    assert (row.instance_id, row.status) == (server["instance_id"], "running")
    await service(api).delete(ADMIN, api.project.project_id, grace_s=0)
    await end(api)
    assert status_of(await service(api).get(api.project.project_id)) == "deleted"


@pytest.mark.parametrize("point", ["ending.stopped", "ending.exported", "ending.deleting"])
async def test_whoever_comes_after_a_crash_ends_it(api: Api, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    await fill(api)
    before = await counts(api, api.project.project_id)
    passed = 0

    def crash(name: str) -> None:
        nonlocal passed
        passed += name == point
        if name == point and passed in (1, 5):
            raise RuntimeError("died")

    monkeypatch.setattr(ending, "crash_point", crash)
    await service(api).delete(ADMIN, api.project.project_id, grace_s=0)
    for _ in range(4):
        with suppress(RuntimeError):
            await end(api)
    left = await counts(api, api.project.project_id)
    assert {name for name, number in left.items() if number} <= KEPT
    with zipfile.ZipFile(api.app.state.context.ending.export_of(api.project.project_id)) as archive:
        for table in TABLES:
            assert len(lines(archive, table)) >= before[table.__name__], table


async def test_a_server_that_was_on_its_way_is_found_and_stopped(api: Api) -> None:
    await service(api).delete(ADMIN, api.project.project_id, grace_s=0)
    await end(api)
    now = now_ms()
    times = {"created_at": now, "updated_at": now, "launched_at": now, "step_at": now}
    row: dict[str, Any] = {
        "instance_id": "late",
        "build_id": "b",
        "version_tag": "v",
        "name": "late",
        "region": "us-east",
        "status": "launching",
        "step": "queued",
        "compute_size": "small",
    }
    async with api.store.write() as session:
        session.add(Server(project_id=api.project.project_id, **row, **times))
    await end(api)
    async with api.store.read() as session:
        assert (await session.exec(owned(Server, api.project.project_id))).all() == []
        project = (await session.exec(select(Project).where(Project.id == api.project.project_id))).one()
    assert status_of(project) == "deleted"
    assert api.regions.told == []


async def test_a_deletion_asked_for_during_a_drain_is_not_lost(api: Api) -> None:
    await api.running()
    project = api.project.project_id
    await service(api).suspend(ADMIN, project, drain=True, reason=None)
    await service(api).delete(ADMIN, project, grace_s=0)
    await end(api)
    assert status_of(await service(api).get(project)) == "deleted"
