"""What the project used, what it costs, and what it may cost."""

import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import HTMLResponse, Response

from fleet.billing.invoice import invoice
from fleet.billing.statement import month_begin
from fleet.errors import BadRequest
from fleet.times import now_ms
from serve_app.auth import Context, ServerKey
from serve_app.json import StrictJsonRoute, json_response
from serve_app.policy import Caller, Policy
from serve_app.v3.common import errors
from serve_app.v3.usage_schemas import UsageOut, statement_csv, statement_view

router = APIRouter(prefix="/api/v3", route_class=StrictJsonRoute, tags=["Usage"])
MAY_CALL: Policy = {
    "usage": Caller.SERVER,
    "usage_invoice": Caller.SERVER,
}
_PAGE_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
Moment = Annotated[str | None, Query(max_length=40, description="ISO 8601, e.g. `2026-01-31` (UTC)")]


@router.get(
    "/usage",
    response_model=UsageOut,
    responses={
        **errors(400, 401, 403),
        200: {
            "description": "Time and money by period, region, size and kind",
            "content": {"text/csv": {"schema": {"type": "string"}}},
        },
    },
    summary="Usage and its cost",
)
async def usage(
    caller: ServerKey,
    context: Context,
    start: Annotated[Moment, Query(alias="from")] = None,
    end: Annotated[Moment, Query(alias="to")] = None,
    group: Literal["hour", "day", "month"] = "day",
    format: Literal["json", "csv"] = "json",
) -> Response:
    """Of the whole hours, days or months (UTC) between `from` (default: the month's beginning) and `to` (now).

    Servers that run are counted up to now. Pool servers that nobody has claimed are `idle` (an extension)."""
    now = now_ms()
    first = _moment(start, "from") if start else month_begin(now)
    last = _moment(end, "to") if end else max(now, first) + 1
    statement = await context.usage.statement(caller.project_id, first, last, group, now)
    if format == "csv":
        name = f'attachment; filename="usage-{group}.csv"'
        return Response(statement_csv(statement), media_type="text/csv", headers={"content-disposition": name})
    forecast = await context.usage.forecast(caller.project_id, now) if first <= now < statement.end else None
    return json_response(statement_view(statement, forecast))


@router.get(
    "/usage/invoice",
    response_class=Response,
    responses={
        **errors(400, 401, 403),
        200: {"description": "A page to print", "content": {"text/html": {"schema": {"type": "string"}}}},
    },
    summary="A month's statement to print",
)
async def usage_invoice(
    caller: ServerKey,
    context: Context,
    month: Annotated[str | None, Query(max_length=16, description="`YYYY-MM`; default: the present one")] = None,
) -> Response:
    """The same figures as `/usage?group=month`, as one page of HTML (an extension)."""
    now = now_ms()
    at = _month(month) if month else now
    statement = await context.usage.month(caller.project_id, at, now)
    project = await context.projects.settings(caller.project_id)
    forecast = await context.usage.forecast(caller.project_id, now) if month_begin(now) == statement.start else None
    return HTMLResponse(invoice(statement, project.name, forecast), headers=_PAGE_HEADERS)


def _moment(text: str, name: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        ms = int(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        ms = -1
    if not 0 <= ms < 2**42:
        raise BadRequest(f"'{name}' is no time such as 2026-01-31 or 2026-01-31T12:00:00Z.", error="Bad period")
    return ms


def _month(text: str) -> int:
    if not re.fullmatch(r"\d{4}-\d\d", text, re.ASCII):
        raise BadRequest("'month' is written YYYY-MM.", error="Bad period")
    return _moment(f"{text}-01", "month")
