"""The API in this process: the real app over a real SQLite file, with region managers that only keep the books."""

import asyncio
import gc
import tempfile
import threading
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlmodel import SQLModel

from fleet.builds.service import BuildService
from fleet.catalog import load_catalog
from fleet.errors import Conflict, NotFound
from fleet.node.runtime import LogLine
from fleet.node.series import empty
from fleet.pools.claim import ClaimCall
from fleet.projects.model import NewProject
from fleet.projects.service import create_project
from fleet.proxy_secret import SECRET_HEADER, secret_file
from fleet.servers.model import LogPage, RestartChanges, UsageSeries
from fleet.settings import FleetSettings, LobbySettings, PipelineSettings, RateLimits
from fleet.store.engine import Store
from fleet.store.tables import Build, Server, ServerEvent
from fleet.times import now_ms
from serve_app.context import AppContext
from serve_app.http import create_app
from tests.unit.lobby_kit import LocalKeepers


class BookkeepingRegions:
    """The `Regions` protocol over the database alone: nothing runs, statuses change when a test says so."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.changed = asyncio.Condition()
        self.lines: list[LogLine] = []
        self.waiting = asyncio.Event()
        self.ops: list[str] = []
        self.warm: list[str] = []
        self.told: list[str] = []
        self.shown: list[dict[str, Any]] = []
        self.announced: dict[tuple[str, str, str, str], list[tuple[float, float]]] = {}
        self.full: set[str] = set()  # regions without room

    async def recover(self) -> None:
        return None

    async def start(self, row: Server) -> Server:
        if row.region in self.full:
            raise Conflict(f"Region {row.region} has no room.", error="Capacity limit reached")
        async with self.store.read() as session:
            if (known := await session.get(Server, row.instance_id)) is not None:
                return known
        row.network_ports = [self._published(port, 20000 + i) for i, port in enumerate(row.port_configs or [])]
        await self._save(row, "accepted")
        return row

    @staticmethod
    def _published(port: dict[str, Any], external: int) -> dict[str, Any]:
        return {**port, "external_port": external, "host": "127.0.0.1"}

    async def _save(self, row: Server, event: str) -> None:
        async with self.store.write() as session:
            await session.merge(row)
            await session.flush()
            session.add(
                ServerEvent(
                    instance_id=row.instance_id,
                    project_id=row.project_id,
                    region=row.region,
                    generation=row.generation,
                    at=now_ms(),
                    type=event,
                )
            )
        async with self.changed:
            self.changed.notify_all()

    async def change(self, instance_id: str, event: str, **values: Any) -> Server:
        async with self.store.read() as session:
            row = await session.get(Server, instance_id)
        if row is None:
            raise NotFound(f"There is no server {instance_id}.")
        for name, value in values.items():
            setattr(row, name, value)
        await self._save(row, event)
        return row

    async def claim(self, region: str, call: ClaimCall) -> Server | None:
        """The next of `warm` whose spec fits."""
        for name in self.warm:
            async with self.store.read() as session:
                row = await session.get(Server, name)
            if row is not None and row.pool_spec == call.spec and row.region == region:
                self.warm.remove(name)
                values = {
                    "last_op": call.op_id,
                    "name": call.name,
                    "custom_data": call.custom_data,
                    "match_id": call.match_id,
                }
                return await self.change(
                    name, "claimed", **values, ttl=call.ttl, pool_claimed_at=now_ms(), start_kind="hot"
                )
        return None

    async def pools_changed(self, regions: Iterable[str], project_id: str) -> None:
        self.told += regions

    async def pools(self, region: str, project_id: str) -> list[dict[str, Any]]:
        return [pool for pool in self.shown if pool["region"] == region]

    async def announce(
        self, region: str, project_id: str, size: str, build: str, expected: list[tuple[float, float]]
    ) -> None:
        self.announced[region, project_id, size, build] = expected

    async def update(self, region: str, instance_id: str, custom_data: dict[str, Any]) -> Server:
        return await self.change(instance_id, "updated", custom_data=custom_data)

    async def restart(self, region: str, instance_id: str, changes: RestartChanges, op_id: str) -> Server:
        self.ops.append(op_id)
        return await self.change(instance_id, "restarted", status="launching", last_op=op_id, **changes.values)

    async def stop(self, region: str, instance_id: str, reason: str, detail: str | None) -> Server:
        values = {"stop_reason": reason, "stop_detail": detail, "stopped_at": now_ms()}
        return await self.change(instance_id, "stopped", status="stopped", step="stopped", **values)

    async def wait(self, region: str, instance_id: str, statuses: set[str], timeout_s: float) -> None:
        async def status() -> str:
            async with self.store.read() as session:
                row = await session.get(Server, instance_id)
                return row.status if row else "gone"

        try:
            async with asyncio.timeout(timeout_s), self.changed:
                while await status() not in statuses:
                    self.waiting.set()
                    await self.changed.wait()
        except TimeoutError:
            return

    async def logs(self, server: Server, after: str | None, since_ms: int | None, limit: int) -> LogPage:
        lines = [line for line in self.lines if after is None or line.token > after]
        page = lines[:limit]
        return LogPage(page, "node-1", page[-1].token if len(lines) > limit else None)

    async def ready(self, region: str, instance_id: str) -> Server:
        """As of a build that is ready by its game's word."""
        return await self.change(instance_id, "running", status="running", step="running", started_at=now_ms())

    async def usage(self, server: Server, period_s: int, step_s: int) -> UsageSeries:
        self.asked_usage = (server.generation, period_s, step_s)
        return UsageSeries(max(step_s, 60), empty() | {"cpu_percent": [(60, 12.5)]})

    async def follow_logs(self, server: Server, after: str | None) -> AsyncIterator[list[LogLine]]:
        for line in self.lines:
            if after is None or line.token > after:
                yield [line]


