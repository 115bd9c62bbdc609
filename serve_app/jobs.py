"""What replicas do beside answering requests, each job in one replica at a time (`fleet/jobs.py`)."""

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

from fleet.billing import budgets, ledger, meters
from fleet.events import dispatch
from fleet.events.webhooks import any_work
from fleet.jobs import run_leased
from fleet.retention.sweep import JOB as RETENTION
from fleet.retention.sweep import Retention
from serve_app.context import AppContext

USAGE_EVERY_S = 60.0
WEBHOOKS_EVERY_S = 1.0
BUDGETS_EVERY_S = 60.0
METERS_EVERY_S = 600.0
RETENTION_LIMIT_S = 6 * 3600.0  # a first pass over a long history; the next goes on where it ended


def _jobs(context: AppContext) -> list[Coroutine[Any, Any, None]]:
    store = context.store
    jobs: list[Coroutine[Any, Any, None]] = [
        run_leased(store, ledger.JOB, partial(ledger.aggregate, store), USAGE_EVERY_S),
        run_leased(store, dispatch.JOB, context.dispatcher.work, WEBHOOKS_EVERY_S, limit_s=None, needed=any_work),
        run_leased(store, budgets.JOB, context.budgets.review_all, BUDGETS_EVERY_S, needed=budgets.any_budget),
    ]
    retention = context.settings.retention
    forget = Retention(store, retention).work
    jobs.append(run_leased(store, RETENTION, forget, retention.every_s, limit_s=RETENTION_LIMIT_S))
    stripe = context.settings.stripe
    if stripe.key_file is not None and stripe.customers is not None:
        work = partial(meters.export_to_stripe, store, context.usage, stripe)
        jobs.append(run_leased(store, meters.JOB, work, METERS_EVERY_S, limit_s=3600))
    return jobs


def start_jobs(context: AppContext) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(job) for job in _jobs(context)]


async def stop_jobs(jobs: list[asyncio.Task[None]]) -> None:
    """Each gives its lease back."""
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
