"""From usage to money: lines, sums, a forecast. Pure; whole numbers throughout.

A line is the time of one region, size, kind and price within a period; it is rounded once, to a millionth, half to
even, and sums are sums of lines, so that every statement adds up as it is printed.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from fleet.billing.intervals import HOUR_MS, Kind
from fleet.billing.prices import Prices
from fleet.billing.usage import Usage

Group = Literal["hour", "day", "month"]
DAY_MS = 24 * HOUR_MS
_TREND_MS = 7 * DAY_MS


@dataclass(frozen=True, slots=True)
class Line:
    region: str
    size: str
    kind: Kind
    price: int  # millionths per hour
    ms: int
    amount: int  # millionths


@dataclass(frozen=True, slots=True)
class Period:
    """What ran in [start, end), and what it costs."""

    start: int
    end: int
    lines: tuple[Line, ...]

    def ms(self, kind: Kind | None = None) -> int:
        return sum(line.ms for line in self.lines if kind in (None, line.kind))

    def amount(self, kind: Kind | None = None) -> int:
        return sum(line.amount for line in self.lines if kind in (None, line.kind))


@dataclass(frozen=True, slots=True)
class Statement:
    """`as_of`: what runs is counted up to then."""

    project_id: str
    currency: str
    group: Group
    start: int
    end: int
    as_of: int
    periods: tuple[Period, ...]

    def ms(self, kind: Kind | None = None) -> int:
        return sum(period.ms(kind) for period in self.periods)

    def amount(self, kind: Kind | None = None) -> int:
        return sum(period.amount(kind) for period in self.periods)


def cost(ms: int, price: int) -> int:
    """Millionths for so many milliseconds at so many millionths an hour, half to even."""
    whole, rest = divmod(ms * price, HOUR_MS)
    if 2 * rest > HOUR_MS or (2 * rest == HOUR_MS and whole % 2):
        whole += 1
    return whole


def make_statement(
    project_id: str, usage: Usage, prices: Prices, group: Group, start: int, end: int, as_of: int
) -> Statement:
    """The periods in which something ran, oldest first."""
    times: defaultdict[int, defaultdict[tuple[str, str, Kind, int], int]] = defaultdict(lambda: defaultdict(int))
    begin = BEGIN[group]
    for cell, ms in usage.items():
        price = prices.per_hour(cell.region, cell.size, cell.kind, cell.hour)
        times[begin(cell.hour)][cell.region, cell.size, cell.kind, price] += ms
    periods = tuple(
        Period(
            at,
            AFTER[group](at),
            tuple(Line(*key, ms, cost(ms, key[3])) for key, ms in sorted(lines.items())),
        )
        for at, lines in sorted(times.items())
    )
    return Statement(project_id, prices.currency, group, start, end, as_of, periods)


def forecast(usage: Usage, prices: Prices, start: int, end: int, now: int) -> int:
    """Millionths that [start, end) will have cost: what it has, and the rate of the last week (or of as much of it as
    has seen use) for what is left. `usage` reaches back a week before `now`."""
    if not usage:
        return 0
    since = max(now - _TREND_MS, min(cell.hour for cell in usage))
    since -= since % HOUR_MS
    spent = trend = 0
    for cell, ms in usage.items():
        amount = ms * prices.per_hour(cell.region, cell.size, cell.kind, cell.hour)
        spent += amount if start <= cell.hour < end else 0
        trend += amount if since <= cell.hour else 0
    left = max(0, end - max(now, start))
    return (spent + trend * left // max(1, now - since)) // HOUR_MS


def _hour(at: int) -> int:
    return at - at % HOUR_MS


def _day(at: int) -> int:
    return at - at % DAY_MS


def month_begin(at: int) -> int:
    """Of the month (UTC) that a moment lies in."""
    moment = datetime.fromtimestamp(at // 1000, UTC)
    return _ms(moment.replace(day=1, hour=0, minute=0, second=0))


def month_end(at: int) -> int:
    moment = datetime.fromtimestamp(month_begin(at) // 1000, UTC)
    return _ms((moment + timedelta(days=32)).replace(day=1))


def _ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000


BEGIN: dict[Group, Callable[[int], int]] = {"hour": _hour, "day": _day, "month": month_begin}
AFTER: dict[Group, Callable[[int], int]] = {
    "hour": lambda at: at + HOUR_MS,
    "day": lambda at: at + DAY_MS,
    "month": month_end,
}
