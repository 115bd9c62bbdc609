"""Leases under everything that agents do: come late, fall silent, die with their machine, move, go for good."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from fleet.errors import Conflict, Unavailable
from fleet.node.model import Drain, Hello, NodeShare, Page, RunState, RunView
from fleet.node.runtime import RunKey
from fleet.region import leases as leases_module
from fleet.region.agents import Presence
from fleet.region.leases import Leases
from fleet.region.model import StopRun
from fleet.region.parts import policy_of
from fleet.region.plan import plan
from fleet.region.runs import Runs
from fleet.region.silence import SilencePolicy
from fleet.settings import FleetSettings
from fleet.store.tables import Server
from fleet.times import now_ms

RESTART_MS = 200  # of the tests' policy: begun anew after that, lost after twice as long
SHARE = NodeShare(4096, 4.0, 20_000, 20_100, "127.0.0.1", "127.0.0.1")
A_RUN = RunView(RunKey("one", 1), "us-east@a", RunState.RUNNING, 1)


class Twin:
    """An agent without Ray: `machine` is where it is now, None while it waits for one."""

    def __init__(self) -> None:
        self.machine: str | None = None
        self.gone = False
        self.moved = asyncio.Event()
        self.hangs = False
        self.starting = ""
        self.life = 0
        self.drain: Drain | None = None
        self.runs: tuple[RunView, ...] = ()
        self.events: tuple[RunView, ...] = ()

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

    async def hang(self) -> None:
        """As a process does that got SIGSTOP: it is there, and answers nothing."""
        if self.hangs:
            await asyncio.Event().wait()

    async def do_hello(self, _epoch: int) -> Hello:
        await self.hang()
        if self.starting:
            raise Unavailable(self.starting)
        while self.machine is None:
            if self.gone:
                raise ActorDiedError
            if self.life:
                raise ActorUnavailableError("restarting", None)
            await self.moved.wait()
        node_id = f"us-east@{self.machine}"
        return Hello(str(self.life), 0, node_id, "h", SHARE, "twin", self.runs, self.machine, drain=self.drain)

    async def do_poll(self, _epoch: int, boot_id: str, after: int, timeout_s: float) -> Page | None:
        await self.hang()
        moved = self.moved
        if boot_id == str(self.life) and self.machine is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await moved.wait()
            await self.hang()
        if self.machine is None:
            raise ActorDiedError if self.gone else ActorUnavailableError("restarting", None)
        return None if boot_id != str(self.life) else Page(after, self.events, self.drain)

    async def do_launch(self, _epoch: int, _spec: Any) -> None:
        await self.hang()

    async def do_set_drain(self, _epoch: int, drain: Drain | None) -> None:
        self.drain = drain

    async def do_retire(self, _epoch: int) -> None:
        if self.runs:
            raise Conflict("in use")


class Cloud:
    def __init__(self) -> None:
        self.twins: dict[str, Twin] = {}
        self.given_back: list[Any] = []
        self.restarted: list[Any] = []
        self.unkillable: list[Any] = []
        self.returning: list[Twin] = []
        self.dead_machines: set[str] = set()

    def known(self) -> dict[str, Any]:
        return dict(self.twins)

    def twin(self) -> Twin:
        """An agent that an earlier manager has asked for."""
        return self.ask("shared", ())[1]

    def latest(self) -> Twin:
        return list(self.twins.values())[-1]

    def ask(self, node_class: str, _known: Collection[str]) -> tuple[str, Any]:
        name = f"agent:us-east:{node_class}:{len(self.twins)}"
        self.twins[name] = Twin()
        return name, self.twins[name]

    def give_back(self, handle: Any) -> None:
        self.given_back.append(handle)

    def restart(self, handle: Twin) -> None:
        self.restarted.append(handle)
        if handle.machine is not None and handle not in self.unkillable:
            handle.hangs = False
            handle.come_up(handle.machine)

    async def presence(self, handle: Twin) -> Presence:
        if handle.machine is None:
            return Presence.RETURNS if handle in self.returning else Presence.WAITING
        return Presence.HANGS if handle.hangs else Presence.ANSWERS

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
            silence=SilencePolicy(RESTART_MS, starting_ms=2_000),
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

    def synced(self, machine: str) -> bool:
        view = self.leases.views().get(f"us-east@{machine}")
        return view is not None and view.synced

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
    monkeypatch.setattr(leases_module, "LOOK_S", 0.01)
    monkeypatch.setattr(leases_module, "_POLL_S", 0.05)
    monkeypatch.setattr(leases_module, "_GRACE_S", 0.05)
    monkeypatch.setattr(leases_module, "_HELLO_S", 0.1)
    before = asyncio.all_tasks()
    made = Region()
    yield made
    await made.leases.close()
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
    await region.until(lambda: not region.leases.asked())
    assert list(region.leases.views()) == ["us-east@a"]


async def test_a_restarted_agent_is_silent_not_lost(region: Region) -> None:
    twin = await region.leased("a")
    twin.fall()
    await region.until(lambda: ("silent", "us-east@a") in region.heard)
    view = region.leases.views()["us-east@a"]
    assert (view.synced, view.lost) == (False, False)
    twin.come_up("a")
    await region.until(lambda: region.synced("a"))
    assert "lost" not in {what for what, _ in region.heard}


async def test_a_machine_that_ended_for_sure_is_lost_at_once(region: Region) -> None:
    twin = await region.leased("a")
    region.cloud.dead_machines.add("a")
    twin.fall()
    await region.until(lambda: ("lost", "us-east@a") in region.heard)
    view = region.leases.views()["us-east@a"]
    assert view.lost
    assert not view.synced
    assert region.leases.asked() == {"shared": 1}
    region.cloud.latest().come_up("b")
    await region.until(lambda: ("sync", "us-east@b") in region.heard)
    assert region.leases.views()["us-east@b"].synced
    assert region.leases.views()["us-east@a"].lost, "its servers may not have been dealt with yet"


async def test_a_raylet_that_ended_is_waited_for_and_its_node_adopted_by_another_agent(region: Region) -> None:
    """The games go on while the machine's Ray is begun anew; the agent may come up there or elsewhere meanwhile."""
    twin = await region.leased("a")
    twin.fall()
    await asyncio.sleep(RESTART_MS / 2000)
    assert ("lost", "us-east@a") not in region.heard
    twin.come_up("b")  # where Ray had room first
    await region.until(lambda: region.leases.asked() == {"shared": 1})
    region.cloud.latest().come_up("a")
    await region.until(lambda: region.synced("a"))
    await asyncio.sleep(3 * RESTART_MS / 1000)
    assert ("lost", "us-east@a") not in region.heard


