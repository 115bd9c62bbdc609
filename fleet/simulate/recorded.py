"""The demand that a real pool has met, minute by minute, from the fleet's database."""

import asyncio
from pathlib import Path

from sqlmodel import col, func, select

from fleet.errors import FleetError
from fleet.settings import FleetSettings
from fleet.simulate.arrivals import from_minutes
from fleet.simulate.shapes import Demand
from fleet.store.engine import Store
from fleet.store.tables import PoolMinute


def recorded(settings: FleetSettings, name: str) -> Demand:
    """`name`: REGION/SIZE or REGION/SIZE/BUILD, all projects together. FleetError if nothing was recorded."""
    parts = name.split("/", 2)
    if len(parts) < 2:
        raise FleetError(f"'{name[:100]}' is no pool; write REGION/SIZE or REGION/SIZE/BUILD.", error="Bad pool name")
    minutes = asyncio.run(_minutes(settings, parts))
    if not minutes:
        raise FleetError(f"No starts are recorded of pool {name[:100]}.", error="No demand")
    return from_minutes(Path(name), minutes)


async def _minutes(settings: FleetSettings, parts: list[str]) -> list[tuple[float, int]]:
    query = (
        select(PoolMinute.at, func.sum(PoolMinute.arrivals))
        .where(col(PoolMinute.region) == parts[0], col(PoolMinute.compute_size) == parts[1])
        .group_by(col(PoolMinute.at))
        .order_by(col(PoolMinute.at))
    )
    if len(parts) == 3:
        query = query.where(col(PoolMinute.build_name) == parts[2])
    store = Store(settings.database)
    try:
        async with store.read() as session:
            return [(at / 1000, int(count)) for at, count in (await session.exec(query)).all()]
    finally:
        await store.close()
