"""The stage on which both runtimes are tested, and servers that several suites share."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fleet.store import migrate
from tests.contract.runtime_stage import Stage, engine_problem
from tests.postgres import PostgresMissing, PostgresServer
from tests.s3 import LOGIN, S3Server


@pytest.fixture(params=["docker", "process"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    if request.param == "docker" and (problem := await asyncio.to_thread(engine_problem)):
        pytest.skip(f"no container engine: {problem}")
    folder = tmp_path / secrets.token_hex(4)
    stage = Stage(request.param, folder, None)  # type: ignore[arg-type]
    await stage.open()
    yield stage
    await stage.clear()
    await stage.die()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server with a database `migrated`, to be copied."""
    try:
        server = PostgresServer()
    except PostgresMissing as missing:
        pytest.skip(f"no PostgreSQL: {missing}")
    try:
        server.create()
        server.start()
        server.sql("CREATE DATABASE migrated")
        migrate.upgrade(server.url("migrated"))
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """A migrated, empty database of the test's own."""
    name = postgres.new_database("migrated")
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3_url(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of the test's own in the bucket, with the login in the environment."""
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    return s3.url(f"t-{secrets.token_hex(6)}")
