"""A project's secrets and variables: written, given to games, and found nowhere else."""

import asyncio
import json
import zipfile
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlmodel import select
from typer.testing import CliRunner

from fleet.catalog import load_catalog
from fleet.cli import app
from fleet.errors import FleetError
from fleet.node.docker_spec import Host, ImageFacts, container_config
from fleet.node.model import NodeShare
from fleet.node.runtime import GameSecrets
from fleet.projects.export import export_project
from fleet.projects.secrets import MAX_ALL_BYTES, MAX_FILE_BYTES, MAX_SECRETS, sealer_of
from fleet.region.pool_store import PoolStore
from fleet.region.secrets import SecretsOf
from fleet.region.spec import build_ref, launch_spec
from fleet.sealing import Variables
from fleet.store.tables import Build, Project, ProjectEvent, Secret, Server
from tests.live_api import live
from tests.unit.api_kit import Api

SECRETS, SETTINGS, START = "/api/v3/projects/secrets", "/api/v3/projects/settings", "/api/v3/servers/start"
VALUE, VARIABLE = "hunter2-is-the-value", "variable-hunter3-value"


async def put(api: Api, name: str = "DB_PASSWORD", value: str = VALUE, status: int = 200, **more: Any) -> Any:
    answer = await api.call("PUT", f"{SECRETS}/{name}", json={"value": value, **more})
    assert answer.status_code == status, answer.text
    assert value not in answer.text or len(value) < 3
    return answer.json()


def on_disk(api: Api) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(api.settings.home.glob("fleet.db*")))


# The API ----------------------------------------------------------------------------------------------------------


async def test_a_secret_goes_in_and_does_not_come_out(api: Api) -> None:
    made = await put(api)
    assert made["given_as"] == "file"
    assert made["last_used_at"] is None
    again = await put(api, value="another-long-value", given_as="variable")
    assert (again["created_at"], again["given_as"]) == (made["created_at"], "variable")
    listed = (await api.call("GET", SECRETS)).json()
    assert [one["name"] for one in listed["secrets"]] == ["DB_PASSWORD"]
    assert set(listed["secrets"][0]) == {"name", "given_as", "created_at", "updated_at", "last_used_at"}
    for path in (SETTINGS, "/api/v3/servers", "/api/v3/usage"):
        assert "another-long-value" not in (await api.call("GET", path)).text
    assert b"another-long-value" not in on_disk(api)
    assert (await api.call("DELETE", f"{SECRETS}/DB_PASSWORD")).status_code == 204
    assert (await api.call("DELETE", f"{SECRETS}/DB_PASSWORD")).status_code == 404
    assert (await api.call("GET", SECRETS)).json() == {"secrets": [], "total": 0}
    async with api.store.read() as session:
        told = (await session.exec(select(ProjectEvent).where(ProjectEvent.kind == "project"))).all()
    assert [one.type for one in told] == ["project.secret_set", "project.secret_set", "project.secret_deleted"]
    assert all(one.data == {"name": "DB_PASSWORD"} for one in told)


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("1ST", {"value": "x"}, 422),
        ("a-b", {"value": "x"}, 422),
        ("..", {"value": "x"}, 404),  # no such path
        ("x" * 65, {"value": "x"}, 422),
        ("A%0A", {"value": "x"}, 422),
        ("A", {"value": ""}, 422),
        ("A", {}, 422),
        ("A", {"value": 7}, 422),
        ("A", {"value": "x", "given_as": "mail"}, 422),
        ("A", {"value": "x" * (MAX_FILE_BYTES + 1)}, 422),
        ("A", {"value": "é" * MAX_FILE_BYTES}, 422),
        ("A", {"value": "x" * 8193, "given_as": "variable"}, 422),
        ("A", {"value": "nul\0", "given_as": "variable"}, 422),
        ("PLAYFLOW_X", {"value": "x", "given_as": "variable"}, 422),
    ],
)
async def test_a_bad_secret_is_refused_and_not_repeated(api: Api, name: str, body: dict[str, Any], status: int) -> None:
    answer = await api.call("PUT", f"{SECRETS}/{name}", json=body)
    assert answer.status_code == status, answer.text
    assert "xxxx" not in answer.text.replace("x" * 64, "")
    assert (await api.call("GET", SECRETS)).json()["total"] == 0


