"""Which builds are processed now: a few at the same time, in turns between projects. The rows are the queue.

A build waits as a row in processing that no run holds. It is begun when it comes, if it is its turn, else by the run
that ends next, at the latest by `BuildService.recover`. A run that begins out of turn does not get the build's lease.
"""

from collections import Counter

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from fleet.limits.fair import Places, next_turns
from fleet.settings import PipelineSettings
from fleet.store.tables import Build

LEASE_MS = 15_000
_LOOKED_AT = 1000


def places_of(settings: PipelineSettings) -> Places:
    return Places(settings.at_once, settings.at_once_per_project, settings.at_once // 4)


async def may_begin(session: AsyncSession, settings: PipelineSettings, build_id: str, now: int) -> bool:
    """Whether there is a place for this build now, whoever else waits."""
    busy = await _busy(session, now, but=build_id)
    project = (await session.exec(select(Build.project_id).where(col(Build.build_id) == build_id))).first()
    free = settings.at_once - busy.total()
    return project is None or places_of(settings).may(busy[project], free)


async def next_builds(session: AsyncSession, settings: PipelineSettings, now: int) -> list[str]:
    """Ids of builds that no run holds and whose turn it is, in that order."""
    free = col(Build.lease_until).is_(None) | (col(Build.lease_until) < now)
    rows = select(Build.project_id, Build.build_id).where(col(Build.status) == "processing", free)
    oldest = rows.order_by(col(Build.created_at), col(Build.build_id)).limit(_LOOKED_AT)
    waiting: dict[str, list[str]] = {}
    for project_id, build_id in (await session.exec(oldest)).all():
        waiting.setdefault(project_id, []).append(build_id)
    busy = await _busy(session, now)
    turns = next_turns(places_of(settings), busy, {project: len(builds) for project, builds in waiting.items()})
    return [waiting[project].pop(0) for project in turns]


async def _busy(session: AsyncSession, now: int, but: str = "") -> Counter[str]:
    """By project: the builds that a run holds. Where the next attempt is due later, none does."""
    held = (col(Build.lease_until) >= now, col(Build.lease_until) <= now + LEASE_MS, col(Build.build_id) != but)
    rows = await session.exec(select(Build.project_id).where(col(Build.status) == "processing", *held))
    return Counter(rows.all())
