"""The API of `api_kit` as a process of its own: `python -m tests.serve_api FOLDER`.

Prints one line of JSON, `{"url", "headers"}`, once it answers; ends with SIGTERM.
"""

import asyncio
import json
import socket
import sys
from pathlib import Path

import uvicorn

from fleet.projects.admin_keys import AdminKeys
from tests.unit.api_kit import open_api

HOOK_SECRET = "schemathesis"  # of tests/contract/schemathesis/config.toml


class _Server(uvicorn.Server):
    said = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.said, flush=True)


async def main(folder: Path) -> None:
    api = await open_api(folder)
    api.settings.storage_hook_secret = HOOK_SECRET
    await api.running()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # No lifespan, so nothing is done in the background: webhooks with generated addresses must not be sent.
        server = _Server(uvicorn.Config(api.app, log_level="critical", lifespan="off"))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        headers = {"api-key": api.project.server_key, "admin-key": AdminKeys(folder).rotate(0)}
        server.said = json.dumps({"url": url, "headers": headers})
        await server.serve(sockets=[listener])
    await api.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
