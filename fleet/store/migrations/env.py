"""Alembic's entry: runs the migrations over the same async driver that the fleet uses."""

import asyncio
from typing import Any

from alembic import context
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import SQLModel

from fleet.store import lobby_tables, tables
from fleet.store.engine import WRITE_LOCK, database_url

for _registers in (tables, lobby_tables):
    assert _registers


# Only PostgreSQL has them: SQLite writes its journals in the order of their ids.
_ON_POSTGRES_ONLY = frozenset({"server_event_tx", "project_event_tx"})


def _compared(_object: Any, name: str | None, kind: str, _reflected: bool, _other: Any) -> bool:
    return kind != "index" or name not in _ON_POSTGRES_ONLY


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        render_as_batch=True,
        include_object=_compared,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":  # two that start at once: one after the other
            connection.execute(WRITE_LOCK)
        context.run_migrations()


async def _online() -> None:
    url = context.config.get_main_option("sqlalchemy.url")
    assert url
    engine = create_async_engine(database_url(url), poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(_run)
        await connection.commit()
    await engine.dispose()


asyncio.run(_online())