async def test_their_number_and_their_size_are_bounded(api: Api) -> None:
    large = "x" * MAX_FILE_BYTES
    for number in range(MAX_ALL_BYTES // MAX_FILE_BYTES):
        await put(api, f"LARGE_{number}", large)
    await put(api, "ONE_MORE", "12345", status=409)
    for number in range(MAX_ALL_BYTES // MAX_FILE_BYTES):
        await put(api, f"LARGE_{number}", "a-small-value")  # in the place of the large one
    for number in range(MAX_SECRETS - MAX_ALL_BYTES // MAX_FILE_BYTES):
        await put(api, f"SMALL_{number}", "a-small-value")
    await put(api, "ONE_MORE", "a-small-value", status=409)
    await put(api, "SMALL_0", "another-value")


# At rest ----------------------------------------------------------------------------------------------------------


async def test_variables_are_read_back_and_lie_sealed(api: Api) -> None:
    changed = await api.call("POST", SETTINGS, json={"environment_variables": {"A": VARIABLE}})
    assert changed.json()["environment_variables"] == {"A": VARIABLE}
    assert (await api.call("GET", SETTINGS)).json()["environment_variables"] == {"A": VARIABLE}
    first, second = [await api.start() for _ in range(2)]
    own = await api.start(environment_variables={"B": VARIABLE + "-own"})
    restarted = await api.running()
    answer = await api.call(
        "POST", f"/api/v3/servers/{restarted['instance_id']}/restart", json={"environment_variables": {"C": VARIABLE}}
    )
    assert answer.status_code == 200, answer.text
    assert VARIABLE.encode() not in on_disk(api)
    variables = Variables(api.settings.home)
    async with api.store.read() as session:
        rows = {row.instance_id: row for row in (await session.exec(select(Server))).all()}
    assert variables.open(rows[first["instance_id"]].environment) == {"A": VARIABLE}
    # Rows with the project's own variables alone share one text, of which a manager keeps one in memory.
    assert rows[first["instance_id"]].environment == rows[second["instance_id"]].environment
    assert variables.open(rows[own["instance_id"]].environment) == {"A": VARIABLE, "B": VARIABLE + "-own"}
    assert variables.open(rows[restarted["instance_id"]].environment) == {"C": VARIABLE}
    await api.call("POST", SETTINGS, json={"environment_variables": None})
    assert (await api.call("GET", SETTINGS)).json()["environment_variables"] == {}


async def test_what_was_stored_plain_is_read(api: Api) -> None:
    async with api.store.write() as session:
        project = await session.get(Project, api.project.project_id)
        assert project is not None
        project.settings = {"environment_variables": {"OLD": "plain"}}
        project.updated_at += 1
    assert (await api.call("GET", SETTINGS)).json()["environment_variables"] == {"OLD": "plain"}
    server = await api.start()
    async with api.store.read() as session:
        row = await session.get(Server, server["instance_id"])
    assert row is not None
    assert Variables(api.settings.home).open(row.environment) == {"OLD": "plain"}
    assert Variables(api.settings.home).open({"OLD": "plain"}) == {"OLD": "plain"}


async def test_a_secret_of_another_name_or_project_opens_nothing(api: Api) -> None:
    await put(api)
    async with api.store.read() as session:
        row = (await session.exec(select(Secret))).one()
    home = api.settings.home
    assert sealer_of(home, row.project_id, row.name).open(row.sealed) == VALUE
    for project, name in ((api.other.project_id, row.name), (row.project_id, "OTHER")):
        with pytest.raises(FleetError):
            sealer_of(home, project, name).open(row.sealed)


async def test_an_export_has_neither(api: Api, tmp_path: Path) -> None:
    await put(api)
    await api.call("POST", SETTINGS, json={"environment_variables": {"A": VARIABLE}})
    await api.start()
    path = tmp_path / "exports" / "one.zip"
    await export_project(api.store, api.project.project_id, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    whole = b"".join(content.values())
    assert b"sealed:" not in whole
    for value in (VALUE, VARIABLE):
        assert value.encode() not in whole
    assert json.loads(content["secret.jsonl"])["name"] == "DB_PASSWORD"
    assert "environment" not in json.loads(content["server.jsonl"])


# To the game ------------------------------------------------------------------------------------------------------


async def test_a_launch_has_them_and_notes_the_use(api: Api) -> None:
    secrets = SecretsOf(api.store, api.settings.home)
    assert await secrets(api.project.project_id) == GameSecrets()
    await put(api)
    await put(api, "API_KEY", VARIABLE, given_as="variable")
    for _ in range(2):
        found = await secrets(api.project.project_id)
        assert (found.files, found.variables) == ({"DB_PASSWORD": VALUE}, {"API_KEY": VARIABLE})
    assert await secrets(api.other.project_id) == GameSecrets()
    await secrets._tasks.settled()
    listed = (await api.call("GET", SECRETS)).json()["secrets"]
    assert all(one["last_used_at"] for one in listed)
    await secrets.close()
    assert VALUE not in repr(found)


async def test_the_engine_is_told_no_value_in_labels_and_the_row_has_none(api: Api) -> None:
    await put(api)
    await put(api, "API_KEY", VARIABLE, given_as="variable")
    server = await api.start(environment_variables={"PLAIN": "plain-own-variable"})
    async with api.store.read() as session:
        row = await session.get(Server, server["instance_id"])
        build = (await session.exec(select(Build).where(Build.project_id == api.project.project_id))).one()
    assert row is not None
    secrets = GameSecrets({"API_KEY": VARIABLE}, {"DB_PASSWORD": VALUE})
    environment = Variables(api.settings.home).open(row.environment)
    size = load_catalog().size("small")
    spec = launch_spec(row, build_ref(build, None), size, _share(), api.settings, environment, secrets)
    config = container_config(
        spec, ImageFacts("base"), Host("f1", 2, Path("/s"), Path("/b"), secrets=Path("/dev/shm/x"))
    )
    assert f"API_KEY={VARIABLE}" in config["Env"]
    assert "PLAIN=plain-own-variable" in config["Env"]
    assert "PLAYFLOW_SECRETS=/run/secrets" in config["Env"]
    mounts = {mount["Target"]: mount for mount in config["HostConfig"]["Mounts"]}
    assert mounts["/run/secrets"] == {
        "Type": "bind", "Source": f"/dev/shm/x/{spec.key}", "Target": "/run/secrets", "ReadOnly": True,
    }  # fmt: skip
    rest = orjson.dumps({**config, "Env": None}).decode() + repr(spec) + repr(row)
    for value in (VALUE, VARIABLE, "plain-own-variable"):
        assert value not in rest
        assert value not in orjson.dumps(config["Labels"]).decode()


def _share() -> NodeShare:
    return NodeShare(1024, 2.0, 20000, 20010, "127.0.0.1", "127.0.0.1")


async def test_a_warm_server_of_before_a_change_is_of_another_kind(api: Api) -> None:
    pools = {"enabled": True, "regions": {"us-east": {"small": 1}}}
    await api.call("POST", SETTINGS, json={"pool_config": pools})
    store = PoolStore(api.store, "us-east", home=api.settings.home)

    async def secrets_at() -> int:
        return next(iter((await store.wished(api.project.project_id)).values())).secrets_at

    times = [await secrets_at()]
    for value in ("one-value", "two-value"):
        api.regions.told.clear()
        await put(api, value=value)
        assert api.regions.told == ["us-east"]
        times.append(await secrets_at())
    await api.call("DELETE", f"{SECRETS}/DB_PASSWORD")
    times.append(await secrets_at())
    assert times == sorted(set(times))


async def test_the_command_line_sets_lists_and_deletes_them(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The value comes by the standard input or a file: a shell remembers what is typed into a command."""
    async with live(api.app, {}) as client:
        monkeypatch.setenv("FLEET_URL", str(client.base_url))
        monkeypatch.setenv("FLEET_API_KEY", api.project.server_key)

        async def fleet(*arguments: str, said: str = "") -> str:
            done = await asyncio.to_thread(CliRunner().invoke, app, ["secrets", *arguments], input=said)
            assert done.exit_code == 0, done.output
            assert VALUE not in done.output
            return done.output

        assert "is set" in await fleet("set", "DB_PASSWORD", said=VALUE + "\n")
        file = api.settings.home / "key.pem"
        file.write_text(VALUE)
        assert "is set" in await fleet("set", "TLS_KEY", "--file", str(file), "--as", "variable")
        secrets = SecretsOf(api.store, api.settings.home)
        found = await secrets(api.project.project_id)
        assert (found.files, found.variables) == ({"DB_PASSWORD": VALUE}, {"TLS_KEY": VALUE})
        await secrets._tasks.settled()
        await secrets.close()
        assert "DB_PASSWORD" in await fleet("list")
        assert "is deleted" in await fleet("delete", "DB_PASSWORD")
        assert "DB_PASSWORD" not in await fleet("list")
