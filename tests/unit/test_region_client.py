"""A replica and the regions' managers: there is one wherever it is needed, without anybody sending a command, and what
passes is told as 503."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from sqlalchemy.exc import OperationalError

from fleet.errors import Conflict, Unavailable
from fleet.region import client as client_module
from fleet.region.client import RegionClient
from fleet.store.tables import Project, Server
from tests.unit.region_kit import Fleet

POOLS = {"pool_config": {"enabled": True, "regions": {"eu-west": {"small": 1}}}}


class Handle:
    """A manager's handle: each call gives `answer`, or raises it."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer

    def __getattr__(self, method: str) -> Any:
        class Method:
            @staticmethod
            async def remote(*_: Any) -> Any:
                if isinstance(self.answer, BaseException):
                    raise self.answer
                return self.answer

        return Method


class Regions:
    """The managers that live, by region; looking one up makes it."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.handles: dict[str, Handle] = {}
        self.away: set[str] = set()

    def manager(self, region: str) -> Handle:
        if region in self.away:
            raise ConnectionError("head away")
        if region not in self.handles:
            self.made.append(region)
            self.handles[region] = Handle({})
        return self.handles[region]


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> Regions:
    made = Regions()
    monkeypatch.setattr(client_module, "manager", made.manager)
    return made


@pytest.fixture
async def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    made = Fleet(tmp_path, monkeypatch)
    await made.furnish()
    yield made
    await made.close()


async def stored(fleet: Fleet, *rows: Server | Project) -> None:
    async with fleet.store.write() as session:
        for row in rows:
            session.add(row)


async def test_regions_with_live_servers_or_pools_have_a_manager_and_no_others(fleet: Fleet, regions: Regions) -> None:
    await stored(
        fleet,
        fleet.row(region="us-east", status="running", step="running"),
        fleet.row(region="sea", status="stopped", step="stopping"),
        fleet.row(region="ea", status="stopped", step="stopped"),
        Project(id="q", name="q", created_at=1, updated_at=1, settings=POOLS),
        Project(id="r", name="r", created_at=1, updated_at=1, settings={"ports": []}),
    )
    await RegionClient(fleet.store).recover()
    assert sorted(regions.made) == ["eu-west", "sea", "us-east"]


async def test_a_manager_that_is_dead_for_good_is_made_anew_though_its_handle_was_kept(
    fleet: Fleet, regions: Regions
) -> None:
    await stored(fleet, fleet.row(region="us-east", status="running", step="running"))
    client = RegionClient(fleet.store)
    await client.recover()
    del regions.handles["us-east"]
    await client.recover()
    assert regions.made == ["us-east", "us-east"]
    assert await client.status("us-east") == {}


async def test_a_region_that_cannot_be_looked_up_stops_no_other_and_is_said(fleet: Fleet, regions: Regions) -> None:
    await stored(
        fleet,
        fleet.row(region="ea", status="running", step="running"),
        fleet.row(region="us-east", status="running", step="running"),
    )
    regions.away = {"ea"}
    client = RegionClient(fleet.store)
    with pytest.raises(ConnectionError):
        await client.recover()
    assert regions.made == ["us-east"]
    regions.away.clear()
    await client.recover()
    assert regions.made == ["us-east", "ea"]


async def test_pools_in_a_region_that_is_removed_hinder_no_recovery(fleet: Fleet, regions: Regions) -> None:
    gone = {"pool_config": {"enabled": True, "regions": {"atlantis": {"small": 1}}}}
    await stored(
        fleet,
        fleet.row(region="us-east", status="running", step="running"),
        Project(id="q", name="q", created_at=1, updated_at=1, settings=gone),
    )
    await RegionClient(fleet.store).recover()
    assert regions.made == ["us-east"]


def told(cause: Exception) -> RayTaskError:
    return RayTaskError("command", "", cause)


@pytest.mark.parametrize(
    ("answer", "raised", "says"),
    [
        (told(OperationalError("UPDATE server", {}, Exception("locked"))), Unavailable, "database"),
        (told(TimeoutError()), Unavailable, "database"),
        (told(Conflict("no room")), Conflict, "no room"),
        (told(KeyError("a fault of ours")), RayTaskError, None),
        (ActorDiedError(), Unavailable, "does not answer"),
    ],
    ids=["database locked", "database hangs", "refused", "fault", "dead"],
)
async def test_what_passes_is_503_and_what_is_our_fault_is_not_hidden(
    fleet: Fleet, regions: Regions, answer: Exception, raised: type[Exception], says: str | None
) -> None:
    regions.handles["us-east"] = Handle(answer)
    with pytest.raises(raised, match=says):
        await RegionClient(fleet.store).status("us-east")


async def test_a_dead_handle_is_dropped_and_looked_up_again(fleet: Fleet, regions: Regions) -> None:
    regions.handles["us-east"] = Handle(ActorDiedError())
    client = RegionClient(fleet.store)
    with pytest.raises(Unavailable):
        await client.status("us-east")
    regions.handles["us-east"] = Handle({"epoch": 2})
    assert await client.status("us-east") == {"epoch": 2}


async def test_a_look_up_that_hangs_is_one_thread_for_all_and_ends_for_each(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    async def hangs(look_up: Any, region: str) -> Any:
        looked.append(region)
        await asyncio.Event().wait()

    monkeypatch.setattr(client_module.asyncio, "to_thread", hangs)
    monkeypatch.setattr(client_module, "_LOOK_UP_S", 0.05)
    client = RegionClient(fleet.store)
    answers = await asyncio.gather(*(client.status("us-east") for _ in range(20)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {Unavailable}
    assert looked == ["us-east"]
    await client._look_ups.close()
