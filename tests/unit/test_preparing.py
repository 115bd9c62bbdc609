"""Builds before servers: whatever becomes of a fetch, the node is ready after a bounded time, and it is tried again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from fleet.errors import NotFound, Unavailable
from fleet.node.model import Hello, NodeShare
from fleet.node.runtime import BuildRef
from fleet.region import preparing as preparing_module
from fleet.region.leases import Leases
from fleet.region.link import Link
from fleet.region.preparing import Preparation

SHARE = NodeShare(4096, 4.0, 20_000, 20_100, "127.0.0.1", "127.0.0.1")
NODE = "us-east@a"


class Region:
    """`fails`: what a fetch of a build raises; `hangs`: builds whose fetch never ends."""

    def __init__(self) -> None:
        self.link = Link("agent:us-east:shared:1", "shared", None, synced=True)
        self.link.hello = Hello("1", 0, NODE, "h", SHARE, "twin", ())
        self.fails: dict[str, Exception] = {}
        self.refuses: dict[str, Exception] = {}
        self.hangs: set[str] = set()
        self.fetched: list[str] = []
        self.ready = 0
        self.preparation = Preparation(1, cast(Leases, self), self.ref)

    def links(self) -> dict[str, Link]:
        return {NODE: self.link}

    def prepared(
        self, _node: str, *, preparing: frozenset[str] | None = None, present: frozenset[str] = frozenset()
    ) -> None:
        self.link.preparing = self.link.preparing if preparing is None else preparing
        self.link.builds |= present

    async def ref(self, build_id: str) -> BuildRef:
        if build_id in self.refuses:
            raise self.refuses[build_id]
        return BuildRef(build_id, "zip", "", "")

    async def call(self, _node: str, _method: str, _epoch: int, ref: BuildRef, *, timeout_s: float) -> Any:
        self.fetched.append(ref.build_id)
        if ref.build_id in self.hangs:
            async with asyncio.timeout(timeout_s):
                await asyncio.Event().wait()
        if ref.build_id in self.fails:
            raise self.fails[ref.build_id]

    def welcome(self, *builds: str) -> None:
        for build in reversed(builds):
            self.preparation.started(build)
        self.preparation.welcome(self.link, self.is_ready)

    def is_ready(self) -> None:
        self.ready += 1


@pytest.fixture
async def region(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Region]:
    monkeypatch.setattr(preparing_module, "_WAIT_S", 0.1)
    monkeypatch.setattr(preparing_module, "_FETCH_S", 0.3)
    made = Region()
    yield made
    await made.preparation.close()


async def settled(region: Region) -> None:
    async with asyncio.timeout(5):
        await region.preparation._tasks.settled()


async def test_a_node_is_ready_when_its_builds_are_there(region: Region) -> None:
    region.welcome("a", "b")
    assert region.link.preparing == {"a", "b"}
    assert region.ready == 0
    await settled(region)
    assert (region.ready, region.fetched) == (1, ["a", "b"])
    assert (region.link.builds, region.link.preparing) == ({"a", "b"}, frozenset())


@pytest.mark.parametrize("error", [NotFound("gone"), Unavailable("silent"), OSError("disk"), ZeroDivisionError()])
@pytest.mark.parametrize("where", ["fails", "refuses"])
async def test_a_build_that_cannot_be_had_keeps_no_node_from_being_ready(
    region: Region, where: str, error: Exception
) -> None:
    getattr(region, where)["a"] = error
    region.welcome("a", "b")
    await settled(region)
    assert (region.ready, region.link.builds, region.link.preparing) == (1, {"b"}, frozenset())


async def test_a_fetch_without_end_holds_servers_back_for_a_bounded_time(region: Region) -> None:
    """Here 0.1 s; it is given up later, and the next build has its turn."""
    region.hangs.add("a")
    region.welcome("a", "b")
    async with asyncio.timeout(5):
        while not region.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert region.link.preparing == frozenset()
    assert region.link.builds == frozenset()
    await settled(region)
    assert (region.ready, region.link.builds) == (1, {"b"})


async def test_one_build_at_a_time_is_fetched_later(region: Region) -> None:
    for build in ("a", "b"):
        region.preparation.started(build)
    region.preparation.keep_up()
    region.preparation.keep_up()
    await settled(region)
    assert region.fetched == ["b"]
    region.preparation.keep_up()
    await settled(region)
    assert region.link.builds == {"a", "b"}


async def test_what_failed_is_tried_again_later_and_soon_where_the_node_was_silent(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000_000
    monkeypatch.setattr(preparing_module, "now_ms", lambda: now)
    region.fails["a"] = OSError("disk full")
    region.preparation.started("a")
    for passed_ms, tries in ((0, 1), (60_000, 1), (600_000, 2)):
        now += passed_ms
        region.preparation.keep_up()
        await settled(region)
        assert len(region.fetched) == tries
    now += 700_000
    region.fails["a"] = Unavailable("it fell silent")
    region.preparation.keep_up()
    region.link.synced = False
    await settled(region)
    now += 31_000
    region.link.synced, region.fails = True, {}
    region.preparation.keep_up()
    await settled(region)
    assert region.link.builds == {"a"}
    assert region.preparation._busy == set()
    assert region.preparation._not_before == {}
