"""What replicas do beside answering requests, each job in one replica at a time (`fleet/jobs.py`)."""

from functools import partial

from fleet.actors.tasks import SupervisedTasks
from fleet.billing import budgets, ledger, meters
from fleet.events import dispatch
from fleet.events.webhooks import any_work
from fleet.jobs import RETRY_FIRST_S, Needed, Work, retry_most_s, run_leased
from fleet.retention.sweep import JOB as RETENTION
from fleet.retention.sweep import Retention
from serve_app.context import AppContext

USAGE_EVERY_S = 60.0
WEBHOOKS_EVERY_S = 1.0
BUDGETS_EVERY_S = 60.0
METERS_EVERY_S = 600.0
ROUND_S = 600.0  # one round of a job at most; it is then tried again
METERS_ROUND_S = 3600.0
RETENTION_ROUND_S = 6 * 3600.0  # a first pass over a long history; the next goes on where it ended


def start_jobs(context: AppContext, tasks: SupervisedTasks) -> None:
    """Until `tasks` are closed; each then gives its lease back."""

    def job(name: str, work: Work, every_s: float, limit_s: float | None, needed: Needed | None = None) -> None:
        leased = partial(run_leased, context.store, name, work, every_s, limit_s=limit_s, needed=needed)
        tasks.keep(f"job_{name}", leased, first_s=RETRY_FIRST_S, most_s=retry_most_s(every_s))

    job(ledger.JOB, partial(ledger.aggregate, context.store), USAGE_EVERY_S, ROUND_S)
    job(dispatch.JOB, context.dispatcher.work, WEBHOOKS_EVERY_S, None, any_work)
    job(budgets.JOB, context.budgets.review_all, BUDGETS_EVERY_S, ROUND_S, budgets.any_budget)
    retention = context.settings.retention
    job(RETENTION, Retention(context.store, retention).work, retention.every_s, RETENTION_ROUND_S)
    stripe = context.settings.stripe
    if stripe.key_file is not None and stripe.customers is not None:
        work = partial(meters.export_to_stripe, context.store, context.usage, stripe)
        job(meters.JOB, work, METERS_EVERY_S, METERS_ROUND_S)
