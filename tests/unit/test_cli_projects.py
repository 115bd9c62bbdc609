"""`fleet projects` and `fleet keys rotate admin`, on a home whose fleet does not run."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet.cli import app
from fleet.ops.home import open_home
from fleet.projects.admin_keys import AdminKeys
from fleet.projects.service import ProjectService, create_project
from fleet.settings import get_settings
from fleet.store.engine import Store
from tests.unit.api_kit import make_schema


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FLEET_HOME", str(tmp_path))
    get_settings.cache_clear()
    open_home(tmp_path)
    make_schema(tmp_path / "fleet.db")
    yield tmp_path
    get_settings.cache_clear()


def fleet(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "300"})
    assert done.exit_code == code, done.output
    return done.output


def kind_of(key: str) -> str:
    async def ask() -> str:
        store = Store(get_settings().database)
        try:
            return (await ProjectService(store).authenticate(key)).kind
        finally:
            await store.close()

    return asyncio.run(ask())


def test_a_projects_whole_life(home: Path) -> None:
    made = fleet("projects", "create", "My studio", "--plan", "free")
    project_id = made.split()[0]
    keys = re.findall(r"pf(?:client)?_[\w-]{43}", made)
    assert [kind_of(key) for key in keys] == ["server", "client"]
    short = project_id[:8]
    assert "suspended" in fleet("projects", "suspend", short, "--reason", "unpaid")
    assert "active" in fleet("projects", "resume", short)
    assert "Other name" in fleet("projects", "rename", short, "Other name")
    assert " pro " in fleet("projects", "plan", short, "pro")
    new = fleet("projects", "rotate", short, "server", "--overlap", "60").strip()
    assert [kind_of(key) for key in (new, keys[0])] == ["server", "server"]
    assert "deleting" in fleet("projects", "delete", short, "--yes")
    assert project_id in fleet("projects", "list")
    log = fleet("projects", "audit")
    for action in ("create", "suspend", "resume", "rename", "plan", "rotate", "delete"):
        assert f"project.{action}" in log
    assert new not in log


def test_the_admin_key_is_replaced(home: Path) -> None:
    first = AdminKeys(home).ensure() or ""
    second = fleet("keys", "rotate", "admin").strip()
    assert AdminKeys(home).check(second)
    with pytest.raises(Exception, match="unknown"):
        AdminKeys(home).check(first)
    assert "admin_key.rotate" in fleet("projects", "audit")


def test_the_default_projects_keys_are_replaced(home: Path) -> None:
    async def make() -> str:
        store = Store(get_settings().database)
        try:
            return (await create_project(store, "default")).client_key
        finally:
            await store.close()

    old = asyncio.run(make())
    new = fleet("keys", "rotate", "client").strip()
    assert kind_of(new) == "client"
    with pytest.raises(Exception, match="unknown"):
        kind_of(old)
