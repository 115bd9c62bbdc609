"""Starts that are counted: many at once, over several replicas and regions, and with replicas that die in between."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest
from sqlmodel import col, select

from fleet.builds.service import BuildService
from fleet.catalog import load_catalog
from fleet.errors import Conflict, Unavailable
from fleet.pools.claim import ClaimCall
from fleet.projects.model import Principal
from fleet.projects.plans import plan_book
from fleet.projects.scope import owned
from fleet.projects.service import ProjectService
from fleet.sealing import Variables
from fleet.servers.admission import PENDING_MS
from fleet.servers.model import StartRequest
from fleet.servers.service import ServerService
from fleet.store.engine import Store
from fleet.store.tables import MatchStart, Project, Server, StartReservation
from tests.unit.api_kit import Api, BookkeepingRegions
from tests.unit.test_api_pools import warm

REGIONS = ("us-east", "eu-west", "ap-north")
AT_ONCE = 100


class SlowRegions(BookkeepingRegions):
    """As managers are under load: an answer takes a while, and some replicas never hear it."""

    def __init__(self, store: Store, refuses: frozenset[str] = frozenset()) -> None:
        super().__init__(store)
        self.refuses = refuses
        self.dies_at: str = ""
        self.starts = 0

    async def start(self, row: Server) -> Server:
        self.starts += 1
        self._die("before")
        await asyncio.sleep(0.001 * (self.starts % 7))
        if row.region in self.refuses:
            raise Conflict("no room", error="Capacity limit reached")
        async with self.store.read() as session:
            known = await session.get(Server, row.instance_id)
        started = known or await super().start(row)
        self._die("after")
        return started

    async def claim(self, region: str, call: ClaimCall) -> Server | None:
        query = select(Server).where(col(Server.last_op) == call.op_id)
        async with self.store.read() as session:
            known = (await session.exec(query)).first()
        claimed = known or await super().claim(region, call)
        if claimed is not None:
            claimed = await self.change(claimed.instance_id, "claimed", last_op=call.op_id)
            self._die("claimed")
        return claimed

    def _die(self, where: str) -> None:
        if self.dies_at == where:
            raise asyncio.CancelledError  # nothing after the call is done, as if by kill -9


@pytest.fixture
async def replicas(api: Api) -> AsyncIterator[list[ServerService]]:
    """Several replicas, each with connections of its own."""
    stores = [Store(api.settings.database) for _ in range(4)]
    yield [replica(api, store, SlowRegions(store)) for store in stores]
    for store in stores:
        await store.close()


def replica(api: Api, store: Store, regions: BookkeepingRegions) -> ServerService:
    builds = BuildService(store, api.settings, lambda _: None)
    return ServerService(
        store, regions, builds, load_catalog(), api.settings.servers, plan_book(), Variables(api.settings.home)
    )


async def caller_of(api: Api, plan: str, **settings: Any) -> Principal:
    async with api.store.write() as session:
        project = (await session.exec(select(Project).where(Project.id == api.project.project_id))).one()
        project.plan, project.settings = plan, settings
    return await ProjectService(api.store).authenticate(api.project.server_key)


async def rows(api: Api) -> list[Server]:
    async with api.store.read() as session:
        return list((await session.exec(owned(Server, api.project.project_id))).all())


async def all_at_once(
    replicas: list[ServerService], caller: Principal, number: int = AT_ONCE, **asked: Any
) -> list[Server | BaseException]:
    turns, regions = cycle(replicas), cycle(REGIONS)
    requests = (StartRequest(name=f"n{i}", region=next(regions), **asked) for i in range(number))
    return await asyncio.gather(*(next(turns).start(caller, one) for one in requests), return_exceptions=True)


async def test_the_free_plan_has_one_server_of_100_starts(api: Api, replicas: list[ServerService]) -> None:
    caller = await caller_of(api, "free")
    answers = await all_at_once(replicas, caller)
    refused = [answer for answer in answers if isinstance(answer, Conflict)]
    assert (len(await rows(api)), len(refused)) == (1, AT_ONCE - 1)
    assert {error.error for error in refused} == {"Server limit reached"}
    await all_at_once(replicas, caller)
    assert len(await rows(api)) == 1


async def test_a_refusal_by_the_region_frees_the_place_and_an_unknown_outcome_does_not(api: Api) -> None:
    caller = await caller_of(api, "free")
    full = replica(api, api.store, SlowRegions(api.store, frozenset({"us-east"})))
    with pytest.raises(Conflict, match="no room"):
        await full.start(caller, StartRequest("a", "us-east"))
    regions = SlowRegions(api.store)
    regions.dies_at = "before"
    dying = replica(api, api.store, regions)
    with pytest.raises(asyncio.CancelledError):
        await dying.start(caller, StartRequest("b", "us-east"))
    with pytest.raises(Conflict, match="limited to 1"):
        await full.start(caller, StartRequest("c", "eu-west"))


async def test_a_reservation_that_came_to_nothing_ends(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = await caller_of(api, "free")
    regions = SlowRegions(api.store)
    regions.dies_at = "before"
    with pytest.raises(asyncio.CancelledError):
        await replica(api, api.store, regions).start(caller, StartRequest("a", "us-east"))
    async with api.store.write() as session:
        (await session.exec(owned(StartReservation, api.project.project_id))).one().at -= PENDING_MS
    await replica(api, api.store, SlowRegions(api.store)).start(caller, StartRequest("b", "us-east"))
    assert len(await rows(api)) == 1


async def test_another_projects_servers_do_not_count(api: Api, replicas: list[ServerService]) -> None:
    mine = await caller_of(api, "free")
    await replicas[0].start(replace(mine, project_id=api.other.project_id), StartRequest("theirs", "us-east"))
    await replicas[0].start(mine, StartRequest("mine", "us-east"))


# unique_match ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["pro", "free"])
async def test_a_match_has_one_server_of_100_starts_in_many_regions(
    api: Api, replicas: list[ServerService], plan: str
) -> None:
    caller = await caller_of(api, plan, unique_match=True)
    answers = await all_at_once(replicas, caller, match_id="m1")
    (server,) = await rows(api)
    assert {answer.instance_id for answer in answers if isinstance(answer, Server)} == {server.instance_id}
    assert len([answer for answer in answers if isinstance(answer, Server)]) == AT_ONCE
    again = await replicas[0].start(caller, StartRequest("later", "eu-west", match_id="m1"))
    assert again.instance_id == server.instance_id


async def test_without_the_setting_or_the_match_each_start_is_its_own(api: Api, replicas: list[ServerService]) -> None:
    await all_at_once(replicas, await caller_of(api, "pro"), 5, match_id="m1")
    await all_at_once(replicas, await caller_of(api, "pro", unique_match=True), 5)
    assert len(await rows(api)) == 10


@pytest.mark.parametrize("where", ["before", "after"])
async def test_a_match_whose_first_start_died_has_one_server(api: Api, where: str) -> None:
    caller = await caller_of(api, "pro", unique_match=True)
    dying = SlowRegions(api.store)
    dying.dies_at = where
    with pytest.raises(asyncio.CancelledError):
        await replica(api, api.store, dying).start(caller, StartRequest("a", "us-east", match_id="m1"))
    answers = await all_at_once([replica(api, api.store, SlowRegions(api.store))], caller, 10, match_id="m1")
    (server,) = await rows(api)
    assert {answer.instance_id for answer in answers if isinstance(answer, Server)} == {server.instance_id}
    assert server.region == "us-east"  # where the first went


async def test_a_region_that_refuses_leaves_the_match_free_for_another(api: Api) -> None:
    caller = await caller_of(api, "pro", unique_match=True)
    service = replica(api, api.store, SlowRegions(api.store, frozenset({"us-east"})))
    with pytest.raises(Conflict):
        await service.start(caller, StartRequest("a", "us-east", match_id="m1"))
    assert (await service.start(caller, StartRequest("a", "eu-west", match_id="m1"))).region == "eu-west"


async def test_a_warm_server_is_the_matchs_too_even_after_a_crash(api: Api) -> None:
    settings = {"unique_match": True, "pool_config": {"enabled": True, "regions": {"us-east": {"small": 2}}}}
    caller = await caller_of(api, "pro", **settings)
    names = {await warm(api), await warm(api)}
    regions = SlowRegions(api.store)
    regions.warm, regions.dies_at = sorted(names), "claimed"
    service = replica(api, api.store, regions)
    request = StartRequest("a", "us-east", match_id="m1")
    with pytest.raises(asyncio.CancelledError):
        await service.start(caller, request)
    regions.dies_at = ""
    first = await service.start(caller, request)
    claimed = await service.claim(caller, request)
    assert first.instance_id == claimed.instance_id
    assert first.instance_id in names
    other = await service.start(caller, replace(request, match_id="m2"))
    assert other.instance_id != first.instance_id
    async with api.store.read() as session:
        starts = (await session.exec(owned(MatchStart, api.project.project_id))).all()
    assert {one.match_id: one.instance_id for one in starts}["m2"] == other.instance_id


async def test_a_match_that_has_ended_gets_no_second_server(api: Api) -> None:
    caller = await caller_of(api, "pro", unique_match=True)
    service = replica(api, api.store, SlowRegions(api.store))
    first = await service.start(caller, StartRequest("a", "us-east", match_id="m1"))
    await service.stop(caller, first.instance_id, None)
    late = await service.start(caller, StartRequest("a", "us-east", match_id="m1"))
    assert (late.instance_id, late.status) == (first.instance_id, "stopped")


async def test_an_outcome_that_nobody_knows_keeps_the_match(api: Api) -> None:
    class Silent(SlowRegions):
        async def start(self, row: Server) -> Server:
            await super().start(row)
            raise Unavailable("the answer was lost")

    caller = await caller_of(api, "pro", unique_match=True)
    request = StartRequest("a", "us-east", match_id="m1")
    with pytest.raises(Unavailable):
        await replica(api, api.store, Silent(api.store)).start(caller, request)
    await replica(api, api.store, SlowRegions(api.store)).start(caller, request)
    assert len(await rows(api)) == 1
