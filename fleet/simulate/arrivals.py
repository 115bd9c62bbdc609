"""Recorded demand: a CSV of timestamps, one per start, or of counts per minute. Bad files are told by line."""

import csv
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from fleet.errors import FleetError
from fleet.simulate.shapes import Demand

MINUTE_S = 60.0
MAX_CLAIMS = 50_000_000
MAX_SPAN_S = 3 * 366 * 86_400.0
_TIME_NAMES = (
    "at",
    "time",
    "timestamp",
    "arrival",
    "arrived_at",
    "created_at",
    "started_at",
    "datetime",
    "date",
    "minute",
)
_COUNT_NAMES = ("arrivals", "count", "claims", "starts", "value", "n")


class BadArrivals(FleetError):
    """The file does not hold what it should; says where and what would be right."""

    error = "Bad input file"


def read_arrivals(path: Path, column: str | None = None, *, counts: bool = False) -> Demand:
    """The demand in the file. `counts`: each row is a time and how many came in the minute from then on."""
    header, rows = _table(path)
    place = _column(path, header, column, _TIME_NAMES if not counts else _COUNT_NAMES, -1 if counts else 0)
    if not counts:
        times = np.sort(np.array([_time(path, line, _cell(path, line, row, place)) for line, row in rows]))
        return _checked(path, times, float(times[0]) if len(times) else 0.0, None)
    when = _column(path, header, None, _TIME_NAMES, 0)
    return _from_counts(path, list(rows), when, place)


def read_leads(path: Path) -> tuple[float, ...]:
    """Lead times in seconds, one per line or in the first column that is a number."""
    header, rows = _table(path)
    place = _column(path, header, None, ("lead_seconds", "lead_s", "lead", "seconds", "lead_time"), 0)
    leads = tuple(_number(path, line, _cell(path, line, row, place)) for line, row in rows)
    if not leads:
        raise BadArrivals(f"{path} holds no lead times.")
    bad = next((lead for lead in leads if not 0 < lead <= 86_400), None)
    if bad is not None:
        raise BadArrivals(f"{path}: a lead time of {bad:g} s; wanted are seconds above 0, up to a day.")
    return leads


def _table(path: Path) -> tuple[list[str] | None, Iterator[tuple[int, list[str]]]]:
    """The header, if the first row is one, and the rows with their line numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadArrivals(f"{path} cannot be read as text: {error}") from None
    delimiter = next((sign for sign in (",", ";", "\t") if sign in text[:2000]), ",")
    try:
        rows = [(k, row) for k, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1) if any(row)]
    except csv.Error as error:
        raise BadArrivals(f"{path} is no CSV file: {error}") from None
    if not rows:
        raise BadArrivals(f"{path} is empty.")
    first = [cell.strip() for cell in rows[0][1]]
    has_header = not any(_as_time(cell) is not None for cell in first)
    return (first, iter(rows[1:])) if has_header else (None, iter(rows))


def _column(path: Path, header: list[str] | None, wanted: str | None, names: tuple[str, ...], default: int) -> int:
    lower = [name.lower() for name in header or []]
    if wanted is None:
        return next((lower.index(name) for name in names if name in lower), default)
    if wanted.isdigit() and wanted not in lower:
        return int(wanted)
    if wanted.lower() not in lower:
        known = ", ".join(header) if header else "none: it has no header; give the column's number, from 0"
        raise BadArrivals(f"{path} has no column '{wanted}'. Its columns: {known}.")
    return lower.index(wanted.lower())


def _cell(path: Path, line: int, row: list[str], place: int) -> str:
    try:
        return row[place].strip()
    except IndexError:
        raise BadArrivals(f"{path}, line {line}: has only {len(row)} columns.") from None


def _time(path: Path, line: int, text: str) -> float:
    found = _as_time(text)
    if found is None:
        raise BadArrivals(f"{path}, line {line}: '{text[:40]}' is no time; wanted are epoch seconds or ISO 8601.")
    return found


def _as_time(text: str) -> float | None:
    """Epoch seconds (milliseconds are recognised by their size) or ISO 8601, UTC if no zone is given."""
    try:
        number = float(text)
    except ValueError:
        pass
    else:
        if not math.isfinite(number) or number < 0:
            return None
        return number / 1000 if number > 1e11 else number
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _number(path: Path, line: int, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadArrivals(f"{path}, line {line}: '{text[:40]}' is no number.")
    return number


def _from_counts(path: Path, rows: list[tuple[int, list[str]]], when: int, place: int) -> Demand:
    minutes: list[float] = []
    counts: list[int] = []
    for k, (line, row) in enumerate(rows):
        one_column = len(row) == 1
        minutes.append(k * MINUTE_S if one_column else _time(path, line, _cell(path, line, row, when)))
        count = _number(path, line, _cell(path, line, row, 0 if one_column else place))
        if count < 0 or count != int(count):
            raise BadArrivals(f"{path}, line {line}: '{count:g}' is no count.")
        counts.append(int(count))
    return from_minutes(path, list(zip(minutes, counts, strict=True)))


def from_minutes(path: Path, found: list[tuple[float, int]]) -> Demand:
    """Starts from (minute's beginning, number in it), spread over their minutes by chance, the same each time."""
    minutes, counts = [at for at, _ in found], [count for _, count in found]
    if sum(counts) > MAX_CLAIMS:
        raise BadArrivals(f"{path} holds {sum(counts)} starts; at most {MAX_CLAIMS} can be replayed.")
    begins = np.repeat(np.array(minutes), np.array(counts, dtype=np.int64))
    times = np.sort(begins + np.random.default_rng(0).uniform(0, MINUTE_S, len(begins)))
    return _checked(path, times, min(minutes, default=0.0), max(minutes, default=0.0) + MINUTE_S)


def _checked(
    path: Path, times: "np.ndarray[tuple[int], np.dtype[np.float64]]", begins: float, ends: float | None
) -> Demand:
    if len(times) < 2:
        raise BadArrivals(f"{path} holds {len(times)} starts; at least two are needed.")
    last = float(times[-1]) if ends is None else ends
    if last - begins > MAX_SPAN_S:
        raise BadArrivals(f"{path} spans {(last - begins) / 86_400:.0f} days, more than three years: is a time wrong?")
    if last <= begins:
        raise BadArrivals(f"{path}: all starts have the same time.")
    return Demand(times, begins, max(last, begins + 1.0))
