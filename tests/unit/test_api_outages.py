"""Outages as callers of the API see them: reads go on where they can, writes are refused with 503 and a word, soon."""

import asyncio
import errno
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ray.exceptions import RaySystemError
from sqlalchemy.exc import OperationalError

from fleet import ray_calls
from fleet.actors.health import TaskHealth
from fleet.errors import Unavailable
from fleet.ray_calls import ray_call
from fleet.store.engine import OutcomeUnknown
from fleet.telemetry.metrics import HttpMetrics
from serve_app.context import AppContext
from serve_app.errors import unavailable
from serve_app.health import ReplicaHealth, TasksFail
from tests.unit.api_kit import Api

SOON_S = 8.0  # a write that meets a locked database is refused within this (docs/timeouts.md: 5 s for the lock)
SETTINGS = "/api/v3/projects/settings"


@contextmanager
def locked(api: Api) -> Iterator[None]:
    """Another program holds the database's lock."""
    other = sqlite3.connect(api.settings.home / "fleet.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


def context_of(api: Api) -> AppContext:
    context: AppContext = api.app.state.context
    return context


async def test_a_locked_database_refuses_writes_soon_and_answers_reads(api: Api) -> None:
    with locked(api):
        began = time.monotonic()
        refused = await api.call("POST", SETTINGS, json={"environment_variables": {"A": "1"}})
        took = time.monotonic() - began
        read = await api.call("GET", SETTINGS)
    assert (refused.status_code, refused.json()["error"]) == (503, "Database unavailable")
    assert int(refused.headers["retry-after"]) > 0
    assert took < SOON_S
    assert read.status_code == 200
    assert (await api.call("POST", SETTINGS, json={"environment_variables": {"A": "1"}})).status_code == 200


async def test_a_key_whose_first_try_met_an_outage_is_good_for_the_next(api: Api) -> None:
    headers = {"idempotency-key": "once"}
    body = {"environment_variables": {"B": "2"}}
    with locked(api):
        refused = await api.call("POST", SETTINGS, json=body, headers=headers)
    again = await api.call("POST", SETTINGS, json=body, headers=headers)
    assert (refused.status_code, again.status_code) == (503, 200)
    repeated = await api.call("POST", SETTINGS, json=body, headers=headers)
    assert repeated.headers["idempotency-replayed"] == "true"


async def test_an_answer_that_cannot_be_kept_is_given_all_the_same(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write is done: its client is told so, and a repeat is one effect with it."""

    async def away(*_arguments: object) -> None:
        raise OperationalError("UPDATE", None, Exception("database is locked"))

    with monkeypatch.context() as broken:
        broken.setattr(context_of(api).idempotency, "finish", away)
        answer = await api.call("POST", "/api/v3/servers/start", json=api.start_body, headers={"idempotency-key": "k"})
    assert answer.is_success, answer.text


@pytest.mark.parametrize("where", ["data_version", "authenticate", "handler"])
@pytest.mark.parametrize(
    "error",
    [
        OperationalError("SELECT", None, Exception("unable to open database file")),
        sqlite3.OperationalError("disk I/O error"),
        ConnectionRefusedError("no database there"),
        TimeoutError(),
        OSError(errno.ENOSPC, "No space left on device"),
        OutcomeUnknown("it broke"),
        RaySystemError("the head is away"),
        Unavailable("The region is starting."),
    ],
    ids=repr,
)
async def test_whatever_is_away_wherever_it_is_met_is_never_a_500(
    api: Api, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    def fail(*_arguments: object, **_named: object) -> Any:
        raise error

    async def fail_later(*_arguments: object, **_named: object) -> Any:
        raise error

    context = context_of(api)
    if where == "data_version":
        monkeypatch.setattr(context.store, "data_version", fail)
    elif where == "authenticate":
        monkeypatch.setattr(context.projects, "authenticate", fail_later)
    else:
        monkeypatch.setattr(context.builds, "list", fail_later)
    answer = await api.call("GET", "/api/v3/builds")
    assert answer.status_code in ((200, 503) if where == "data_version" else (503,)), answer.text
    if answer.status_code == 503:
        assert answer.json()["detail"]
        assert answer.headers["retry-after"]


def test_faults_of_ours_are_not_called_outages() -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file", "configs/lost.yaml")
    assert [unavailable(error) for error in (missing, KeyError("x"), ValueError("x"))] == [None] * 3


# The cluster's head --------------------------------------------------------------------------------------------------


async def test_calls_of_a_head_that_hangs_end_and_hold_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when they have filled their threads: the others of this process are free."""
    import threading

    release = threading.Event()
    try:
        calls = [ray_call("the head", lambda: release.wait(20), 0.2) for _ in range(ray_calls._THREADS + 4)]
        began = time.monotonic()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, Unavailable) for one in ended)
        assert await asyncio.to_thread(lambda: 1) == 1
        assert time.monotonic() - began < 5
    finally:
        release.set()
    assert await ray_call("the head", lambda: 7) == 7


# Replicas ------------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def failing() -> tuple[TaskHealth, Clock]:
    clock = Clock()
    health = TaskHealth(clock)
    health.failed("api.job_usage", health, RuntimeError("stuck"))
    return health, clock


async def test_a_replica_whose_tasks_fail_for_long_is_replaced_not_before(
    api: Api, failing: tuple[TaskHealth, Clock]
) -> None:
    health, clock = failing
    replica = ReplicaHealth(health, patience_s=600)
    clock.now += 599
    await replica.check(context_of(api))
    clock.now += 2
    with pytest.raises(TasksFail, match=r"api\.job_usage for 601 s: RuntimeError"):
        await replica.check(context_of(api))


async def test_an_outage_of_the_database_replaces_no_replica(
    api: Api, failing: tuple[TaskHealth, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it lasts, whether it can be read or not: a new replica would be no better."""
    health, clock = failing
    clock.now += 100_000
    replica = ReplicaHealth(health)
    with locked(api):
        await replica.check(context_of(api))

    async def away() -> None:
        raise OperationalError("SELECT", None, Exception("unable to open database file"))

    monkeypatch.setattr(AppContext, "check", lambda _self: away())
    await replica.check(context_of(api))


def test_replicas_do_not_lose_patience_together() -> None:
    assert len({ReplicaHealth(TaskHealth())._patience_s for _ in range(10)}) == 10


async def test_failing_tasks_of_replicas_are_in_the_metrics(api: Api) -> None:
    metrics = HttpMetrics()
    metrics.background_failed("api.job_usage")
    metrics.tell_failing(["api.job_usage"])
    found = {family.name: {sample.name: sample.value for sample in family.samples} for family in metrics.collect()}
    assert found["fleet_background_failures"] == {"fleet_background_failures_total": 1}
    assert found["fleet_background_failing"] == {"fleet_background_failing": 1}
    metrics.tell_failing([])
    [gauge] = [family for family in metrics.collect() if family.name == "fleet_background_failing"]
    assert [sample.value for sample in gauge.samples] == [0]
