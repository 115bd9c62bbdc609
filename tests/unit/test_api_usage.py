"""Usage and statements through the API: exact, by period, as JSON, CSV and a page."""

import csv
import io
from decimal import Decimal

from fleet.billing.statement import DAY_MS, month_begin, month_end
from fleet.catalog import load_catalog
from fleet.simulate.life import Life
from fleet.store.tables import Project
from fleet.times import iso, now_ms
from tests.unit.api_kit import Api

HOUR_MS = 3_600_000
MONTH = month_begin(1_770_000_000_000)  # February 2026
FEBRUARY = {"from": "2026-02-01", "to": "2026-03-01"}


async def live_a_little(api: Api) -> None:
    """A match of 90 minutes with a restart of ten seconds in it, and a pool server that idles for half an hour."""
    life = Life(api.store, api.settings, load_catalog(), api.project.project_id)
    await life.manager_starts("us-east")
    at = MONTH + DAY_MS
    match = life.starts("us-east", "small", at)
    life.is_ready(match, at)
    life.restarts(match, at + HOUR_MS)
    life.is_ready(match, at + HOUR_MS + 10_000)
    life.ends(match, at + 90 * 60_000, gone=True)
    entry = life.starts("us-east", "medium", at, pool=True)
    life.is_ready(entry, at)
    life.is_claimed(entry, at + HOUR_MS // 2)
    life.ends(entry, at + HOUR_MS, gone=True)
    await life.close()


async def test_a_months_usage_by_the_hour_as_json(api: Api) -> None:
    await live_a_little(api)
    found = (await api.call("GET", "/api/v3/usage", params=FEBRUARY | {"group": "hour"})).json()
    assert (found["start"], found["end"], found["currency"]) == (iso(MONTH), iso(month_end(MONTH)), "USD")
    assert [period["start"] for period in found["periods"]] == [iso(MONTH + DAY_MS), iso(MONTH + DAY_MS + HOUR_MS)]
    first, second = found["periods"]
    assert [(line["compute_size"], line["kind"], line["seconds"], line["amount"]) for line in first["lines"]] == [
        ("medium", "idle", "1800.000", "0.010000"),
        ("medium", "used", "1800.000", "0.010000"),
        ("small", "used", "3600.000", "0.010000"),
    ]
    assert [line["seconds"] for line in second["lines"]] == ["1790.000"]
    assert found["used"]["seconds"] == "7190.000"
    assert found["idle"] == {"seconds": "1800.000", "amount": "0.010000"}
    assert Decimal(found["total"]["amount"]) == sum(Decimal(p["total"]["amount"]) for p in found["periods"])
    assert found["forecast_month_amount"] is None, "the month is over"


async def test_the_same_as_csv(api: Api) -> None:
    await live_a_little(api)
    answer = await api.call("GET", "/api/v3/usage", params=FEBRUARY | {"group": "month", "format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["region"], row["compute_size"], row["kind"], row["seconds"], row["currency"]) for row in rows] == [
        ("us-east", "medium", "idle", "1800.000", "USD"),
        ("us-east", "medium", "used", "1800.000", "USD"),
        ("us-east", "small", "used", "5390.000", "USD"),
    ]


async def test_the_invoice_is_a_page_without_script_and_escapes_what_users_wrote(api: Api) -> None:
    await live_a_little(api)
    async with api.store.write() as session:
        project = await session.get(Project, api.project.project_id)
        assert project is not None
        project.name = "<script>alert(1)</script>"
    answer = await api.call("GET", "/api/v3/usage/invoice?month=2026-02")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    assert "2:29:50" not in answer.text
    for shown in ("&lt;script&gt;", "2026-02", "1:29:50.000", "0:30:00.000", "Servers in use", "0.024972", "0.03"):
        assert shown in answer.text, shown
    empty = await api.call("GET", "/api/v3/usage/invoice?month=2026-01")
    assert "Nothing ran" in empty.text


async def test_what_runs_now_counts_and_is_forecast(api: Api) -> None:
    server = await api.start()
    began = now_ms() - 5 * HOUR_MS
    await api.regions.change(server["instance_id"], "updated", status="running", step="running", started_at=began)
    found = (await api.call("GET", "/api/v3/usage", params={"from": iso(began), "group": "month"})).json()
    assert 5 * 3600 <= float(found["used"]["seconds"]) < 5 * 3600 + 60
    assert Decimal(found["forecast_month_amount"]) >= Decimal(found["periods"][-1]["total"]["amount"]) > 0


async def test_nobody_sees_anothers_usage(api: Api) -> None:
    await live_a_little(api)
    other = await api.call("GET", "/api/v3/usage", params=FEBRUARY, key=api.other.server_key)
    assert other.json()["periods"] == []
    for path in ("/api/v3/usage", "/api/v3/usage/invoice"):
        assert (await api.call("GET", path, key=api.project.client_key)).status_code == 403
        assert (await api.call("GET", path, key=None)).status_code == 401


async def test_bad_periods(api: Api) -> None:
    for query in (
        "from=yesterday", "from=2026-02-01&to=2026-01-01", "from=1969-01-01", "to=9999-12-31&group=hour",
        "from=2026-01-01&to=2026-12-01&group=hour", "from=%00", "from=0001-01-01T00:00:00%2B14:00",
    ):  # fmt: skip
        assert (await api.call("GET", f"/api/v3/usage?{query}")).status_code == 400, query
    assert (await api.call("GET", "/api/v3/usage?group=week")).status_code == 422
    for month in ("2026", "2026-13", "202602", "2026-02-01", "%D9%A2026-02"):
        assert (await api.call("GET", f"/api/v3/usage/invoice?month={month}")).status_code == 400, month