async def test_silence_is_loss_after_the_bound_and_another_node_is_asked_for(region: Region) -> None:
    """An agent that never comes back: lost within twice the time of a restart, and ended so that nobody waits on it."""
    loop = asyncio.get_running_loop()
    twin = await region.leased("a")
    twin.fall()
    began = loop.time()
    await region.until(lambda: ("lost", "us-east@a") in region.heard)
    assert loop.time() - began + 0.05 >= 2 * RESTART_MS / 1000
    assert region.leases.views()["us-east@a"].lost
    await region.until(lambda: twin in region.cloud.given_back)
    assert "us-east@a" not in region.leases.links()
    assert region.leases.asked() == {"shared": 1}


async def test_a_hung_agent_is_seen_soon_and_begun_anew(region: Region) -> None:
    """Its node gets nothing more from the moment its poll does not come back, and commands to it end at once."""
    twin = await region.leased("a")
    twin.hangs = True
    launch = asyncio.ensure_future(region.leases.call("us-east@a", "launch", 1, None))
    await region.until(lambda: not region.synced("a"))
    with pytest.raises(Unavailable):
        await launch
    with pytest.raises(Unavailable):
        await region.leases.call("us-east@a", "launch", 1, None, timeout_s=0.001)
    await region.until(lambda: region.synced("a"))
    assert region.cloud.restarted == [twin]
    assert "lost" not in {what for what, _ in region.heard}


async def test_an_agent_that_hangs_in_spite_of_a_restart_is_lost(region: Region) -> None:
    twin = await region.leased("a")
    region.cloud.unkillable.append(twin)
    twin.hangs = True
    await region.until(lambda: ("lost", "us-east@a") in region.heard)
    assert region.cloud.restarted == [twin]
    await region.until(lambda: twin in region.cloud.given_back)
    assert region.leases.asked() == {"shared": 1}


async def test_silence_counts_from_when_the_agent_was_last_heard(region: Region) -> None:
    twin = await region.leased("a")
    twin.hangs = True
    heard = region.leases.links()["us-east@a"].heard
    await region.until(lambda: not region.synced("a"))
    since = region.leases.views()["us-east@a"].unsynced_since
    assert since is not None
    assert heard <= since <= heard + 50, "not the 100 ms later when the poll was given up"


async def test_an_agent_that_says_that_it_starts_is_waited_for(region: Region) -> None:
    """As one whose engine is away: not killed again and again, nor its games lost, long after the bound of silence."""
    twin = await region.leased("a")
    twin.starting = "the engine does not answer"
    twin.come_up("a")
    await asyncio.sleep(4 * RESTART_MS / 1000)
    assert region.cloud.restarted == []
    assert {what for what, _ in region.heard} == {"sync", "silent"}
    twin.starting = ""
    await region.until(lambda: region.synced("a"))


