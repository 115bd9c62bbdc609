"""Budgets: each alert once a month, a hard stop that stops starts and nothing else."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update
from sqlmodel import col, select

from fleet.billing.budgets import judge
from fleet.billing.statement import month_end
from fleet.store.tables import Budget, ProjectEvent, ServerEvent
from fleet.times import now_ms
from tests.unit.api_kit import Api

PATH = "/api/v3/projects/budget"
HOUR_MS = 3_600_000


@given(st.integers(1, 10**9), st.lists(st.integers(1, 1000), max_size=6), st.lists(st.integers(0, 10**9), max_size=8))
def test_each_alert_is_told_once_and_not_before_its_share(limit: int, alerts: list[int], spendings: list[int]) -> None:
    told: tuple[int, ...] = ()
    heard: list[int] = []
    for spent in sorted(spendings):
        verdict = judge(limit, alerts, spent, told)
        assert all(share * limit <= spent * 100 for share in verdict.alerts)
        assert verdict.stopped == (spent >= limit)
        told, heard = verdict.told, heard + list(verdict.alerts)
    assert len(heard) == len(set(heard))
    due = {share for share in alerts if spendings and max(spendings) * 100 >= share * limit}
    assert set(heard) == due


async def told(api: Api) -> list[tuple[str, Any]]:
    async with api.store.read() as session:
        query = select(ProjectEvent).where(col(ProjectEvent.kind) == "budget").order_by(col(ProjectEvent.id))
        return [(row.type, (row.data or {}).get("percent")) for row in (await session.exec(query)).all()]


async def runs_since(api: Api, ms: int) -> None:
    """A small server (0.01 an hour) that has run for so long."""
    await api.running()
    async with api.store.write() as session:
        await session.exec(update(ServerEvent).where(col(ServerEvent.type) == "running").values(at=now_ms() - ms))


async def test_a_budget_tells_stops_new_starts_and_lets_them_go_again(api: Api) -> None:
    assert (await api.call("GET", PATH)).status_code == 404
    await runs_since(api, 2 * HOUR_MS)
    body = {"monthly_limit": "1000", "alerts": [100, 50, 50], "hard_stop": True}
    found = (await api.call("PUT", PATH, json=body)).json()
    assert (found["monthly_limit"], found["alerts"], found["used_up"]) == ("1000.000000", [50, 100], False)
    assert await told(api) == []
    found = (await api.call("PUT", PATH, json={**body, "monthly_limit": 0.000002})).json()
    assert (found["used_up"], found["alerts_told"]) == (True, [50, 100])
    assert await told(api) == [("budget.alert", 50), ("budget.alert", 100), ("budget.used_up", None)]
    api.app.state.context.projects._known.clear()  # keys are remembered for seconds
    refused = await api.call("POST", "/api/v3/servers/start", json=api.start_body)
    assert (refused.status_code, refused.json()["error"]) == (403, "Budget limit reached")
    await api.app.state.context.budgets.review_all()
    assert len(await told(api)) == 3, "nothing is told twice"
    found = (await api.call("PUT", PATH, json=body)).json()
    assert found["used_up"] is False
    assert (await told(api))[-1] == ("budget.available", None)
    api.app.state.context.projects._known.clear()
    await api.start()


async def test_without_hard_stop_starts_go_on(api: Api) -> None:
    await runs_since(api, HOUR_MS)
    found = (await api.call("PUT", PATH, json={"monthly_limit": "0.000001"})).json()
    assert (found["used_up"], found["hard_stop"]) == (True, False)
    api.app.state.context.projects._known.clear()
    await api.start()


async def test_a_new_month_begins_anew(api: Api) -> None:
    await runs_since(api, HOUR_MS)
    found = (await api.call("PUT", PATH, json={"monthly_limit": "0.000001", "hard_stop": True})).json()
    assert found["used_up"] is True
    [server] = (await api.call("GET", "/api/v3/servers")).json()["servers"]
    await api.call("DELETE", f"/api/v3/servers/{server['instance_id']}")
    then = month_end(now_ms()) + 1000
    await api.app.state.context.budgets.review(api.project.project_id, then)
    async with api.store.read() as session:
        budget = (await session.exec(select(Budget))).one()
    assert (budget.stopped, list((budget.told or {}).values())) == (False, [[]])


async def test_budgets_are_their_projects_own(api: Api) -> None:
    await api.call("PUT", PATH, json={"monthly_limit": 5})
    assert (await api.call("GET", PATH, key=api.other.server_key)).status_code == 404
    assert (await api.call("DELETE", PATH, key=api.other.server_key)).status_code == 404
    assert (await api.call("PUT", PATH, key=api.project.client_key, json={"monthly_limit": 5})).status_code == 403
    assert (await api.call("DELETE", PATH)).status_code == 204
    assert (await api.call("DELETE", PATH)).status_code == 404


async def test_bad_budgets(api: Api) -> None:
    for body in (
        {}, {"monthly_limit": 0}, {"monthly_limit": -1}, {"monthly_limit": "NaN"}, {"monthly_limit": "1e99"},
        {"monthly_limit": "0.0000001"}, {"monthly_limit": 1, "alerts": [0]}, {"monthly_limit": 1, "alerts": ["x"]},
        {"monthly_limit": 1, "more": 1}, {"monthly_limit": None},
    ):  # fmt: skip
        assert (await api.call("PUT", PATH, json=body)).status_code == 422, body
