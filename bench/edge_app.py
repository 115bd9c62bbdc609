"""Apps for `bench.edge`, each a process of its own: `python -m bench.edge_app HOME full|bare`.

`full`: the API as it is, but for its cache of reads, which would hide what the layers cost. `bare`: its routes alone,
with a caller that is always the same: no key is looked up, nothing is limited, counted, logged or given an id.
Prints its URL once it listens.
"""

import asyncio
import socket
import sys
import time
from pathlib import Path
from typing import cast

import uvicorn
from fastapi import FastAPI
from sqlmodel import select

from fleet.builds.service import BuildService
from fleet.catalog import load_catalog
from fleet.projects.model import Principal
from fleet.servers.service import Regions
from fleet.settings import FleetSettings, RateLimits
from fleet.store.engine import Store
from fleet.store.tables import Project
from serve_app import auth, http
from serve_app.context import AppContext

UNLIMITED = RateLimits(reads_per_s=1_000_000, writes_per_s=1_000_000)


class _NoCache(Store):
    def data_version(self) -> int | None:
        return None


async def make(home: Path, kind: str) -> FastAPI:
    settings = FleetSettings(home=home, limits=UNLIMITED)
    store = _NoCache(settings.database)
    builds = BuildService(store, settings)
    context = AppContext.make(settings, store, load_catalog(), builds, cast(Regions, None))
    app = http.create_app(context)
    if kind == "bare":
        app.user_middleware.clear()
        async with store.read() as session:
            project = (await session.exec(select(Project).limit(1))).one()
        caller = Principal(project.id, "server", project.plan, time.monotonic() + 3600)

        async def always() -> Principal:
            return caller

        app.dependency_overrides[auth._any_key] = always
    return app


class _Server(uvicorn.Server):
    said = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.said, flush=True)


async def main(home: Path, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(await make(home, kind), log_level="critical", lifespan="off", access_log=False)
        server = _Server(config)
        server.said = f"http://127.0.0.1:{listener.getsockname()[1]}"
        await server.serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
