"""What callers see while the database is locked: reads go on, writes are refused in time with 503 and a word."""

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from fleet.store import trouble
from tests.unit.api_kit import Api

LOCK_WAIT_S = 0.3


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "LOCK_WAIT_S", LOCK_WAIT_S)


@contextmanager
def locked(api: Api) -> Iterator[None]:
    """Somebody else writes, and does not end."""
    assert api.store.file is not None
    with closing(sqlite3.connect(api.store.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


async def test_reads_go_on_and_writes_are_refused_while_the_database_is_locked(impatient: None, api: Api) -> None:
    server = await api.running()
    with locked(api):
        for path in ("/api/v3/servers", f"/api/v3/servers/{server['instance_id']}", "/api/v3/builds"):
            assert (await api.call("GET", path)).status_code == 200, path
        began = time.monotonic()
        body = {"name": "late", "region": "us-east"}
        answers = await asyncio.gather(*(
            api.call("POST", "/api/v3/servers/start", json=body, headers=headers)
            for headers in ({}, {"idempotency-key": "once"})
        ))  # fmt: skip
        took = time.monotonic() - began
    for answer in answers:
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"] == "Database unavailable"
        assert answer.headers["retry-after"]
    assert took < 4 * LOCK_WAIT_S + 2
    again = await api.call("POST", "/api/v3/servers/start", json=body, headers={"idempotency-key": "once"})
    assert again.status_code < 300, again.text
