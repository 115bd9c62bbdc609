"""Usage and bills for whoever asks: the API, admins, the command line, budgets."""

from fleet.billing.ledger import usage_of
from fleet.billing.prices import PriceBook
from fleet.billing.statement import (
    AFTER,
    BEGIN,
    DAY_MS,
    Group,
    Statement,
    forecast,
    make_statement,
    month_begin,
    month_end,
)
from fleet.errors import BadRequest
from fleet.store.engine import Store
from fleet.times import now_ms

MOST_MS: dict[Group, int] = {"hour": 93 * DAY_MS, "day": 732 * DAY_MS, "month": 3660 * DAY_MS}


class UsageService:
    """What a project used and owes. Nothing is written; running servers count up to `now`."""

    def __init__(self, store: Store, prices: PriceBook) -> None:
        self._store = store
        self._prices = prices

    async def statement(
        self, project_id: str, start: int, end: int, group: Group = "month", now: int | None = None
    ) -> Statement:
        """The whole hours, days or months (UTC) that [start, end) touches."""
        now = now_ms() if now is None else now
        if not 0 <= start < end:
            raise BadRequest("'from' must lie before 'to'.", error="Bad period")
        first, last = BEGIN[group](start), AFTER[group](BEGIN[group](end - 1))
        if last - first > MOST_MS[group]:
            days = MOST_MS[group] // DAY_MS
            raise BadRequest(f"At most {days} days can be asked for by {group}; ask in parts.", error="Bad period")
        usage = await usage_of(self._store, project_id, first, last, now)
        return make_statement(project_id, usage, self._prices.now(), group, first, last, now)

    async def month(self, project_id: str, at: int, now: int | None = None) -> Statement:
        """The month that a moment lies in, as one period."""
        return await self.statement(project_id, month_begin(at), month_end(at), "month", now)

    async def forecast(self, project_id: str, now: int | None = None) -> int:
        """What the present month will have cost, in millionths."""
        now = now_ms() if now is None else now
        start, end = month_begin(now), month_end(now)
        usage = await usage_of(self._store, project_id, min(start, now - 8 * DAY_MS), end, now)
        return forecast(usage, self._prices.now(), start, end, now)
