"""`fleet usage`: what projects used and owe."""

import asyncio
import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from sqlmodel import col, or_, select

from fleet.billing.budgets import decimal
from fleet.billing.prices import price_book
from fleet.billing.service import UsageService
from fleet.billing.statement import Statement, month_begin, month_end
from fleet.errors import FleetError, NotFound
from fleet.settings import FleetSettings, get_settings
from fleet.store.engine import Store
from fleet.store.tables import Project
from fleet.times import iso, now_ms

console = Console(highlight=False, soft_wrap=True)


class By(StrEnum):
    hour = "hour"
    day = "day"
    month = "month"


def usage(
    project: Annotated[str, typer.Argument(help="id or name of a project")] = "default",
    month: Annotated[str | None, typer.Option(help="YYYY-MM; default: the present one")] = None,
    group: Annotated[By, typer.Option(help="a line for each")] = By.month,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """A project's statement: time and money by region, size and kind."""
    try:
        statement, name, forecast = asyncio.run(_statement(get_settings(), project, _month(month), group))
    except FleetError as error:
        typer.echo(f"{error.error}: {error.detail}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(_plain(statement, forecast)))
        return
    console.print(_table(statement, name))
    console.print(f"Used {decimal(statement.amount('used'))}, idle pool {decimal(statement.amount('idle'))}, "
                  f"total {decimal(statement.amount())} {statement.currency}")  # fmt: skip
    if forecast is not None:
        console.print(f"Expected at month end: {decimal(forecast)} {statement.currency}")


def _month(text: str | None) -> int:
    if text is None:
        return now_ms()
    try:
        moment = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
    except ValueError:
        raise FleetError(f"'{text[:20]}' is not YYYY-MM.", error="Bad month") from None
    return int(moment.timestamp() * 1000)


async def _statement(settings: FleetSettings, project: str, at: int, group: By) -> tuple[Statement, str, int | None]:
    store = Store(settings.database)
    try:
        async with store.read() as session:
            named = or_(col(Project.id) == project, col(Project.name) == project)
            found = (await session.exec(select(Project).where(named).limit(2))).all()
        if len(found) != 1:
            which = "no project" if not found else "more than one project"
            raise NotFound(f"There is {which} '{project[:64]}'; name it by its id.", error="Project not found")
        service, now = UsageService(store, price_book(settings.prices_config)), now_ms()
        statement = await service.statement(found[0].id, month_begin(at), month_end(at), group.value, now)
        present = statement.start <= now < statement.end
        return statement, found[0].name, await service.forecast(found[0].id, now) if present else None
    finally:
        await store.close()


def _table(statement: Statement, name: str) -> Table:
    table = Table(title=f"{name}, {(iso(statement.start) or '')[:7]}", title_justify="left")
    for heading in ("from", "region", "size", "kind"):
        table.add_column(heading)
    for heading in ("seconds", "per hour", statement.currency):
        table.add_column(heading, justify="right")
    for period in statement.periods:
        for line in period.lines:
            shown = (f"{line.ms / 1000:.3f}", decimal(line.price), decimal(line.amount))
            table.add_row((iso(period.start) or "")[:16], line.region, line.size, line.kind, *shown)
    return table


def _plain(statement: Statement, forecast: int | None) -> dict[str, object]:
    lines = [
        {
            "start": iso(period.start),
            "region": line.region,
            "compute_size": line.size,
            "kind": line.kind,
            "ms": line.ms,
            "amount": decimal(line.amount),
        }
        for period in statement.periods
        for line in period.lines
    ]
    return {
        "project_id": statement.project_id,
        "currency": statement.currency,
        "lines": lines,
        "ms": statement.ms(),
        "amount": decimal(statement.amount()),
        "forecast": None if forecast is None else decimal(forecast),
    }