async def test_an_agent_that_starts_for_ever_is_lost_at_last(region: Region) -> None:
    twin = await region.leased("a")
    twin.starting = "the engine does not answer"
    twin.come_up("a")
    await region.until(lambda: ("lost", "us-east@a") in region.heard)


async def test_a_lost_node_that_returns_is_no_longer_lost(region: Region) -> None:
    twin = await region.leased("a")
    twin.fall()
    await region.until(lambda: ("lost", "us-east@a") in region.heard)
    region.cloud.latest().come_up("a")
    await region.until(lambda: region.heard[-1] == ("sync", "us-east@a"))
    view = region.leases.views()["us-east@a"]
    assert (view.synced, view.lost) == (True, False)


async def test_the_loss_of_a_node_is_told_until_it_is_taken_note_of(region: Region) -> None:
    """The database may be away at that moment."""
    refuse = [OSError("database is locked"), OSError("database is locked")]

    async def lost(node_id: str) -> None:
        if refuse:
            raise refuse.pop()
        region.heard.append(("lost", node_id))

    region.leases._on_lost = lost
    twin = await region.leased("a")
    twin.fall()
    await region.until(lambda: ("lost", "us-east@a") in region.heard)
    assert refuse == []
    region.cloud.latest().come_up("b")
    await region.until(lambda: region.synced("b"))
    assert region.leases.asked() == {}


async def test_a_loss_that_was_not_told_yet_is_void_when_the_node_is_back(region: Region) -> None:
    """Else what it has just told would be dropped."""
    tried = asyncio.Event()

    async def lost(_node_id: str) -> None:
        tried.set()
        raise OSError("database is locked")

    region.leases._on_lost = lost
    twin = await region.leased("a")
    twin.fall()
    await tried.wait()
    region.cloud.latest().come_up("a")
    await region.until(lambda: region.synced("a"))
    tried.clear()
    await asyncio.sleep(1.0)  # the next tries come after 0.2 and 0.4 s
    assert not tried.is_set()


@pytest.mark.parametrize("what", ["_on_sync", "_on_events", "_on_silent", "on_change", "dead"])
async def test_following_goes_on_whatever_fails_once(region: Region, what: str) -> None:
    """Ray's head, the database, or our own code: the agent is followed as long as there is one."""
    twin = await region.leased("a")
    owner = region.cloud if what == "dead" else region.leases
    real = getattr(owner, what)
    failed: list[str] = []

    def once(*arguments: Any) -> Any:
        if not failed:
            failed.append(what)
            raise ConnectionError("GCS does not answer")
        return real(*arguments)

    setattr(owner, what, once)
    twin.events = (A_RUN,)
    twin.fall()
    await asyncio.sleep(0.05)
    twin.come_up("a")
    await region.until(lambda: bool(failed))
    await region.until(lambda: region.synced("a"))
    twin.fall()
    await region.until(lambda: not region.synced("a"))
    twin.come_up("a")
    await region.until(lambda: region.synced("a"))


async def test_a_lease_is_given_back_however_often_that_fails(region: Region) -> None:
    refuse = [ConnectionError("GCS does not answer")]
    real = region.cloud.give_back

    def give_back(handle: Any) -> None:
        if refuse:
            raise refuse.pop()
        real(handle)

    region.cloud.give_back = give_back  # type: ignore[method-assign]
    twin = await region.leased("a")
    assert await region.leases.release("us-east@a")
    assert region.cloud.given_back == [twin]


async def test_a_release_that_fails_may_be_tried_again(region: Region) -> None:
    twin = await region.leased("a")
    real = region.leases.call

    async def fails(*_: Any) -> None:
        raise ZeroDivisionError

    region.leases.call = fails  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        await region.leases.release("us-east@a")
    region.leases.call = real  # type: ignore[method-assign]
    assert await region.leases.release("us-east@a")
    assert region.cloud.given_back == [twin]


async def test_a_node_that_was_not_told_that_it_drains_is_told_again(region: Region) -> None:
    twin = await region.leased("a")
    real, refuse = twin.do_set_drain, [True]

    async def set_drain(epoch: int, drain: Drain | None) -> None:
        if refuse:
            refuse.pop()
            raise ActorUnavailableError("a hiccup", None)
        await real(epoch, drain)

    twin.do_set_drain = set_drain  # type: ignore[method-assign]
    assert await region.leases.drain("us-east@a", Drain("operator"))
    assert twin.drain is None
    await region.until(lambda: twin.drain == Drain("operator"))


async def test_a_manager_that_stood_still_loses_nobody(region: Region) -> None:
    """Its whole machine was frozen, or its loop was busy: the agents were not silent, nobody listened."""
    await region.leased("a")
    time.sleep(3 * RESTART_MS / 1000)  # noqa: ASYNC251
    await region.until(lambda: region.synced("a"))
    await asyncio.sleep(RESTART_MS / 1000)
    assert region.synced("a")
    assert region.cloud.restarted == []
    assert ("lost", "us-east@a") not in region.heard


