"""Retention on PostgreSQL: the unit tests of what goes and what stays, over that database."""

from collections.abc import AsyncIterator

import pytest

from fleet.events.kept import PositionTooOld, check_kept
from fleet.events.model import Cursor
from fleet.events.read import horizon
from fleet.store.engine import Store
from tests import history
from tests.unit import test_retention as unit
from tests.unit.test_retention import (
    LATER,
    NOW,
    SERVERS,
    test_a_job_that_was_taken_over_deletes_nothing,
    test_live_servers_and_what_belongs_to_them_stay,
    test_logs_deliveries_and_ratings_go_by_their_own_age,
    test_nothing_goes_that_the_ledger_has_not_read,
    test_old_hours_become_days_with_the_same_sum,
    test_what_is_too_old_goes_and_the_bill_stays,
)

__all__ = [
    "test_a_job_that_was_taken_over_deletes_nothing",
    "test_live_servers_and_what_belongs_to_them_stay",
    "test_logs_deliveries_and_ratings_go_by_their_own_age",
    "test_nothing_goes_that_the_ledger_has_not_read",
    "test_old_hours_become_days_with_the_same_sum",
    "test_what_is_too_old_goes_and_the_bill_stays",
]


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    store = Store(postgres_url)
    await history.fill(store, SERVERS, NOW)
    yield store
    await store.close()


async def test_a_reader_whose_place_is_too_old_is_told(store: Store) -> None:
    """Places are of transactions here, not of ids alone."""
    async with store.read() as session:
        after_all = await horizon(store, session)
    await unit.bill(store)
    await unit.forget(store, LATER)
    with pytest.raises(PositionTooOld):
        await check_kept(store, Cursor.parse("1-1.1-1"))
    await check_kept(store, after_all)
