"""Following the log of a container that has ended: an engine that was away at its end never ends that stream."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from fleet.node.docker import DockerRuntime
from fleet.node.logs import LogArchive
from fleet.node.runtime import RunKey, RuntimePlace
from fleet.settings import LogLimits

SAID = b"2026-01-01T00:00:00.000000000Z hello\n"
FRAME = bytes([1, 0, 0, 0]) + len(SAID).to_bytes(4, "big") + SAID


class StuckEngine:
    """One container, which has ended. Who follows its log hears what it said, and then nothing, for ever."""

    def __init__(self) -> None:
        self.over = asyncio.Event()

    async def inspect(self, _request: web.Request) -> web.Response:
        return web.json_response({"State": {"Running": False}})

    async def logs(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(FRAME)
        if request.query["follow"] == "1":
            await self.over.wait()
        await answer.write_eof()
        return answer


@pytest.fixture
async def socket() -> AsyncIterator[str]:
    engine, app = StuckEngine(), web.Application()
    app.router.add_get("/{version}/containers/{name}/json", engine.inspect)
    app.router.add_get("/{version}/containers/{name}/logs", engine.logs)
    app.router.add_get("/containers/{name}/json", engine.inspect)
    app.router.add_get("/containers/{name}/logs", engine.logs)
    runner = web.AppRunner(app)
    await runner.setup()
    with tempfile.TemporaryDirectory(prefix="fl") as short:
        path = f"{short}/e.sock"
        await web.UnixSite(runner, path).start()
        yield path
        engine.over.set()
        await runner.cleanup()


async def test_the_log_of_an_ended_run_is_kept_though_the_engine_never_ends_its_stream(
    socket: str, tmp_path: Path
) -> None:
    key = RunKey("s1", 1)
    runtime = DockerRuntime(RuntimePlace("f", "r", tmp_path / "servers", tmp_path / "bundles"), socket=socket)
    archive = LogArchive(tmp_path / "logs", LogLimits())
    try:
        async with asyncio.timeout(5):
            await archive.keep(runtime, key)
        assert [line.message for line in await archive.page(key, None, None, 10)] == ["hello"]
    finally:
        await runtime.close()
