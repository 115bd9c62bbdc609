"""Whether a replica should be replaced: only where a new one would do better.

A database that is away is away for a new replica too, so that never ends one. A background task that has failed for
long while the database can be read and written may be in a state that a new process is not in; it is worth one
replacement. All replicas mostly fail alike, so each waits for a time of its own (`patience_s`), and a new one begins
to count anew: a replica is replaced every ten minutes at most, and never all at once.
"""

import asyncio
import random

import structlog

from fleet.actors.health import TaskHealth, process_health
from fleet.store.engine import may_pass
from serve_app.context import AppContext

log = structlog.get_logger(__name__)

PATIENCE_S = 600.0
WRITE_S = 5.0  # for the look whether the database takes writes


class TasksFail(Exception):
    """Background tasks of this replica have failed for long."""


class ReplicaHealth:
    """`check` raises if the replica is to be replaced."""

    def __init__(self, tasks: TaskHealth = process_health, patience_s: float | None = None) -> None:
        self._tasks = tasks
        self._patience_s = PATIENCE_S * random.uniform(1.0, 2.0) if patience_s is None else patience_s

    async def check(self, context: AppContext) -> None:
        try:
            await context.check()
        except Exception as error:
            if isinstance(error, TimeoutError) or may_pass(error):
                return  # a new replica could not read it either
            raise
        failing = [one for one in self._tasks.failing() if one.for_s >= self._patience_s]
        if failing and await _takes_writes(context):
            told = "; ".join(f"{one.task} for {one.for_s:.0f} s: {one.error[:200]}" for one in failing[:3])
            log.error("replica_unhealthy", failing=told)
            raise TasksFail(told)


async def _takes_writes(context: AppContext) -> bool:
    try:
        async with asyncio.timeout(WRITE_S), context.store.write() as session:
            await session.connection()  # takes the lock
            return True
    except Exception:
        return False
