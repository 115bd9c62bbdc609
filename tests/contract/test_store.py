"""Both databases behave the same: the unit tests of the group commit, and what only two writers can show."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import DBAPIError
from sqlmodel import col, func, select

from fleet.builds.service import BuildService
from fleet.errors import Fenced, Unavailable
from fleet.ops.check_migrations import check
from fleet.settings import FleetSettings
from fleet.store import migrate, trouble
from fleet.store.commit import GroupCommit, take_epoch
from fleet.store.engine import Store, database_url
from fleet.store.tables import Build, Project, Server, ServerEvent
from fleet.store.transact import fence
from fleet.store.trouble import OutOfReach, may_pass
from tests.postgres import PostgresServer
from tests.unit.test_commit import *  # noqa: F403  the same tests again, over each database
from tests.unit.test_commit import names, project


@pytest.fixture(scope="module")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("db") / "fleet.db"
    migrate.upgrade(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> str:
    if request.param == "postgres":
        return request.getfixturevalue("postgres_url")
    copy = tmp_path / "fleet.db"
    copy.write_bytes(sqlite_template.read_bytes())
    return f"sqlite+aiosqlite:///{copy}"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    store = Store(url)
    yield store
    await store.close()


@pytest.fixture
async def other(url: str) -> AsyncIterator[Store]:
    """The same database as another process sees it."""
    store = Store(url)
    yield store
    await store.close()


async def test_the_data_version_tells_every_foreign_commit(store: Store) -> None:
    """Exact or not at all."""
    before = store.data_version()
    async with store.write() as session:
        session.add(Project(id="p", name="p", created_at=1, updated_at=1))
    assert before is None if not store.sqlite else store.data_version() != before


async def test_writes_of_all_processes_come_one_after_the_other(store: Store, other: Store, tmp_path: Path) -> None:
    """Versions are counted by reading and adding one, so two at once must not read the same."""
    settings = FleetSettings(home=tmp_path)
    async with store.write() as session:
        session.add(Project(id="p", name="p", created_at=1, updated_at=1))
    services = [BuildService(each, settings, lambda _build: None) for each in (store, other)]
    made = await asyncio.gather(*[services[i % 2].request_upload("p", "game", None) for i in range(20)])
    assert sorted(build.version for build in made) == list(range(1, 21))


async def test_epochs_are_given_once(store: Store, other: Store) -> None:
    epochs = await asyncio.gather(*[take_epoch((store, other)[i % 2], "r") for i in range(10)])
    assert sorted(epochs) == list(range(1, 11))


async def test_an_epoch_is_not_taken_in_the_middle_of_its_writers_commit(store: Store, other: Store) -> None:
    """Else the old writer's commit would come after the new one has read, and be unknown to it."""
    epoch = await take_epoch(store, "r")
    commits = GroupCommit(store, "r", epoch, lambda _error: None)
    finished: list[str] = []

    async def take() -> None:
        await take_epoch(other, "r")
        finished.append("taken")

    async with store.write_connection() as connection:
        await fence(connection, "r", epoch)
        taking = asyncio.create_task(take())
        await asyncio.sleep(0.3)
        assert finished == []
        await connection.execute(insert(Project), project("in time"))
    await asyncio.wait_for(taking, 30)
    assert await names(other) == ["in time"]
    with pytest.raises(Fenced):
        await commits.submit([(insert(Project), project("late"))])
    assert await names(other) == ["in time"]


async def test_a_reader_cannot_write(store: Store) -> None:
    async with store.read() as session:
        with pytest.raises(DBAPIError):
            await (await session.connection()).execute(insert(Project), project("never"))
    assert await names(store) == []


async def test_a_read_sees_one_state(store: Store, other: Store) -> None:
    async with store.read() as session:
        count = select(func.count()).select_from(Project)
        assert (await session.exec(count)).one() == 0
        async with other.write() as writing:
            writing.add(Project(id="p", name="p", created_at=1, updated_at=1))
        assert (await session.exec(count)).one() == 0
    assert await names(store) == ["p"]


async def test_values_come_back_as_they_went(store: Store) -> None:
    """JSON with every kind of value, absent JSON, big integers, text beyond ASCII."""
    settings = {"a": [1, 2.5, None, True, "ü\u0000€"], "b": {}, "big": 2**53}
    async with store.write() as session:
        session.add(Project(id="p", name="Ünïcode 🎮", settings=settings, created_at=2**52, updated_at=1))
        session.add(Project(id="q", name="q", settings=None, created_at=1, updated_at=1))
        await session.flush()
        session.add(Build(
            build_id="b", project_id="p", name="n", version=1, status="ready", build_type="zip", created_at=1,
            packed_bytes=2**40,
        ))  # fmt: skip
    async with store.read() as session:
        rows = (await session.exec(select(Project).order_by(col(Project.id)))).all()
        absent = await session.exec(select(Project.id).where(col(Project.settings).is_(None)))
        assert list(absent.all()) == ["q"]
        build = await session.get(Build, "b")
    assert [row.settings for row in rows] == [settings, None]
    assert (rows[0].name, rows[0].created_at) == ("Ünïcode 🎮", 2**52)
    assert build is not None
    assert (build.packed_bytes, build.writable) == (2**40, False)


def test_migrations_and_tables_agree(postgres: PostgresServer) -> None:
    name = postgres.new_database()
    check(postgres.url(name))
    migrate.upgrade(postgres.url(name))
    postgres.drop(name)


