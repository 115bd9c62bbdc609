"""What the database tells a scrape: live servers and builds, counted by grouped queries over indexes.

Stopped servers are not counted here: they are the history, which grows, and `fleet_stops_total` counts their ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Metric
from sqlalchemy import Executable, and_, func, select
from sqlmodel import col

from fleet.catalog import Catalog
from fleet.store.engine import Store
from fleet.store.tables import Build, Server, live
from fleet.telemetry.families import gauge, sums

ServerCount = tuple[str, str, str, bool, int]  # region, size, step, idle in a pool, number


@dataclass(frozen=True, slots=True)
class Stored:
    families: Sequence[Metric] = ()
    live_regions: frozenset[str] = field(default_factory=frozenset[str])


async def read_stored(store: Store, catalog: Catalog) -> Stored:
    """Servers by region, size and state, what they cost, and builds by status."""
    idle = and_(col(Server.is_pool_server), col(Server.pool_claimed_at).is_(None))
    keys: tuple[Any, ...] = (col(Server.region), col(Server.compute_size), col(Server.step), idle)
    servers: Executable = (
        select(*keys, func.count()).where(live(), col(Server.region).in_(tuple(catalog.regions))).group_by(*keys)
    )
    builds: Executable = select(col(Build.status), func.count()).group_by(col(Build.status))
    async with store.read() as session:
        connection = await session.connection()
        counts: list[Any] = list((await connection.execute(servers)).all())
        by_status = {(row[0],): float(row[1]) for row in (await connection.execute(builds)).all()}
    families = [*server_families(counts, catalog), gauge("fleet_builds", "Builds.", by_status, ("status",))]
    return Stored(families, frozenset(region for region, *_ in counts))


def server_families(live: Sequence[ServerCount], catalog: Catalog) -> list[Metric]:
    """A running server that waits in a pool is `warm`; `use` says the same for all of a pool's unclaimed ones."""

    def cost(size: str) -> float:
        known = catalog.sizes.get(size)
        return known.cost_per_hour if known else 0.0

    states = (
        ((region, size, "warm" if idle and step == "running" else step), float(number))
        for region, size, step, idle, number in live
    )
    costs = (
        ((region, size, "pool" if idle else "game"), number * cost(size)) for region, size, _step, idle, number in live
    )
    return [
        gauge("fleet_servers", "Live servers.", sums(states), ("region", "size", "state")),
        gauge("fleet_servers_cost_per_hour", "By configs/prices.yaml.", sums(costs), ("region", "size", "use")),
    ]
