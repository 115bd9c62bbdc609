"""The region's forecast inside the manager: quiet regions hold nothing, busy ones hold room ahead of need."""

from pathlib import Path

import pytest

from fleet.catalog import load_catalog
from fleet.pools.config import PoolKey, wishes
from fleet.pools.lead import new_lead
from fleet.pools.plan import Levels
from fleet.pools.pool import Pool, Product
from fleet.pools.shelf import Entry
from fleet.pools.stock import new_state
from fleet.region import forecasting
from fleet.region.books import Books
from fleet.region.forecasting import Forecasting
from fleet.region.region_memory import RegionMemory
from fleet.store.engine import Store
from fleet.store.tables import Server
from tests.unit.api_kit import make_schema


class Region:
    """A forecast with a clock of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_schema(folder / "fleet.db")
        store = Store(f"sqlite+aiosqlite:///{folder}/fleet.db")
        self.now = 1_800_000_000_000
        monkeypatch.setattr(forecasting, "now_ms", lambda: self.now)
        self.pools: dict[PoolKey, Pool] = {}
        self.memory = RegionMemory("us-east", store, Books())
        self.forecast = Forecasting(self.memory, load_catalog(), self.pools, lambda: 120.0)
        self.live: list[Server] = []

    def minute(self, size: str, starts: int) -> None:
        self.forecast.started(size, starts)
        self.live += [Server(status="running", is_pool_server=False) for _ in range(starts)]  # pyright: ignore[reportCallIssue]
        self.now += 60_000
        self.forecast.pass_time(self.live)


@pytest.fixture
def region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Region:
    return Region(tmp_path, monkeypatch)


def test_nobody_plays_and_no_room_is_held(region: Region) -> None:
    for _ in range(30):
        region.minute("small", 0)
    assert region.forecast.headroom() == []


def test_room_is_held_for_what_comes_in_the_sizes_that_come(region: Region) -> None:
    for _ in range(20):
        region.minute("small", 4)
        region.minute("medium", 4)
    held = region.forecast.headroom()
    assert len(held) >= 8, "two minutes of lead, four starts a minute"
    sizes = [demand.memory_mb for demand in held]
    assert {1024, 2048} == set(sizes)
    assert len({demand.instance_id for demand in held}) == len(held)


def test_what_stands_ready_needs_no_more_room(region: Region) -> None:
    for _ in range(20):
        region.minute("small", 4)
    without = len(region.forecast.headroom())
    [wish] = wishes("p", {"pool_config": {"enabled": True, "regions": {"us-east": {"small": 9}}}}, "us-east")
    pool = Pool(wish, new_state(0.0), new_lead(), product=Product("s", "b", 1, {}, []), levels=Levels(9, 9))
    region.pools[wish.key] = pool
    assert len(region.forecast.orders()) == 9
    for i in range(5):
        pool.shelf.put(Entry(f"e{i}", "s", "warm", 0))
    pool.shelf.put(Entry("boots", "s", "booting", 0))
    assert len(region.forecast.headroom()) == max(0, without - 5)
    assert len(region.forecast.orders()) == 3


def test_a_new_manager_goes_on_where_the_old_one_was(region: Region) -> None:
    for _ in range(20):
        region.minute("small", 4)
    heir = Forecasting(region.memory, load_catalog(), {}, lambda: 120.0)
    heir.load()
    region.forecast = heir
    region.minute("small", 4)
    assert region.forecast.headroom()
