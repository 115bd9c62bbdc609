"""How usage and money are shown: seconds and amounts as decimal text, exact."""

import csv
import io
from typing import Any, Literal

from pydantic import BaseModel, Field

from fleet.billing.statement import Line, Period, Statement
from fleet.times import iso

Money = str


class UsageLineOut(BaseModel):
    region: str
    compute_size: str
    kind: Literal["used", "idle"] = Field(description="idle: pool servers that nobody had claimed")
    seconds: str = Field(description="Exact, with milliseconds", examples=["3600.000"])
    price_per_hour: Money
    amount: Money


class UsageSumOut(BaseModel):
    seconds: str
    amount: Money


class UsagePeriodOut(BaseModel):
    start: str
    end: str
    lines: list[UsageLineOut]
    used: UsageSumOut
    idle: UsageSumOut
    total: UsageSumOut


class UsageOut(BaseModel):
    """Servers that run are counted up to `as_of`. Amounts are in `currency`."""

    project_id: str
    currency: str
    group: Literal["hour", "day", "month"]
    start: str
    end: str
    as_of: str
    periods: list[UsagePeriodOut]
    used: UsageSumOut
    idle: UsageSumOut
    total: UsageSumOut
    forecast_month_amount: Money | None = Field(description="What the present month will have cost, as it goes now")


def seconds(ms: int) -> str:
    return f"{ms // 1000}.{ms % 1000:03d}"


def money(micros: int) -> Money:
    return f"{micros // 1_000_000}.{micros % 1_000_000:06d}"


def statement_view(statement: Statement, forecast: int | None) -> dict[str, Any]:
    return {
        "project_id": statement.project_id,
        "currency": statement.currency,
        "group": statement.group,
        "start": iso(statement.start),
        "end": iso(statement.end),
        "as_of": iso(statement.as_of),
        "periods": [_period(period) for period in statement.periods],
        **_sums(statement),
        "forecast_month_amount": None if forecast is None else money(forecast),
    }


def _period(period: Period) -> dict[str, Any]:
    lines = [_line(line) for line in period.lines]
    return {"start": iso(period.start), "end": iso(period.end), "lines": lines, **_sums(period)}


def _sums(what: Statement | Period) -> dict[str, dict[str, str]]:
    sums: dict[str, dict[str, str]] = {
        kind: {"seconds": seconds(what.ms(kind)), "amount": money(what.amount(kind))} for kind in ("used", "idle")
    }
    return sums | {"total": {"seconds": seconds(what.ms()), "amount": money(what.amount())}}


def _line(line: Line) -> dict[str, str]:
    return {
        "region": line.region,
        "compute_size": line.size,
        "kind": line.kind,
        "seconds": seconds(line.ms),
        "price_per_hour": money(line.price),
        "amount": money(line.amount),
    }


def statement_csv(statement: Statement) -> str:
    """A row for each line of each period. No field of it is anyone's free text."""
    out = io.StringIO()
    names = ["start", "end", "region", "compute_size", "kind", "seconds", "price_per_hour", "amount", "currency"]
    writer = csv.DictWriter(out, names, lineterminator="\r\n")
    writer.writeheader()
    for period in statement.periods:
        for line in period.lines:
            times = {"start": iso(period.start), "end": iso(period.end)}
            writer.writerow({**times, **_line(line), "currency": statement.currency})
    return out.getvalue()
