"""Keys are shown when they are new and when somebody asks, and the files that know them are their owner's alone."""

import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet import cli_demo
from fleet.cli import app
from fleet.cli_api import console
from fleet.client.models import NetworkPort, ServerOut
from fleet.ops import api
from fleet.ops import up as up_module
from fleet.ops.head import Head
from fleet.ops.home import Access, OpsError, open_home, write_access
from fleet.ops.processes import ProcessId
from fleet.ops.supervisor import Supervisor
from fleet.projects.admin_keys import PREFIX, AdminKeys
from fleet.settings import FleetSettings, get_settings
from fleet.store import migrate
from fleet.store.engine import Store
from fleet.store.tables import Project
from fleet.this_machine import is_own_address, is_own_name, plain_address

SERVER, CLIENT = "pf_the-server-key", "pfclient_the-client-key"


def test_up_shows_the_keys_once_and_then_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_HOME", str(tmp_path))
    get_settings.cache_clear()
    monkeypatch.setattr(up_module, "bring_up", lambda *_: True)
    home = open_home(tmp_path)
    write_access(home, Access("http://127.0.0.1:8000", SERVER, CLIENT, "p"))

    def up(*more: str) -> str:
        done = CliRunner().invoke(app, ["up", *more], env={"COLUMNS": "300"})
        assert done.exit_code == 0, done.output
        return done.output

    assert SERVER in (first := up())
    assert CLIENT in first
    for later in (up(), up()):
        assert SERVER not in later
        assert CLIENT not in later
        assert "--show-keys" in later
    assert SERVER in up("--show-keys")
    assert home.shows_keys("demo", asked=False)  # whose own first time is another
    assert not home.shows_keys("demo", asked=False)
    get_settings.cache_clear()


@pytest.mark.parametrize("works", [False, True])
async def test_the_admin_key_is_made_when_the_start_has_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    told: list[str] = []
    one = Supervisor(open_home(tmp_path), FleetSettings(home=tmp_path), told.append)
    nobody = ProcessId(2**22, 1)  # which has ended

    async def prepare() -> None:
        return None

    async def watch(_head: Head) -> str:
        raise KeyboardInterrupt

    def start() -> Head:
        if works:
            return Head("127.0.0.2:1", nobody, nobody, {})
        raise OpsError("Port 8000 is taken by another program.")

    monkeypatch.setattr(one, "_prepare", prepare)
    monkeypatch.setattr(one, "_start", start)
    monkeypatch.setattr(one, "_watch", watch)
    monkeypatch.setattr(api, "lives", lambda _url: True)
    with pytest.raises(KeyboardInterrupt if works else OpsError):
        await one._work()
    shown = [line for line in told if PREFIX in line]
    assert len(shown) == works
    assert bool(AdminKeys(tmp_path).keys()) is works
    if works:
        assert told.index(shown[0]) < next(number for number, line in enumerate(told) if line.startswith("healthy"))


@pytest.mark.parametrize("there", [False, True])
def test_the_database_is_its_owners_alone(tmp_path: Path, there: bool) -> None:
    file, before = tmp_path / "fleet.db", os.umask(0)
    try:
        if there:  # of a version before, open to everybody
            file.touch(mode=0o666)
            (tmp_path / "fleet.db-wal").touch(mode=0o666)
        migrate.upgrade(f"sqlite+aiosqlite:///{file}", tmp_path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("fleet.db*")} == {0o600}


async def test_what_sqlite_puts_beside_it_is_too(tmp_path: Path) -> None:
    from asyncio import to_thread

    before = os.umask(0)
    store = Store(f"sqlite+aiosqlite:///{tmp_path}/fleet.db")
    try:
        await to_thread(migrate.upgrade, f"sqlite+aiosqlite:///{tmp_path}/fleet.db", tmp_path)
        async with store.write() as session:
            session.add(Project(id="p", name="p", created_at=1, updated_at=1))
        found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("fleet.db*")}
    finally:
        os.umask(before)
        await store.close()
    assert found == {"fleet.db": 0o600, "fleet.db-wal": 0o600, "fleet.db-shm": 0o600}


def test_names_and_addresses_of_this_machine() -> None:
    assert all(is_own_name(name) for name in ("localhost", "LocalHost.", "x.localhost", os.uname().nodename))
    assert not any(is_own_name(name) for name in ("studio.example", "localhost.example", ""))
    assert all(is_own_address(text) for text in ("127.0.0.1", "127.8.9.1", "::1"))
    assert not any(is_own_address(text) for text in ("192.0.2.1", "2001:db8::1", "0.0.0.0", "x", "", "224.0.0.1"))
    assert [plain_address(text) for text in ("127.1", "0x7f000001", "2130706433")] == ["127.0.0.1"] * 3
    assert [plain_address(text) for text in ("studio.example", "1.studio.example")] == [
        "studio.example",
        "1.studio.example",
    ]


def test_demo_shows_no_key_at_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_HOME", str(tmp_path))
    get_settings.cache_clear()
    open_home(tmp_path)
    server = ServerOut.model_construct(instance_id="i-1")
    port = NetworkPort.model_construct(host="127.0.0.1", external_port=20000)
    access = Access("http://127.0.0.1:8000", SERVER, CLIENT, "p")
    said: list[str] = []
    for asked in (False, False, True):
        with console.capture() as first, cli_demo.console.capture() as second:
            cli_demo._tell(server, port, access, True, show_keys=asked)
        said.append(first.get() + second.get())
    assert [CLIENT in text for text in said] == [SERVER in text for text in said] == [True, False, True]
    get_settings.cache_clear()