@dataclass
class Api:
    """A client of the app, and what stands behind it."""

    app: FastAPI
    store: Store
    regions: BookkeepingRegions
    project: NewProject
    other: NewProject
    settings: FleetSettings
    client: httpx.AsyncClient
    submitted: list[str]
    keepers: LocalKeepers
    before: frozenset[threading.Thread]  # what ran when it was made
    start_body: dict[str, Any] = field(default_factory=lambda: {"name": "match", "region": "us-east"})

    async def close(self) -> None:
        """Nothing of it runs any more."""
        await self.client.aclose()
        await self.app.state.context.lobby_feed.close()  # else it would ask, and so make, another keeper
        await self.keepers.close()
        await self.app.state.context.close()
        await self._connections_end()

    async def _connections_end(self) -> None:
        """A connection whose user was cancelled is closed behind his back; its thread must not outlive the loop."""
        left = [
            thread for thread in threading.enumerate() if thread not in self.before and _serves_a_connection(thread)
        ]
        if left:
            gc.collect()  # ends those that belong to nobody any more
        for thread in left:
            await asyncio.to_thread(thread.join, 5)

    async def call(self, method: str, path: str, key: str | None = "", **kwargs: Any) -> httpx.Response:
        """A call with the server key, with `key`, or (None) without any."""
        headers = dict(kwargs.pop("headers", {}))
        if key is not None:
            headers["api-key"] = key or self.project.server_key
        return await self.client.request(method, path, headers=headers, **kwargs)

    async def start(self, **body: Any) -> dict[str, Any]:
        answer = await self.call("POST", "/api/v3/servers/start", json={**self.start_body, **body})
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def running(self, **body: Any) -> dict[str, Any]:
        server = await self.start(**body)
        await self.regions.change(
            server["instance_id"], "running", status="running", step="running", started_at=now_ms()
        )
        return server

    async def add_build(self, **values: Any) -> Build:
        return await add_build(self.store, values.pop("project_id", self.project.project_id), **values)


