"""Plans: what each has, that the file is read anew, and that every door asks."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import select
from structlog.testing import capture_logs

from fleet.catalog import load_catalog
from fleet.errors import Conflict, Forbidden, Unavailable
from fleet.pools.config import PoolConfig
from fleet.projects.plans import PLANS_FILE, Plan, PlanBook, check_count, check_pools, check_start, effective_ttl
from fleet.region.pool_store import PoolStore
from fleet.store.tables import Budget, Project, StartReservation
from fleet.times import now_ms
from tests.unit.api_kit import Api, open_api

SIZES = load_catalog().sizes
FREE = PlanBook(PLANS_FILE).get("free")
PRO = PlanBook(PLANS_FILE).get("pro")
SETTINGS = "/api/v3/projects/settings"
POOL = {"enabled": True, "regions": {"us-east": {"small": 2}}}

plans = st.builds(
    Plan,
    name=st.just("some"),
    max_servers=st.none() | st.integers(0, 100),
    ttl=st.none() | st.integers(60, 86_400),
    sizes=st.none() | st.frozensets(st.sampled_from(sorted(SIZES))),
    pools=st.booleans(),
)


def passes(check: Any, *arguments: Any, **named: Any) -> bool:
    try:
        check(*arguments, **named)
    except (Forbidden, Conflict):
        return False
    return True


@given(plan=plans, size=st.sampled_from(sorted(SIZES)), others=st.integers(0, 200), spent=st.booleans())
def test_what_a_plan_does_not_limit_is_allowed_and_nothing_else(
    plan: Plan, size: str, others: int, spent: bool
) -> None:
    assert passes(check_start, plan, size, out_of_budget=spent) == (
        not spent and (plan.sizes is None or size in plan.sizes)
    )
    assert passes(check_count, plan, others) == (plan.max_servers is None or others < plan.max_servers)
    config = PoolConfig.model_validate({"enabled": True, "regions": {"us-east": {"small": 1}}})
    assert passes(check_pools, plan, config) == (plan.pools and plan.has_size("small"))
    assert passes(check_pools, plan, config.model_copy(update={"enabled": False}))


@given(plan=plans, size=st.sampled_from(sorted(SIZES)), asked=st.none() | st.integers(60, 86_400))
def test_a_plans_ttl_is_forced_and_persistent_sizes_have_none(plan: Plan, size: str, asked: int | None) -> None:
    expected = None if SIZES[size].persistent else (plan.ttl or asked)
    assert effective_ttl(plan, SIZES[size], asked) == expected


def test_the_plans_of_this_repository() -> None:
    assert (FREE.max_servers, FREE.ttl, FREE.sizes, FREE.pools) == (1, 3600, {"small"}, False)
    assert (PRO.max_servers, PRO.ttl, PRO.sizes, PRO.pools) == (None, None, None, True)


def test_errors_say_limit_where_clients_look_for_it() -> None:
    with pytest.raises(Conflict) as second:
        check_count(FREE, 1)
    assert (second.value.status, "limit" in second.value.error.lower()) == (409, True)
    with pytest.raises(Forbidden):
        check_start(FREE, "large", out_of_budget=False)


def test_a_changed_file_counts_at_once_and_a_broken_one_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "plans.yaml"
    file.write_text("plans: {free: {max_servers: 1}}")
    book = PlanBook(file)
    assert book.get("free").max_servers == 1
    file.write_text("plans: {free: {max_servers: 22}}")
    assert book.get("free").max_servers == 22
    for broken in ("plans: {free: {max_servers: many}}", "plans: [", "", "plans: {free: {max_server: 3}}", "plans: 5"):
        file.write_text(broken)
        assert book.get("free").max_servers == 22
    file.unlink()
    assert book.get("free").max_servers == 22


def test_a_plan_that_is_taken_out_goes_on_for_those_who_have_it_also_after_a_restart(tmp_path: Path) -> None:
    file, known = tmp_path / "plans.yaml", tmp_path / "plans.json"
    file.write_text("plans: {free: {max_servers: 1, sizes: [small, micro]}, other: {}}")
    before = PlanBook(file, known=known).get("free")
    file.write_text("plans: {other: {}}")
    book = PlanBook(file, known=known)
    assert book.names() == ["other"]
    with capture_logs() as told:
        assert [book.get("free"), book.get("free")] == [before, before]
    assert [(line["event"], line["plan"]) for line in told] == [("plan_removed_in_use", "free")]
    with pytest.raises(Forbidden):
        book.get("never-heard-of")
    file.write_text("plans: {other: {}, free: {max_servers: 7}}")
    assert book.get("free").max_servers == 7


def test_without_any_readable_plans_nothing_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        PlanBook(tmp_path / "none.yaml").get("free")


# Through the API ------------------------------------------------------------------------------------------------


async def move(api: Api, plan: str) -> None:
    async with api.store.write() as session:
        project = (await session.exec(select(Project).where(Project.id == api.project.project_id))).one()
        project.plan, project.updated_at = plan, project.updated_at + 1


async def test_a_second_server_of_the_free_plan_is_refused_until_the_first_has_stopped(api: Api) -> None:
    await move(api, "free")
    first = await api.start(ttl=7200)
    assert first["ttl"] == 3600
    refused = await api.call("POST", "/api/v3/servers/start", json=api.start_body)
    assert refused.status_code == 409
    assert "limit" in refused.json()["error"].lower()
    await api.call("DELETE", f"/api/v3/servers/{first['instance_id']}")
    await api.start()


async def test_sizes_and_pools_beyond_the_plan_are_forbidden_and_change_nothing(api: Api) -> None:
    await move(api, "free")
    for path, body in (
        ("/api/v3/servers/start", {**api.start_body, "compute_size": "medium"}),
        ("/api/v3/servers/claim", {"region": "us-east", "compute_size": "medium"}),
        (SETTINGS, {"pool_config": POOL, "environment_variables": {"A": "1"}}),
    ):
        refused = await api.call("POST", path, json=body)
        assert (refused.status_code, refused.json()["error"]) == (403, "Plan limit"), path
    settings = (await api.call("GET", SETTINGS)).json()
    assert (settings["pool_config"], settings["environment_variables"]) == (None, {})


async def test_moving_down_touches_nothing_that_runs(api: Api) -> None:
    await api.call("POST", SETTINGS, json={"pool_config": POOL})
    big = await api.running(compute_size="large", ttl=7200)
    small = await api.running()
    await move(api, "free")
    for server in (big, small):
        now = (await api.call("GET", f"/api/v3/servers/{server['instance_id']}")).json()
        assert (now["status"], now["ttl"]) == ("running", server["ttl"])
    assert (await api.call("POST", "/api/v3/servers/start", json=api.start_body)).status_code == 409
    restarted = await api.call("POST", f"/api/v3/servers/{small['instance_id']}/restart", json={"ttl": 80_000})
    assert (restarted.status_code, restarted.json()["ttl"]) == (200, 3600)
    beyond = await api.call("POST", f"/api/v3/servers/{big['instance_id']}/restart")
    assert (beyond.status_code, beyond.json()["error"]) == (403, "Plan limit")


async def test_a_free_projects_pool_is_not_asked(api: Api) -> None:
    await api.call("POST", SETTINGS, json={"pool_config": POOL})
    await move(api, "free")
    claimed = await api.call("POST", "/api/v3/servers/claim", json={"region": "us-east"})
    assert (claimed.status_code, claimed.json()["error"]) == (409, "No pool")


async def test_managers_leave_out_pools_that_a_plan_does_not_have(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "plans.yaml"
    file.write_text("plans: {free: {pools: false}, tiny: {sizes: [micro]}, pro: {}}")
    await api.call("POST", SETTINGS, json={"pool_config": POOL})
    store = PoolStore(api.store, "us-east", PlanBook(file))
    assert len(await store.wished()) == 1
    for plan in ("free", "tiny", "forgotten"):
        await move(api, plan)
        assert await store.wished(api.project.project_id) == {}, plan
    await move(api, "pro")
    async with api.store.write() as session:
        (await session.exec(select(Project).where(Project.id == api.project.project_id))).one().suspended_at = 1
    assert await store.wished() == {}


async def test_a_budget_that_is_used_up_stops_new_starts_only_if_it_shall(api: Api) -> None:
    running = await api.running()
    async with api.store.write() as session:
        budget = Budget(project_id=api.project.project_id, month_limit=1, stopped=True, updated_at=now_ms())
        session.add(budget)
    await move(api, "pro")  # so that the replica looks again
    await api.start()
    async with api.store.write() as session:
        (await session.exec(select(Budget))).one().hard_stop = True
    await move(api, "pro")
    refused = await api.call("POST", "/api/v3/servers/start", json=api.start_body)
    assert (refused.status_code, refused.json()["error"]) == (403, "Budget limit reached")
    assert (await api.call("GET", f"/api/v3/servers/{running['instance_id']}")).json()["status"] == "running"


async def test_plans_without_a_limit_leave_no_reservation(api: Api) -> None:
    await asyncio.gather(*(api.start() for _ in range(5)))
    async with api.store.read() as session:
        assert (await session.exec(select(StartReservation))).all() == []


async def test_a_changed_plans_file_needs_no_restart(tmp_path: Path) -> None:
    file = tmp_path / "plans.yaml"
    file.write_text("plans: {pro: {max_servers: 1}}")
    api = await open_api(tmp_path, plans=file)
    try:
        await api.start()
        assert (await api.call("POST", "/api/v3/servers/start", json=api.start_body)).status_code == 409
        file.write_text("plans: {pro: {max_servers: 2}}")
        await api.start()
        assert (await api.call("POST", "/api/v3/servers/start", json=api.start_body)).status_code == 409
    finally:
        await api.close()
