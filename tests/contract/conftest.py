"""The stage on which both runtimes are tested; the API in this process as unit tests have it."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.runtime_stage import Stage, engine_problem
from tests.unit.conftest import api, plain_logs  # noqa: F401


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
