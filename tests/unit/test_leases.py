"""Leases under everything that agents do: come late, fall silent, die with their machine, move, go for good."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from fleet.errors import Conflict, Unavailable
from fleet.node.model import Drain, Hello, NodeShare, Page, RunView
from fleet.region import leases as leases_module
from fleet.region.leases import Leases

SHARE = NodeShare(4096, 4.0, 20_000, 20_100, "127.0.0.1", "127.0.0.1")


class Twin:
    """An agent without Ray: `machine` is where it is now, None while it waits for one."""

    def __init__(self) -> None:
        self.machine: str | None = None
        self.gone = False
        self.moved = asyncio.Event()
        self.life = 0
        self.drain: Drain | None = None
        self.runs: tuple[RunView, ...] = ()

    def come_up(self, machine: str) -> None:
        self.life += 1
        self.machine = machine
        self.shake()

    def fall(self) -> None:
        self.machine = None
        self.shake()

    def shake(self) -> None:
        self.moved.set()
        self.moved = asyncio.Event()

    def __getattr__(self, method: str) -> Any:
        class Method:
            @staticmethod
            async def remote(*arguments: Any) -> Any:
                return await getattr(self, f"do_{method}")(*arguments)

        return Method

    async def do_hello(self, _epoch: int) -> Hello:
        while self.machine is None:
            if self.gone:
                raise ActorDiedError
            if self.life:
                raise ActorUnavailableError("restarting", None)
            await self.moved.wait()
        node_id = f"us-east@{self.machine}"
        return Hello(str(self.life), 0, node_id, "h", SHARE, "twin", self.runs, self.machine, drain=self.drain)

    async def do_poll(self, _epoch: int, boot_id: str, after: int, _timeout_s: float) -> Page | None:
        moved = self.moved
        if boot_id == str(self.life) and self.machine is not None:
            await moved.wait()
        if self.machine is None:
            raise ActorDiedError if self.gone else ActorUnavailableError("restarting", None)
        return None if boot_id != str(self.life) else Page(after, (), self.drain)

    async def do_set_drain(self, _epoch: int, drain: Drain | None) -> None:
        self.drain = drain

    async def do_retire(self, _epoch: int) -> None:
        if self.runs:
            raise Conflict("in use")


class Cloud:
    def __init__(self) -> None:
        self.twins: dict[str, Twin] = {}
        self.given_back: list[Any] = []
        self.dead_machines: set[str] = set()

    def known(self) -> dict[str, Any]:
        return dict(self.twins)

    def ask(self, node_class: str, _known: Collection[str]) -> tuple[str, Any]:
        name = f"agent:us-east:{node_class}:{len(self.twins)}"
        self.twins[name] = Twin()
        return name, self.twins[name]

    def give_back(self, handle: Any) -> None:
        self.given_back.append(handle)

    def dead(self, hello: Hello) -> bool:
        return hello.ray_node in self.dead_machines


class Region:
    def __init__(self) -> None:
        self.cloud = Cloud()
        self.heard: list[tuple[str, str]] = []
        self.leases = Leases(
            "us-east",
            1,
            self.cloud,
            on_sync=self._sync,
            on_events=self._events,
            on_silent=lambda node: self.heard.append(("silent", node)),
            on_lost=self._lost,
            on_fenced=lambda error: self.heard.append(("fenced", str(error))),
        )

    async def _sync(self, hello: Hello) -> None:
        self.heard.append(("sync", hello.node_id))

    async def _events(self, _views: tuple[RunView, ...]) -> None: ...

    async def _lost(self, node_id: str) -> None:
        self.heard.append(("lost", node_id))

    def ask(self) -> Twin:
        self.leases.ask("shared")
        return list(self.cloud.twins.values())[-1]

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110, as each wait is for something else
                await asyncio.sleep(0.005)

    async def leased(self, machine: str) -> Twin:
        twin = self.ask()
        twin.come_up(machine)
        await self.until(lambda: ("sync", f"us-east@{machine}") in self.heard)
        return twin


@pytest.fixture
async def region(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Region]:
    monkeypatch.setattr(leases_module, "_RETRY_S", 0.01)
    monkeypatch.setattr(leases_module, "_RETRY_MOST_S", 0.02)
    monkeypatch.setattr(leases_module, "_STILLBORN_S", 0.01)
    before = asyncio.all_tasks()
    yield Region()
    rest = asyncio.all_tasks() - before - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


async def test_several_asks_wait_and_the_newest_are_taken_back(region: Region) -> None:
    twins = [region.ask() for _ in range(3)]
    assert region.leases.asked() == {"shared": 3}
    region.leases.cancel("shared", 2)
    await region.until(lambda: len(region.cloud.given_back) == 2)
    assert region.leases.asked() == {"shared": 1}
    assert twins[0] not in region.cloud.given_back
    twins[0].come_up("a")
    await region.until(lambda: not region.leases.pending)
    assert list(region.leases.views()) == ["us-east@a"]


async def test_a_restarted_agent_is_silent_not_lost(region: Region) -> None:
    twin = await region.leased("a")
    twin.fall()
    await region.until(lambda: ("silent", "us-east@a") in region.heard)
    view = region.leases.views()["us-east@a"]
    assert (view.synced, view.lost) == (False, False)
    twin.come_up("a")
    await region.until(lambda: region.leases.views()["us-east@a"].synced)
    assert "lost" not in {what for what, _ in region.heard}


async def test_a_dead_machine_is_lost_at_once_and_its_agent_is_a_node_to_come(region: Region) -> None:
    twin = await region.leased("a")
    region.cloud.dead_machines.add("a")
    twin.fall()
    await region.until(lambda: ("lost", "us-east@a") in region.heard)
    view = region.leases.views()["us-east@a"]
    assert view.lost
    assert not view.synced
    assert region.leases.asked() == {"shared": 1}
    twin.come_up("b")
    await region.until(lambda: ("sync", "us-east@b") in region.heard)
    assert region.leases.views()["us-east@b"].synced
    assert region.leases.views()["us-east@a"].lost, "its servers may not have been dealt with yet"


async def test_an_agent_that_moves_leaves_a_node_that_needs_another(region: Region) -> None:
    twin = await region.leased("a")
    twin.fall()
    twin.come_up("b")
    await region.until(lambda: ("sync", "us-east@b") in region.heard)
    assert region.leases.asked() == {"shared": 1}, "somebody must speak for the node that was left"
    view = region.leases.views()["us-east@a"]
    assert (view.synced, view.lost) == (False, False)


async def test_an_agent_that_is_gone_for_good_is_no_lease_any_more(region: Region) -> None:
    twin = await region.leased("a")
    twin.gone = True
    twin.fall()
    await region.until(lambda: not region.leases.links())
    assert not region.leases.views()["us-east@a"].synced
    with pytest.raises(Unavailable):
        await region.leases.call("us-east@a", "retire", 1)


async def test_an_agent_that_cannot_begin_is_dropped(region: Region) -> None:
    twin = region.ask()
    twin.gone = True
    twin.shake()
    await region.until(lambda: not region.leases.pending)


async def test_only_an_empty_node_is_given_back(region: Region) -> None:
    twin = await region.leased("a")
    twin.runs = (None,)  # type: ignore[assignment]
    assert not await region.leases.release("us-east@a")
    assert region.leases.views()["us-east@a"].synced
    twin.runs = ()
    assert await region.leases.release("us-east@a")
    assert region.cloud.given_back == [twin]
    assert region.leases.views() == {}


async def test_the_next_manager_knows_what_drains(region: Region) -> None:
    twin = await region.leased("a")
    assert await region.leases.drain("us-east@a", Drain("operator"))
    assert region.leases.views()["us-east@a"].draining
    successor = Region()
    successor.cloud = region.cloud
    successor.leases._agents = region.cloud  # the same agents, found by name
    successor.leases.adopt()
    await successor.until(lambda: "us-east@a" in successor.leases.views())
    assert successor.leases.links()["us-east@a"].drain == Drain("operator")
    assert twin.drain == Drain("operator")


async def test_a_notice_of_the_node_drains_it(region: Region) -> None:
    twin = await region.leased("a")
    twin.drain = Drain("notice", 99)
    twin.shake()
    await region.until(lambda: region.leases.views()["us-east@a"].draining)
    assert region.leases.links()["us-east@a"].drain == Drain("notice", 99)


async def test_builds_that_a_node_has_are_seen_by_plans(region: Region) -> None:
    await region.leased("a")
    before = region.leases.views()
    region.leases.prepared("us-east@a", preparing=frozenset({"x"}))
    region.leases.prepared("us-east@a", preparing=frozenset(), present=frozenset({"x"}))
    view = region.leases.views()["us-east@a"]
    assert (view.builds, view.preparing) == (frozenset({"x"}), frozenset())
    assert region.leases.views() is not before
    assert region.leases.views() is region.leases.views()