async def add_build(store: Store, project_id: str, **values: Any) -> Build:
    """A ready build, version 1 of "default", unless `values` say otherwise."""
    number = values.pop("version", 1)
    defaults = {
        "build_id": f"build-{values.get('name', 'default')}-{number}-{project_id[-12:]}",
        "name": "default",
        "status": "ready",
        "build_type": "zip",
        "executable_path": "Server.x86_64",
        "content_hash": "0" * 64,
    }
    build = Build(**{**defaults, **values}, project_id=project_id, version=number, created_at=now_ms())
    async with store.write() as session:
        session.add(build)
    return build


def _serves_a_connection(thread: threading.Thread) -> bool:
    return "_connection_worker_thread" in thread.name


@cache
def _empty_database() -> bytes:
    """A database file with all tables, made once: creating them takes longer than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "empty.db")
        engine = create_engine(f"sqlite:///{path}")
        SQLModel.metadata.create_all(engine)
        engine.dispose()
        return path.read_bytes()


def make_schema(path: Path) -> None:
    path.write_bytes(_empty_database())


async def _furnish(store: Store) -> tuple[NewProject, NewProject]:
    """Two projects, and one ready build in each."""
    one, two = await create_project(store, "one"), await create_project(store, "two")
    await add_build(store, one.project_id)
    await add_build(store, two.project_id)
    return one, two


_furnished: list[tuple[bytes, NewProject, NewProject]] = []


async def _furnished_database(path: Path) -> tuple[NewProject, NewProject]:
    """The same in each test's own file, made once: most of a short test's time would be waiting for the disk."""
    if not _furnished:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder, "fleet.db")
            make_schema(made)
            store = Store(f"sqlite+aiosqlite:///{made}")
            one, two = await _furnish(store)
            await store.close()
            assert not made.with_name("fleet.db-wal").exists()
            _furnished.append((made.read_bytes(), one, two))
    content, one, two = _furnished[0]
    path.write_bytes(content)
    return one, two


HOST = "fleet.test"  # what the tests call it
# Tests of other things ask faster than the defaults allow.
GENEROUS = RateLimits(
    reads_per_s=100_000,
    writes_per_s=100_000,
    lobby_reads_per_s=100_000,
    lobby_writes_per_s=100_000,
    lobby_writes_per_address_per_s=100_000,
    unknown_keys_per_minute=100_000,
)


PROXY_SECRET = "known to the proxy alone"


def by_proxy(**told: str) -> dict[str, str]:
    """Headers of a request that came through the fleet's proxy, which tells `client` and `scheme`."""
    return {SECRET_HEADER: PROXY_SECRET, **{f"x-fleet-{name}": value for name, value in told.items()}}


async def open_api(
    folder: Path, database_url: str | None = None, plans: Path | None = None, limits: RateLimits = GENEROUS
) -> Api:
    """An app of its own in `folder`, with two projects and one ready build in each; default: over SQLite."""
    before = frozenset(threading.enumerate())
    lobbies = LobbySettings(hold_s=0.3, host_grace_s=0.3, stats_s=0.3)
    many = PipelineSettings(at_once=1000, at_once_per_project=1000)  # nothing processes builds here: none may wait
    settings = FleetSettings(
        home=folder,
        host=HOST,
        database_url=database_url,
        plans_config=plans,
        lobbies=lobbies,
        limits=limits,
        pipeline=many,
    )
    (folder / "fleet-id").write_text("unit")
    secret_file(folder).write_text(PROXY_SECRET)
    furnished = await _furnished_database(folder / "fleet.db") if database_url is None else None
    store = Store(settings.database)
    one, two = furnished or await _furnish(store)
    regions = BookkeepingRegions(store)
    submitted: list[str] = []
    builds = BuildService(store, settings, submitted.append)
    keepers = LocalKeepers(store, settings, regions, builds)
    app = create_app(AppContext.make(settings, store, load_catalog(), builds, regions, keepers))
    transport = httpx.ASGITransport(app)
    return Api(
        app,
        store,
        regions,
        one,
        two,
        settings,
        httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}"),
        submitted,
        keepers,
        before,
    )
