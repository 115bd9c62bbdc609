"""The stage on which both runtimes are tested."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.runtime_stage import Stage, engine_problem


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
