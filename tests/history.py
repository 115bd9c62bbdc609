"""A database with a long history: ended servers and what they leave behind, made by the database itself in seconds.

All of it is one project's, in one region, one server a second, the newest an hour old; nothing of it is live. For the
tests that count a query's work, and for `bench/history.py`.
"""

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from fleet.store.engine import Store

PROJECT, BUILD, REGION = "p-history", "b-history", "eu-west"
HOUR_MS = 3_600_000
# type, milliseconds after the start
LIFE = (
    ("queued", 0), ("placed", 5), ("preparing", 10), ("creating", 20), ("booting", 400),
    ("running", 2_000), ("claimed", 3_000), ("stopping", 900_000), ("stopped", 901_000),
)  # fmt: skip
_PORTION = 50_000

_NUMBERS_SQLITE = "WITH RECURSIVE numbers(n) AS (SELECT :low UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :high)"
_NUMBERS_POSTGRES = "WITH numbers(n) AS (SELECT generate_series(CAST(:low AS bigint), CAST(:high AS bigint) - 1))"
_AT = "(:newest - (:count - n) * 1000)"

_SERVERS = f"""
INSERT INTO server (instance_id, project_id, region, name, status, step, compute_size, build_id, version_tag, version,
  auto_restart, ttl, custom_data, match_id, environment, port_configs, network_ports, start_kind, is_pool_server,
  pool_claimed_at, pool_spec, node_id, generation, last_op, stop_reason, shutdown_reason, exit_code, created_at,
  updated_at, launched_at, step_at, started_at, stopped_at)
NUMBERS
SELECT 's-' || n, '{PROJECT}', '{REGION}', 'match', 'stopped', 'stopped', 'small', '{BUILD}', 'default', 1,
  false, 3600, '{{"mode": "duel", "teams": ["a", "b"]}}', 'm-' || n, '{{}}',
  '[{{"name": "game", "internal_port": 7777, "protocol": "udp"}}]', NULL, 'hot', true,
  {_AT} + 3000, 'spec', 'node-1', 1, 'op-' || n, 'requested', 'SHUTDOWN_SIGNAL', 143, {_AT},
  {_AT} + 901000, {_AT}, {_AT} + 901000, {_AT} + 2000, {_AT} + 901000
FROM numbers
"""
_EVENTS = f"""
INSERT INTO serverevent (instance_id, project_id, region, generation, at, type, data)
NUMBERS
SELECT 's-' || n, '{PROJECT}', '{REGION}', 1, {_AT} + after, type, '{{"node": "node-1"}}'
FROM numbers CROSS JOIN (LIFE) AS life ORDER BY n, after
"""
_MATCH_STARTS = f"""
INSERT INTO matchstart (project_id, match_id, instance_id, region, holders, created_at)
NUMBERS SELECT '{PROJECT}', 'm-' || n, 's-' || n, '{REGION}', 1, {_AT} FROM numbers
"""
_MATCHES = f"""
INSERT INTO match (match_id, project_id, shard, config, mode, status, region, server_id, state, created_at, updated_at)
NUMBERS
SELECT 'm-' || n, '{PROJECT}', 0, 'default', 'duel', 'ended', '{REGION}', 's-' || n, '{{"teams": []}}', {_AT},
  {_AT} + 901000
FROM numbers
"""
_PROJECT_EVENTS = f"""
INSERT INTO projectevent (project_id, kind, subject, type, at, data)
NUMBERS SELECT '{PROJECT}', 'lobby', 'm-' || n, 'lobby.match_ended', {_AT}, NULL FROM numbers
"""


async def fill(store: Store, count: int, now: int) -> None:
    """`count` ended servers with their events, matches and starts; and the project and its build."""
    async with store.write() as session:
        await _begin(session, now)
    numbers = _NUMBERS_SQLITE if store.sqlite else _NUMBERS_POSTGRES
    life = " UNION ALL ".join(f"SELECT '{kind}' AS type, {after} AS after" for kind, after in LIFE)
    for low in range(0, count, _PORTION):
        given = {"low": low, "high": min(low + _PORTION, count), "count": count, "newest": now - HOUR_MS - 901_000}
        for statement in (_SERVERS, _EVENTS, _MATCH_STARTS, _MATCHES, _PROJECT_EVENTS):
            sql = statement.replace("NUMBERS", numbers).replace("(LIFE)", f"({life})")
            async with store.write_connection() as connection:
                if not store.sqlite:  # references need no check here, which would take most of the time
                    await connection.execute(text("SET LOCAL session_replication_role = replica"))
                await connection.execute(text(sql), given)


async def _begin(session: AsyncSession, now: int) -> None:
    connection = await session.connection()
    project = "INSERT INTO project (id, name, plan, created_at, updated_at) VALUES (:id, 'history', 'pro', :now, :now)"
    await connection.execute(text(project), {"id": PROJECT, "now": now})
    build = (
        "INSERT INTO build (build_id, project_id, name, version, status, build_type, writable, created_at, updated_at)"
        " VALUES (:build, :id, 'default', 1, 'ready', 'zip', false, :now, :now)"
    )
    await connection.execute(text(build), {"build": BUILD, "id": PROJECT, "now": now})
