"""A real registry on the loopback (Debian's docker-registry), with a login or without, and images to put into it."""

import asyncio
import base64
import json
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from fleet.node.engine import Engine, EngineError, json_lines
from tests.debian import unpack_debian

LOGIN = {"username": "studio", "password": "right horse"}
_HTPASSWD = "studio:$2b$05$G9JDT2j4hwm6.XSVM2Z5r.HCqCLgvNGAPNzXpVDF8ikxm6W0Cqw.u\n"
UP_S = 20.0


@dataclass
class RealRegistry:
    host: str

    async def push(self, engine: Engine, image: str, repository: str) -> str:
        """An image of the engine as `repository:1` there; its reference. The engine does not keep that name."""
        name = f"{self.host}/{repository}"
        await engine.call("POST", f"/images/{image}/tag", params={"repo": name, "tag": "1"})
        auth = base64.urlsafe_b64encode(json.dumps(LOGIN).encode()).decode()
        headers = {"X-Registry-Auth": auth}
        async with engine.stream("POST", f"/images/{name}/push", {"tag": "1"}, headers, silence_s=60) as answer:
            async for report in json_lines(answer):
                if "error" in report:
                    raise EngineError(500, str(report["error"]))
        await engine.call("DELETE", f"/images/{name}:1", params={"noprune": "1"})
        return f"{name}:1"


@asynccontextmanager
async def real_registry(folder: Path, *, login: bool) -> AsyncIterator[RealRegistry]:
    program = (await asyncio.to_thread(unpack_debian, "docker-registry")) / "usr/bin/docker-registry"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "htpasswd").write_text(_HTPASSWD)
    auth = f"auth:\n  htpasswd: {{realm: test, path: {folder}/htpasswd}}\n" if login else ""
    (folder / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {folder}/data}}\n"
        f"http: {{addr: '{host}'}}\n{auth}"
    )
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program, "serve", folder / "config.yml", stdout=log, stderr=subprocess.STDOUT
        )
    try:
        await _until_up(host)
        yield RealRegistry(host)
    finally:
        process.terminate()
        await process.wait()


async def _until_up(host: str) -> None:
    async with asyncio.timeout(UP_S), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"http://{host}/v2/"):
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
