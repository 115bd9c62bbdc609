"""The stage on which both runtimes are tested; the API in this process as unit tests have it."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fleet.node.engine import Engine
from tests.contract.runtime_stage import Stage, engine_problem
from tests.unit.conftest import api, plain_logs  # noqa: F401


@asynccontextmanager
async def open_stage(kind: str, folder: Path) -> AsyncGenerator[Stage]:
    """Skipped without what it needs; nothing of it is left."""
    if kind == "docker" and (problem := await asyncio.to_thread(engine_problem)):
        pytest.skip(f"no container engine: {problem}")
    stage = Stage(kind, folder / secrets.token_hex(4), None)  # type: ignore[arg-type]
    await stage.open()
    yield stage
    await stage.clear()
    await stage.die()


@pytest.fixture(params=["docker", "process"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    async with open_stage(request.param, tmp_path) as stage:
        yield stage


@pytest.fixture
async def engine(stage: Stage) -> AsyncIterator[Engine]:
    engine = Engine()
    yield engine
    await engine.close()
