"""A project's data as a ZIP of JSON lines, one file per table."""

import asyncio
import os
import zipfile
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import inspect
from sqlmodel import SQLModel, col, select

from fleet.projects.scope import owned
from fleet.projects.service import project_of
from fleet.projects.settings import shown
from fleet.store.commit import row_values
from fleet.store.engine import Store
from fleet.store.lobby_tables import Lobby, Match, PlayerRating
from fleet.store.tables import (
    AdminEvent,
    ApiKey,
    Budget,
    Build,
    BuildLog,
    MatchStart,
    PoolMemory,
    PoolMinute,
    ProjectEvent,
    Secret,
    Server,
    ServerEvent,
    UsageHour,
    Webhook,
    WebhookDelivery,
)

TABLES: tuple[type[SQLModel], ...] = (
    Build,
    Server,
    ServerEvent,
    ProjectEvent,
    AdminEvent,
    ApiKey,
    Secret,
    Webhook,
    WebhookDelivery,
    UsageHour,
    Budget,
    MatchStart,
    PoolMemory,
    PoolMinute,
    Lobby,
    Match,
    PlayerRating,
)
# What opens something stays here.
_SECRET = frozenset({"hash", "secret", "registry_credentials", "environment", "sealed"})
_PAGE = 1000


async def export_project(store: Store, project_id: str, path: Path) -> None:
    """Write the file. It appears whole or not at all; repeating it writes it anew."""
    await asyncio.to_thread(path.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("project.json", await _project(store, project_id))
        for table in TABLES:
            await _write_table(store, project_id, table, file)
        await _write_build_logs(store, project_id, file)
    await asyncio.to_thread(_settle, draft, path)


async def _project(store: Store, project_id: str) -> bytes:
    async with store.read() as session:
        project = await project_of(session, project_id)
    return orjson.dumps(
        row_values(project) | {"settings": shown(project.settings or {}, {})}, option=orjson.OPT_INDENT_2
    )


async def _write_table(store: Store, project_id: str, table: type[SQLModel], file: zipfile.ZipFile) -> None:
    """In the order of the primary key, a page at a time: a journal may be larger than memory."""
    keys: list[Any] = [getattr(table, str(column.key)) for column in inspect(table).primary_key]
    with file.open(f"{table.__name__.lower()}.jsonl", "w", force_zip64=True) as lines:
        page = owned(table, project_id).order_by(*keys).limit(_PAGE)
        query, written = page, 0
        while True:
            async with store.read() as session:
                rows = (await session.exec(query)).all()
            await asyncio.to_thread(lines.write, b"".join(_line(row) for row in rows))
            if len(rows) < _PAGE:
                return
            written += len(rows)
            # Journals have one key, by which each page is found at once.
            query = page.where(keys[0] > getattr(rows[-1], keys[0].key)) if len(keys) == 1 else page.offset(written)


async def _write_build_logs(store: Store, project_id: str, file: zipfile.ZipFile) -> None:
    with file.open("buildlog.jsonl", "w", force_zip64=True) as lines:
        async with store.read() as session:
            builds = (await session.exec(owned(Build, project_id))).all()
        for build in builds:
            query = select(BuildLog).where(col(BuildLog.build_id) == build.build_id).order_by(col(BuildLog.id))
            async with store.read() as session:
                rows = (await session.exec(query)).all()
            await asyncio.to_thread(lines.write, b"".join(_line(row) for row in rows))


def _line(row: SQLModel) -> bytes:
    values: dict[str, Any] = {name: value for name, value in row_values(row).items() if name not in _SECRET}
    return orjson.dumps(values, default=str) + b"\n"


def _settle(draft: Path, path: Path) -> None:
    with draft.open("rb+") as file:
        os.fsync(file.fileno())
    draft.replace(path)
