"""The project's monthly budget."""

from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from starlette.responses import Response

from fleet.billing.budgets import BudgetView, decimal
from fleet.billing.prices import MILLION
from fleet.times import iso
from serve_app.auth import Context, ServerKey
from serve_app.json import StrictJsonRoute, json_response
from serve_app.policy import Caller, Policy
from serve_app.v3.common import NUMBER, Body, Flag, errors

router = APIRouter(prefix="/api/v3/projects/budget", route_class=StrictJsonRoute, tags=["Usage"])
MAY_CALL: Policy = {
    "get_budget": Caller.SERVER,
    "put_budget": Caller.SERVER,
    "delete_budget": Caller.SERVER,
}

# Pydantic's own schema would promise that every string is an amount.
_MONEY = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 10**9},
        {"type": "string", "pattern": r"^(0\.[0-9]{0,5}[1-9]|[1-9][0-9]{0,8}(\.[0-9]{1,6})?)$"},
    ]
}


class BudgetIn(Body):
    model_config = ConfigDict(extra="forbid")
    monthly_limit: Annotated[
        Decimal,
        Field(gt=0, lt=10**9, decimal_places=6, description="In the prices' currency"),
        WithJsonSchema(_MONEY),
    ]
    alerts: Annotated[list[Annotated[int, Field(ge=1, le=1000), NUMBER]], Field(max_length=20)] = Field(
        default=[50, 80, 100], description="Percentages of the limit to be told of, once a month each"
    )
    hard_stop: Flag = Field(default=False, description="Refuse new starts once the limit is reached")


class BudgetOut(BaseModel):
    monthly_limit: str
    currency: str
    alerts: list[int]
    hard_stop: bool
    used_up: bool
    month: str = Field(examples=["2026-02"])
    spent: str
    forecast: str = Field(description="What the month will have cost, as it goes now")
    alerts_told: list[int]
    updated_at: str


@router.get("", response_model=BudgetOut, responses=errors(401, 403, 404), summary="Budget")
async def get_budget(caller: ServerKey, context: Context) -> Response:
    """The budget, and where this month stands (an extension)."""
    return json_response(_view(await context.budgets.get(caller.project_id)))


@router.put("", response_model=BudgetOut, responses=errors(400, 401, 403), summary="Set the budget")
async def put_budget(body: BudgetIn, caller: ServerKey, context: Context) -> Response:
    """In force at once. Alerts are `budget.alert` events, which webhooks can be sent. Running servers are never
    stopped; with `hard_stop`, new starts are refused (403) until the limit is raised or the month ends."""
    limit = int(body.monthly_limit * MILLION)
    view = await context.budgets.set(caller.project_id, limit, body.alerts, hard_stop=body.hard_stop)
    return json_response(_view(view))


@router.delete("", status_code=204, responses=errors(401, 403, 404), summary="Remove the budget")
async def delete_budget(caller: ServerKey, context: Context) -> Response:
    """Starts are free again within seconds."""
    await context.budgets.delete(caller.project_id)
    return Response(status_code=204)


def _view(view: BudgetView) -> dict[str, Any]:
    budget = view.budget
    return {
        "monthly_limit": decimal(budget.month_limit),
        "currency": view.currency,
        "alerts": budget.alerts or [],
        "hard_stop": budget.hard_stop,
        "used_up": budget.stopped,
        "month": (iso(view.month) or "")[:7],
        "spent": decimal(view.spent),
        "forecast": decimal(view.forecast),
        "alerts_told": (budget.told or {}).get(str(view.month), []),
        "updated_at": iso(budget.updated_at),
    }