async def test_a_known_agent_that_never_answers_is_replaced(region: Region) -> None:
    """Left by an earlier manager; one that only waits for a machine is left alone."""
    hung, waits = region.cloud.twin(), region.cloud.twin()
    region.cloud.unkillable.append(hung)
    hung.hangs, hung.machine = True, "a"
    region.leases.adopt()
    await region.until(lambda: hung in region.cloud.given_back)
    assert waits not in region.cloud.given_back
    assert region.leases.asked() == {"shared": 2}


async def test_an_agent_that_ray_never_gets_started_again_is_replaced(region: Region) -> None:
    """Left by an earlier manager: after a cut Ray may have queued it on a machine whose place another agent has."""
    stuck = region.cloud.twin()
    region.cloud.returning.append(stuck)
    region.leases.adopt()
    await region.until(lambda: stuck in region.cloud.given_back)
    assert region.leases.asked() == {"shared": 1}


async def test_background_failures_of_nodes_are_known(region: Region) -> None:
    await region.leased("a")
    link = region.leases.links()["us-east@a"]
    link.failures, link.failing = {"node.usage": 3}, ("node.usage",)
    assert region.leases.background() == {"node:us-east@a": ({"node.usage": 3}, ["node.usage"])}


async def test_an_agent_that_moves_leaves_a_node_that_needs_another(region: Region) -> None:
    twin = await region.leased("a")
    twin.fall()
    twin.come_up("b")
    await region.until(lambda: ("sync", "us-east@b") in region.heard)
    assert region.leases.asked() == {"shared": 1}, "somebody must speak for the node that was left"
    view = region.leases.views()["us-east@a"]
    assert (view.synced, view.lost) == (False, False)


async def test_another_agent_is_asked_for_where_one_is_gone_for_good(region: Region) -> None:
    """Its machine lives: the games there are to be heard of again."""
    twin = await region.leased("a")
    twin.gone = True
    twin.fall()
    await region.until(lambda: not region.leases.links())
    assert not region.leases.views()["us-east@a"].synced
    assert not region.leases.views()["us-east@a"].lost
    with pytest.raises(Unavailable):
        await region.leases.call("us-east@a", "retire", 1)
    assert region.leases.asked() == {"shared": 1}
    region.cloud.latest().come_up("a")
    await region.until(lambda: region.synced("a"))
    assert ("lost", "us-east@a") not in region.heard


async def test_a_node_whose_agent_is_gone_for_good_and_that_nobody_speaks_for_is_lost(region: Region) -> None:
    twin = await region.leased("a")
    twin.gone = True
    twin.fall()
    await region.until(lambda: ("lost", "us-east@a") in region.heard)
    assert region.leases.views()["us-east@a"].lost


async def test_an_agent_that_cannot_begin_is_dropped(region: Region) -> None:
    twin = region.ask()
    twin.gone = True
    twin.shake()
    await region.until(lambda: not region.leases.asked())


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


async def test_a_returned_nodes_old_runs_are_stopped_at_its_first_word(region: Region) -> None:
    """A server that was started elsewhere has another generation, one that was ended has no row that runs."""
    twin = await region.leased("a")
    runs, actions = Runs(), list[Any]()
    now = now_ms()
    again = Server(
        instance_id="again", generation=2, status="running", step="running", node_id="us-east@b", **row("again", now)
    )
    ended = Server(
        instance_id="ended", generation=1, status="stopped", step="stopping", node_id="us-east@a", **row("ended", now)
    )
    policy = policy_of(FleetSettings(home=Path("nowhere")))

    async def sync(hello: Hello) -> None:
        runs.replace_node(hello.node_id, hello.runs)
        actions.extend(plan([again, ended], runs, region.leases.views(), now_ms(), policy))

    twin.fall()
    await region.until(lambda: ("lost", "us-east@a") in region.heard)
    region.leases._on_sync = sync
    runs[RunKey("again", 2)] = RunView(RunKey("again", 2), "us-east@b", RunState.RUNNING, now)
    back = region.cloud.latest()
    back.runs = tuple(
        RunView(RunKey(name, 1), "us-east@a", RunState.RUNNING, now) for name in ("again", "ended", "of no row")
    )
    back.come_up("a")
    await region.until(lambda: bool(actions))
    stops = {action.key for action in actions if isinstance(action, StopRun)}
    assert stops == {RunKey("again", 1), RunKey("ended", 1), RunKey("of no row", 1)}


def row(name: str, now: int) -> dict[str, Any]:
    times = dict.fromkeys(("created_at", "updated_at", "launched_at", "step_at", "started_at"), now)
    return {"project_id": "p", "region": "us-east", "name": name, "compute_size": "small", "build_id": "b"} | {
        "version_tag": "default",
        **times,
    }
