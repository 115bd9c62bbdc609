"""Pools' notices as entries of the project journal, for the commit that is due."""

from collections.abc import Mapping

from fleet.events.journal import event_statement, project_event
from fleet.pools.config import PoolKey
from fleet.pools.notices import notices
from fleet.pools.pool import Pool
from fleet.store.commit import Statement


def notice_statements(region: str, pools: Mapping[PoolKey, Pool], now: int) -> list[Statement]:
    """What the owners of the region's pools are to be told now; as a rule nothing."""
    events = [
        project_event(key[0], "pool", _subject(region, key), f"pool.{what}", _data(region, pool), now)
        for key, pool in pools.items()
        for what in _due(pool, now)
    ]
    return [event_statement(events)] if events else []


def _due(pool: Pool, now: int) -> list[str]:
    warm = pool.shelf.count(pool.spec or "", "warm")
    pool.told, found = notices(pool.told, now, pool.failures, warm, pool.levels.target)
    return list(found)


def _subject(region: str, key: PoolKey) -> str:
    return "/".join((region, *key[1:]))


def _data(region: str, pool: Pool) -> dict[str, object]:
    spec = pool.spec or ""
    return {
        "region": region,
        "compute_size": pool.wish.compute_size,
        "build": pool.wish.build_name,
        "target": pool.levels.target,
        "warm": pool.shelf.count(spec, "warm"),
        "booting": pool.shelf.count(spec, "booting"),
        "failures": pool.failures,
        "last_failure": pool.last_failure if pool.failures else None,
    }
