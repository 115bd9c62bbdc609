"""The region's nodes follow its demand whatever fails once: planning, Ray, a node that never comes back."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleet.errors import NotFound
from fleet.node.model import Drain
from fleet.node.runtime import BuildRef
from fleet.region import leases as leases_module
from fleet.region import scaling as scaling_module
from fleet.region.capacity import CapacityPolicy, NodeClass
from fleet.region.placement import Demand
from fleet.region.preparing import Preparation
from fleet.region.queue import Queue
from fleet.region.rooms import Rooms
from fleet.region.runs import Runs
from fleet.region.scaling import Scaler
from fleet.store.tables import Server
from tests.unit.test_leases import RESTART_MS, Region

SHARED = NodeClass("shared", "node:us-east", 4096, 4.0, 3)


class Memory:
    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        return self.kept.get(name)

    def put(self, name: str, value: Any) -> None:
        self.kept[name] = value


class Scaling:
    """The real scaler, leases, rooms and preparation of a region; agents are twins."""

    def __init__(self, policy: CapacityPolicy) -> None:
        self.region = Region()
        self.leases = self.region.leases
        self.memory = Memory()
        self.settled = 0
        self.live: dict[str, Server] = {}
        runs = Runs()
        self.rooms = Rooms(lambda: self.live, runs, self.leases.views, self.demand)
        self.queue = Queue(self.demand, lambda _server: True)
        self.preparation = Preparation(1, self.leases, self.ref)
        self.scaler = Scaler(
            "us-east",
            [SHARED],
            policy,
            self.leases,
            self.rooms,
            runs,
            self.queue,
            self.demand,
            self.preparation,
            self.memory,  # type: ignore[arg-type]
            settle=self.settle,
        )

    def settle(self) -> None:
        self.settled += 1

    def demand(self, server: Server) -> Demand:
        return Demand(server.instance_id, 512)

    async def ref(self, build_id: str) -> BuildRef:
        raise NotFound(f"There is no build '{build_id}'.")

    async def reviewed(self) -> frozenset[str]:
        async with asyncio.timeout(5):
            return await self.scaler.reviewed()


@pytest.fixture
async def scaling(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scaling]:
    for name, value in {"_RETRY_S": 0.01, "LOOK_S": 0.01, "_POLL_S": 0.05, "_GRACE_S": 0.05, "_HELLO_S": 0.1}.items():
        monkeypatch.setattr(leases_module, name, value)
    monkeypatch.setattr(scaling_module, "_SOON_S", 0.01)
    monkeypatch.setattr(scaling_module, "_BETWEEN_S", 0.01)
    made = Scaling(CapacityPolicy(surplus_ms=300, unneeded_ms=200, away_ms=RESTART_MS))
    yield made
    await made.scaler.close()
    await made.preparation.close()
    await made.leases.close()


async def test_who_waits_has_a_node_asked_for(scaling: Scaling) -> None:
    with scaling.scaler.waiting(Demand("one", 512)):
        assert await scaling.reviewed() == frozenset()
        assert scaling.leases.asked() == {"shared": 1}
        scaling.region.cloud.latest().come_up("a")
        await scaling.region.until(lambda: scaling.rooms.find(Demand("one", 512)) == "us-east@a")
    assert scaling.settled
    assert scaling.memory.kept["node_leads"]["shared"]


async def test_who_fits_nowhere_is_told(scaling: Scaling) -> None:
    with scaling.scaler.waiting(Demand("big", 9000)):
        assert await scaling.reviewed() == {"big"}
    assert await scaling.reviewed() == frozenset()


async def test_a_plan_that_fails_is_made_again(scaling: Scaling) -> None:
    """Nobody is refused by what an earlier plan said, and the next who asks has a plan."""
    with scaling.scaler.waiting(Demand("big", 9000)):
        assert await scaling.reviewed() == {"big"}
        fails = [ZeroDivisionError()]

        def headroom() -> tuple[Demand, ...]:
            if fails:
                raise fails.pop()
            return ()

        scaling.scaler.headroom = headroom
        assert await scaling.reviewed() == frozenset()
        assert await scaling.reviewed() == {"big"}


async def test_nobody_waits_for_a_node_that_is_gone(scaling: Scaling) -> None:
    """Without a least number of nodes, too: first another is asked for, then the lost one's agent ends."""
    with scaling.scaler.waiting(Demand("one", 512)):
        await scaling.reviewed()
        twin = scaling.region.cloud.latest()
        twin.come_up("a")
        await scaling.region.until(lambda: scaling.region.synced("a"))
        scaling.region.cloud.unkillable.append(twin)
        twin.hangs = True
        await scaling.region.until(lambda: not scaling.region.synced("a"))

        def asked_anew() -> bool:
            scaling.scaler.review()
            return scaling.leases.asked().total() > 0

        await scaling.region.until(asked_anew)
        await scaling.region.until(lambda: twin in scaling.region.cloud.given_back)
        assert {row["node_id"]: row["state"] for row in scaling.scaler.rows()}["us-east@a"] == "lost"
        scaling.region.cloud.latest().come_up("b")
        await scaling.region.until(lambda: scaling.rooms.find(Demand("one", 512)) == "us-east@b")


async def test_an_agent_asked_for_a_node_that_may_return_is_not_taken_back(scaling: Scaling) -> None:
    """Before that is lost, nobody else needs one; after that, it is one ask too many."""
    twin = await scaling.region.leased("a")
    twin.gone = True
    twin.fall()
    await scaling.region.until(lambda: scaling.leases.asked().total() == 1)
    assert scaling.leases.expected() == {"shared": 1}

    def lost() -> bool:
        scaling.scaler.review()
        if not scaling.leases.expected():
            return True
        assert scaling.leases.asked().total() == 1
        return False

    await scaling.region.until(lost)

    def taken_back() -> bool:
        scaling.scaler.review()
        return not scaling.leases.asked()

    await scaling.region.until(taken_back)


async def test_an_empty_node_is_given_back_though_ray_refuses_at_first(scaling: Scaling) -> None:
    refuse = [ConnectionError("GCS does not answer")]
    real = scaling.region.cloud.give_back

    def give_back(handle: Any) -> None:
        if refuse:
            raise refuse.pop()
        real(handle)

    scaling.region.cloud.give_back = give_back  # type: ignore[method-assign]
    twin = await scaling.region.leased("a")
    assert await scaling.leases.drain("us-east@a", Drain("surplus"))

    def given_back() -> bool:
        scaling.scaler.review()
        return twin in scaling.region.cloud.given_back

    await scaling.region.until(given_back)
    assert scaling.leases.links() == {}


async def test_draining_a_node_that_there_is_not_is_an_error(scaling: Scaling) -> None:
    with pytest.raises(NotFound):
        await scaling.scaler.drain("us-east@nowhere", Drain("operator"))


@pytest.mark.parametrize("kept", [None, "x", {"shared": "x"}, {"shared": ["x", None]}, {"shared": [float("nan")]}])
async def test_what_an_earlier_manager_measured_may_be_of_any_shape(scaling: Scaling, kept: Any) -> None:
    scaling.memory.kept["node_leads"] = kept
    scaling.scaler.begin()
    assert scaling.scaler.lead_seconds() == SHARED.lead_time_s
