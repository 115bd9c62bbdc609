"""A project's monthly budget: alerts at shares of it, and no new starts once it is used up, if its owner wants that.

The verdict is pure; the job looks at every budget each minute, and writes what has changed together with the events
that tell of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlmodel import col, select

from fleet.billing.prices import MILLION
from fleet.billing.service import UsageService
from fleet.billing.statement import month_begin
from fleet.errors import NotFound
from fleet.events.journal import project_event
from fleet.jobs import Lease
from fleet.projects.scope import owned
from fleet.store.engine import Store
from fleet.store.tables import Budget
from fleet.times import iso, now_ms

JOB = "budgets"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`alerts`: percentages to tell of now; `told`: those told of this month, with these."""

    stopped: bool
    alerts: tuple[int, ...]
    told: tuple[int, ...]


def judge(limit: int, alerts: Iterable[int], spent: int, told: Iterable[int]) -> Verdict:
    """What follows from what this month has cost. Each alert is told once a month, at or after its share."""
    known = set(told)
    new = tuple(sorted(share for share in set(alerts) - known if spent * 100 >= share * limit))
    return Verdict(spent >= limit, new, tuple(sorted(known | set(new))))


async def any_budget(store: Store) -> bool:
    async with store.read() as session:
        return (await session.exec(select(Budget.project_id).limit(1))).first() is not None


@dataclass(frozen=True, slots=True)
class BudgetView:
    """A budget, and where the month stands; money in millionths."""

    budget: Budget
    currency: str
    month: int
    spent: int
    forecast: int


class BudgetService:
    def __init__(self, store: Store, usage: UsageService) -> None:
        self._store = store
        self._usage = usage

    async def get(self, project_id: str) -> BudgetView:
        async with self._store.read() as session:
            budget = (await session.exec(owned(Budget, project_id))).first()
        if budget is None:
            raise NotFound("The project has no budget. PUT one.", error="No budget")
        return await self._view(budget)

    async def set(self, project_id: str, limit: int, alerts: list[int], *, hard_stop: bool) -> BudgetView:
        """In force at once: what is used up already is told, and stops, now."""
        async with self._store.write() as session:
            budget = (await session.exec(owned(Budget, project_id))).first()
            budget = budget or Budget(project_id=project_id, month_limit=limit, updated_at=0)
            if budget.month_limit != limit:
                budget.told = None  # shares of another sum
            budget.month_limit, budget.alerts, budget.hard_stop = limit, sorted(set(alerts)), hard_stop
            budget.updated_at = now_ms()
            session.add(budget)
        await self.review(project_id)
        return await self.get(project_id)

    async def delete(self, project_id: str) -> None:
        async with self._store.write() as session:
            budget = (await session.exec(owned(Budget, project_id))).first()
            if budget is None:
                raise NotFound("The project has no budget.", error="No budget")
            await session.delete(budget)

    async def review_all(self, lease: Lease | None = None) -> None:
        """Every project's budget. The job's work."""
        async with self._store.read() as session:
            projects = (await session.exec(select(Budget.project_id).order_by(col(Budget.project_id)))).all()
        for project_id in projects:
            await self.review(project_id)

    async def review(self, project_id: str, now: int | None = None) -> None:
        """Judge one budget by what the present month has cost; tell of what is new."""
        now = now_ms() if now is None else now
        statement = await self._usage.month(project_id, now, now)
        async with self._store.write() as session:
            budget = (await session.exec(owned(Budget, project_id))).first()
            if budget is None:
                return
            month, spent = str(month_begin(now)), statement.amount()
            told = (budget.told or {}).get(month, [])
            verdict = judge(budget.month_limit, budget.alerts or [], spent, told)
            data = _told(budget, statement.currency, now, spent)
            for share in verdict.alerts:
                session.add(_event(budget, "alert", data | {"percent": share}))
            if verdict.stopped != budget.stopped:
                session.add(_event(budget, "used_up" if verdict.stopped else "available", data))
            told_now = {month: list(verdict.told)}
            if (verdict.stopped, told_now) != (budget.stopped, budget.told):
                budget.stopped, budget.told = verdict.stopped, told_now
                session.add(budget)

    async def _view(self, budget: Budget) -> BudgetView:
        now = now_ms()
        statement = await self._usage.month(budget.project_id, now, now)
        forecast = await self._usage.forecast(budget.project_id, now)
        return BudgetView(budget, statement.currency, statement.start, statement.amount(), forecast)


def _told(budget: Budget, currency: str, now: int, spent: int) -> dict[str, Any]:
    return {
        "month": (iso(month_begin(now)) or "")[:7],
        "monthly_limit": decimal(budget.month_limit),
        "spent": decimal(spent),
        "currency": currency,
        "hard_stop": budget.hard_stop,
    }


def _event(budget: Budget, what: str, data: dict[str, Any]) -> Any:
    return project_event(budget.project_id, "budget", budget.project_id, f"budget.{what}", data)


def decimal(micros: int) -> str:
    """Millionths as the decimal number they are."""
    return f"{micros // MILLION}.{micros % MILLION:06d}"
