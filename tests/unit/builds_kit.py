"""A build service over a real SQLite file and disk, whose pipeline runs in the test when it says so."""

import atexit
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from fleet.builds.object_store import open_artefacts
from fleet.builds.pipeline import run_pipeline
from fleet.builds.service import BuildService
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from fleet.store.migrate import upgrade
from fleet.store.tables import Build, Project, Server
from fleet.times import now_ms
from tests.games import Files, make_zip

GAME: Files = {"Server.x86_64": (b"#!/bin/sh\nexec sleep 60\n", 0o755), "data/map": (b"map" * 1000, 0o644)}


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@dataclass
class Builds:
    store: Store
    settings: FleetSettings
    service: BuildService
    project: str
    submitted: list[str] = field(default_factory=list)

    def link(self, build: Build) -> tuple[str, int, str]:
        """Arguments of `receive_upload` as a client's URL carries them."""
        query = parse_qs(urlsplit(self.service.upload_path(build)).query)
        return build.build_id, int(query["expires"][0]), query["signature"][0]

    async def upload(self, content: bytes, name: str = "arena", executable: str | None = None) -> Build:
        build = await self.service.request_upload(self.project, name, executable)
        return await self.service.receive_upload(*self.link(build), stream(content))

    async def built(self, content: bytes | None = None, name: str = "arena", executable: str | None = None) -> Build:
        """A build after its pipeline; look at its status."""
        build = await self.upload(make_zip(GAME) if content is None else content, name, executable)
        await run_pipeline(build.build_id, self.settings)
        return await self.service.get(self.project, build.build_id)

    async def words(self, build: Build) -> list[str]:
        lines, _ = await self.service.logs(self.project, build.build_id, 500, 0)
        return [line.message for line in lines]

    async def change(self, build: Build, **values: object) -> None:
        async with self.store.write() as session:
            row = await session.get(Build, build.build_id)
            assert row is not None
            for key, value in values.items():
                setattr(row, key, value)

    async def add_server(self, build: Build, step: str = "running") -> str:
        now = now_ms()
        times = {"created_at": now, "updated_at": now, "launched_at": now, "step_at": now}
        server = Server(
            instance_id=str(uuid.uuid4()), project_id=self.project, region="us-east", name="s", status="running",
            step=step, compute_size="small", build_id=build.build_id, version_tag=build.name, **times,
        )  # fmt: skip
        async with self.store.write() as session:
            session.add(server)
        return server.instance_id

    async def stop_server(self, instance_id: str) -> None:
        async with self.store.write() as session:
            row = await session.get(Server, instance_id)
            assert row is not None
            row.step = row.status = "stopped"

    def stored(self) -> dict[str, list[str]]:
        """What lies in storage, by place; lock files aside."""
        archives = open_artefacts(self.settings).list("archives")
        found: dict[str, list[str]] = {"archives": sorted(key.removeprefix("archives/") for key in archives)}
        for place in (self.settings.artefacts / "uploads", self.settings.bundles):
            names = [p.name for p in place.iterdir()] if place.is_dir() else []
            found[place.name] = sorted(n for n in names if n != ".locks" and not n.endswith(".lock"))
        return found


NOTHING: dict[str, list[str]] = {"uploads": [], "archives": [], "bundles": []}


def prepare(folder: Path, *, artefacts_url: str | None = None, **limits: object) -> FleetSettings:
    """A migrated database in `folder`. Not from a running event loop."""
    settings = FleetSettings(home=folder, artefacts_url=artefacts_url)
    with sqlite3.connect(_migrated()) as source, sqlite3.connect(folder / "fleet.db") as copy:
        source.backup(copy)
    source.close()
    copy.close()
    return settings.model_copy(update={"upload": settings.upload.model_copy(update=limits)})


@cache
def _migrated() -> Path:
    """A database that all migrations made, once for all tests."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    upgrade(f"sqlite+aiosqlite:///{folder}/fleet.db")
    return folder / "fleet.db"


async def open_builds(settings: FleetSettings) -> Builds:
    store, now = Store(settings.database), now_ms()
    project = str(uuid.uuid4())
    async with store.write() as session:
        session.add(Project(id=project, name="p", created_at=now, updated_at=now))
    submitted: list[str] = []
    return Builds(store, settings, BuildService(store, settings, submitted.append), project, submitted)
