"""The client has every operation of the API's document: a new one fails here until it has a method."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from fleet.client import ApiError, AsyncAdminClient
from fleet.projects.admin_keys import AdminKeys
from serve_app.http import document
from tests.unit.api_kit import Api
from tests.unit.client_kit import BadLine, client_of

# Not for programs: the signed URL is used by `upload`, processing begins by itself, Prometheus reads /metrics.
WITHOUT = {("POST", "/api/v3/builds/{build_id}/process"), ("GET", "/metrics")}


async def test_every_operation_can_be_called(api: Api, tmp_path: Path) -> None:
    line = BadLine(httpx.ASGITransport(api.app))
    api.settings.events.max_stream_s = 0.05
    await _use_a_projects_client(api, line, tmp_path)
    await _use_the_operators_client(api, line, tmp_path)
    called = {(request.method, request.url.path) for request in line.seen}
    paths = document()["paths"]
    wanted = {(method.upper(), path) for path, methods in paths.items() for method in methods} - WITHOUT
    assert {operation for operation in wanted if not _is_among(operation, called)} == set()


def _is_among(operation: tuple[str, str], called: set[tuple[str, str]]) -> bool:
    method, path = operation
    pattern = re.compile(re.sub(r"\{\w+(:path)?\}", "[^/]+", path))
    return any(one == method and pattern.fullmatch(other) for one, other in called)


async def _ends(*calls: Any) -> None:
    """Each was asked; what the books of this test refuse is of no interest here."""
    for call in calls:
        with suppress(ApiError):
            await call


async def _use_a_projects_client(api: Api, line: BadLine, folder: Path) -> None:
    client = client_of(api, line)
    assert (await client.health()).status == "ok"
    server = (await client.servers.start(name="s", region="us-east")).instance_id
    await client.servers.list()
    await client.servers.get(server)
    assert (await client.servers.update(server, {"a": 1})).custom_data == {"a": 1}
    assert (await client.servers.restart(server, name="other", ttl=None)).name == "other"
    assert [line async for line in client.servers.follow_logs(server)] == []
    await client.servers.metrics(server)
    await client.servers.events(server)
    await client.servers.stop(server)
    await _ends(client.servers.claim(region="us-east"))
    (folder / "game").mkdir()
    (folder / "game" / "Server.x86_64").write_text("#!")
    build = (await client.builds.upload(folder / "game")).build_id
    await client.builds.docker_image(image_url="registry.example.com/g:1")
    await client.builds.list()
    await client.builds.logs(build)
    await client.builds.delete(build)
    await client.projects.settings()
    assert (await client.projects.change_settings(unique_match=True)).unique_match
    await client.projects.logs("-1h")
    assert await client.projects.budget() is None
    assert (await client.projects.set_budget("5.50")).monthly_limit.startswith("5.5")
    await client.projects.remove_budget()
    assert (await client.secrets.put("DB_PASSWORD", "hunter2")).given_as == "file"
    assert [one.name for one in (await client.secrets.list()).secrets] == ["DB_PASSWORD"]
    await client.secrets.delete("DB_PASSWORD")
    await client.pools.list()
    await _ends(client.pools.get("us-east", "small"))
    assert (await client.usage.get()).group == "day"
    assert "," in await client.usage.csv()
    assert "html" in await client.usage.invoice()
    events = client.events.follow(after="0-0.0-0")
    assert (await anext(events)).position
    await events.aclose()  # type: ignore[attr-defined]
    await _use_webhooks(client)
    await _use_lobbies(client)


async def _use_webhooks(client: Any) -> None:
    hook = await client.webhooks.create(url="https://example.com/hook", events=["server"])
    await client.webhooks.list()
    await client.webhooks.get(hook.id)
    sent = await client.webhooks.test(hook.id)
    assert (await client.webhooks.deliveries(hook.id)).total == 1
    await client.webhooks.resend(hook.id, sent.id)
    assert await client.webhooks.resend_dead(hook.id) == 0
    assert (await client.webhooks.rotate_secret(hook.id)).secret != hook.secret
    assert not (await client.webhooks.change(hook.id, enabled=False)).enabled
    await client.webhooks.delete(hook.id)


async def _use_lobbies(client: Any) -> None:
    ann, bob = (client.lobbies("default", player_id=name) for name in ("ann", "bob"))
    lobby = await ann.create(name="lobby", maxPlayers=4)
    assert (await bob.join(code=lobby.code, state={"mmr": 1})).currentPlayers == 2
    assert (await ann.list()).total == 1
    assert (await ann.get(lobby.id)).host == "ann"
    assert (await bob.mine()).id == lobby.id
    await bob.set_state({"ready": True})
    await bob.heartbeat()
    assert (await ann.events_ticket()).url
    events = ann.follow()
    assert (await anext(events)).lobby.id == lobby.id
    await events.aclose()
    assert (await ann.change(name="renamed")).name == "renamed"
    assert (await ann.kick("bob")).currentPlayers == 1
    await _ends(ann.find_match("duel"), ann.cancel_search(), ann.confirm_match(), ann.decline_match(), ann.end_match())
    await _ends(ann.start())
    assert await ann.leave() is None
    other = await bob.create(name="second")
    await bob.delete(other.id)


async def _use_the_operators_client(api: Api, line: BadLine, folder: Path) -> None:
    key = AdminKeys(api.settings.home).rotate(0)
    client = AsyncAdminClient("http://fleet.test", key, http=httpx.AsyncClient(transport=line))
    made = await client.projects.create(name="studio", plan="free")
    assert [one.name async for one in client.projects.iterate()] == ["one", "two", "studio"]
    assert (await client.projects.get(made.project_id)).plan == "free"
    assert (await client.projects.change(made.project_id, plan="pro")).plan == "pro"
    assert (await client.projects.suspend(made.project_id, reason="late")).status == "suspended"
    assert (await client.projects.resume(made.project_id)).status == "active"
    assert (await client.projects.rotate_key(made.project_id, "client")).key != made.client_key
    assert len((await client.projects.keys(made.project_id)).keys) == 2
    assert (await client.projects.audit(project_id=made.project_id)).total > 3
    assert (await client.projects.plans()).plans
    assert (await client.projects.delete(made.project_id)).status == "deleting"
    await _ends(client.projects.export(made.project_id, folder / "export.zip"))