@pytest.mark.parametrize(
    "given",
    ["postgres://u:p%40@h/d?sslmode=require", "postgresql://u:p%40@h/d?ssl=require"],
)
def test_urls_as_providers_write_them(given: str) -> None:
    expected = "postgresql+asyncpg://u:p%40@h/d?ssl=require"
    assert database_url(given).render_as_string(hide_password=False) == expected


async def test_a_restart_of_the_server_costs_no_commit(postgres: PostgresServer, postgres_url: str) -> None:
    """Commits wait until the server is back; each is there once."""
    store, fatal = Store(postgres_url), list[BaseException]()
    commits = GroupCommit(store, "r", await take_epoch(store, "r"), fatal.append)
    await commits.submit([(insert(Project), project("before"))])
    await asyncio.to_thread(postgres.halt)
    waiting = [commits.submit([(insert(Project), project(f"during {i}"))]) for i in range(3)]
    await asyncio.sleep(0.5)
    assert not any(future.done() for future in waiting)
    postgres.start()  # in this thread: the kernel ends it with the thread that started it
    await asyncio.wait_for(asyncio.gather(*waiting), 60)
    assert await names(store) == ["before", "during 0", "during 1", "during 2"]
    assert fatal == []
    await store.close()


async def test_a_commit_of_unknown_outcome_is_never_repeated(postgres: PostgresServer, postgres_url: str) -> None:
    """The server dies in the commit itself: repeating could write twice, so the writer ends and its successor looks."""
    store, fatal = Store(postgres_url), list[BaseException]()
    commits = GroupCommit(store, "r", await take_epoch(store, "r"), fatal.append)
    # Holds the commit itself for a while: a deferred constraint trigger runs inside COMMIT.
    database = postgres_url.rpartition("/")[2]
    postgres.sql(
        f"\\c {database}",
        "CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(30); RETURN NULL; END'",
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON project DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION nap()",
    )
    waiting = commits.submit([(insert(Project), project("perhaps"))])
    asking = "SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT;' AND state = 'active'"
    deadline = time.monotonic() + 20
    while await asyncio.to_thread(postgres.sql, asking) != "1":
        assert time.monotonic() < deadline
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'COMMIT;'"
    await asyncio.to_thread(postgres.sql, kill)
    with pytest.raises(Exception, match="broke during a commit"):
        await asyncio.wait_for(waiting, 30)
    assert len(fatal) == 1
    await store.close()


async def test_text_that_a_database_cannot_hold_is_mended_never_fatal(store: Store) -> None:
    """A game's last words go into the books; they may be anything."""
    fatal: list[BaseException] = []
    commits = GroupCommit(store, "r", await take_epoch(store, "r"), fatal.append)
    await commits.submit([(insert(Project), project("bad\x00bytes") | {"id": "p"})])
    assert (await names(store))[0].startswith("bad")
    assert fatal == []


async def test_events_of_one_writer_are_numbered_in_order(store: Store) -> None:
    async with store.write() as session:
        session.add(Project(id="p", name="p", created_at=1, updated_at=1))
    commits = GroupCommit(store, "r", await take_epoch(store, "r"), lambda _error: None)
    entry = {"project_id": "p", "region": "r", "generation": 1, "data": None, "instance_id": "s", "type": "t"}
    times = {name: 1 for name in ("created_at", "updated_at", "launched_at", "step_at")}
    async with store.write() as session:
        session.add(Server(
            instance_id="s", project_id="p", region="r", name="s", status="running", step="running",
            compute_size="small", build_id="b", version_tag="b", **times,
        ))  # fmt: skip
    for batch in range(5):
        await commits.submit([(insert(ServerEvent), [{**entry, "at": batch * 100 + i} for i in range(100)])])
    async with store.read() as session:
        at = (await session.exec(select(ServerEvent.at).order_by(col(ServerEvent.id)))).all()
    assert list(at) == list(range(500))


async def test_a_server_that_hangs_is_waited_for(postgres: PostgresServer, postgres_url: str) -> None:
    """It takes connections and answers nothing, as behind a cut network: new writes are told in time, commits that
    were submitted go through once it is back."""
    store, fatal = Store(postgres_url), list[BaseException]()
    commits = GroupCommit(store, "r", await take_epoch(store, "r"), fatal.append, refuse_after_s=1)
    await commits.submit([(insert(Project), project("before"))])
    assert await names(store) == ["before"]
    postgres.freeze()
    try:
        waiting = commits.submit([(insert(Project), project("meanwhile"))])
        began = time.monotonic()
        with pytest.raises(OutOfReach) as refused:
            async with store.write() as session:
                session.add(Project(**project("new")))
        assert time.monotonic() - began < trouble.LOCK_WAIT_S + 4
        assert may_pass(refused.value)
        with pytest.raises(Unavailable):
            commits.check()
        await asyncio.sleep(trouble.COMMIT_TRY_S)  # one try at least has been given up
        assert not waiting.done()
    finally:
        postgres.thaw()
    await asyncio.wait_for(waiting, 10)
    assert sorted(await names(store)) == ["before", "meanwhile"]
    assert fatal == []
    await commits.close()
    await store.close()


async def test_the_kernel_watches_the_connections(postgres_url: str) -> None:
    """A peer that vanishes without a word is found within seconds."""
    store = Store(postgres_url)
    async with store.write_connection() as connection:
        raw = await connection.get_raw_connection()
        driver = raw.driver_connection
        assert driver is not None
        found = driver._transport.get_extra_info("socket")
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == trouble.SILENCE_S * 1000
    await store.close()
