"""A keeper comes up whatever is away when it begins, says what is missing, and outlives a sweep that hangs."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.errors import Unavailable
from fleet.lobbies import keeper as keeper_module
from fleet.lobbies import sweeper as sweeper_module
from fleet.lobbies.calls import Command, Poll
from fleet.lobbies.keeper import Keeper
from fleet.settings import get_settings
from fleet.store import migrate
from fleet.telemetry.families import merge
from fleet.times import now_ms
from tests.unit.api_kit import Api
from tests.unit.club import CONFIG, Club
from tests.waiting import soon


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fleet without a database: the folder where it should be is not there yet."""
    monkeypatch.setenv("FLEET_HOME", str(tmp_path))
    monkeypatch.setenv("FLEET_DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path / 'later' / 'fleet.db'}")
    monkeypatch.setattr(keeper_module, "setup_logging", lambda *_: None)
    get_settings.cache_clear()
    yield tmp_path
    get_settings.cache_clear()


async def test_it_comes_up_once_the_database_is_there_and_says_so_until_then(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "READY_S", 0.2)
    keeper = Keeper(0)
    try:
        await soon(lambda: "starting" not in str(keeper._startup.missing), 20)  # pyright: ignore[reportPrivateUsage]
        status = await keeper.status()
        assert (status["ready"], status["shard"]) == (False, 0)
        assert "unable to open database file" in status["missing"]
        for call in (keeper.commands([Command("get", "p", "c", "", ("x",))]), keeper.poll(Poll("s", first=True))):
            with pytest.raises(Unavailable, match="starting"):
                await asyncio.wait_for(call, 30)
        told = {sample.name: sample.value for one in merge(await keeper.metrics()) for sample in one.samples}
        assert told["fleet_lobbies_up"] == 0
        (home / "later").mkdir()
        await asyncio.to_thread(migrate.upgrade, get_settings().database)
        await soon(lambda: keeper._startup.done, 5 + 10)  # pyright: ignore[reportPrivateUsage]
        assert (await keeper.status())["missing"] is None
        told = {sample.name: sample.value for one in merge(await keeper.metrics()) for sample in one.samples}
        assert told["fleet_lobbies_up"] == 1
        (answer,) = await keeper.commands([Command("get", "p", "c", "", ("x",))])
        assert getattr(answer, "status", None) == 404
    finally:
        await keeper.close()


async def test_a_sweep_that_hangs_is_given_up_and_its_project_rests(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other project's tickets, which only a sweep can bring together, have their match meanwhile."""
    monkeypatch.setattr(sweeper_module, "HUNG_S", 0.2)
    projects = api.app.state.context.projects
    for project in (api.project, api.other):
        await projects.change_settings(project.project_id, {"lobby_configs": [CONFIG]})
    stuck, other = Club(api), Club(api)
    other.project = api.other.project_id
    core = await api.keepers.core()
    release = threading.Event()
    run = sweeper_module.Sweep.run

    def hangs(sweep: sweeper_module.Sweep, now: float, budget_s: float) -> None:
        if sweep is hung[0]:
            release.wait(20)
        run(sweep, now, budget_s)

    hung: list[object] = [None]
    begin = sweeper_module.MatchLoop.begin

    def begins(loop: sweeper_module.MatchLoop) -> sweeper_module.Sweep:
        sweep = begin(loop)
        if loop is core.queues[stuck.project, "duels", "ranked"].loop:
            hung[0] = sweep
        return sweep

    monkeypatch.setattr(sweeper_module.Sweep, "run", hangs)
    monkeypatch.setattr(sweeper_module.MatchLoop, "begin", begins)
    try:
        await stuck.lobby("a")
        await stuck.queue("a", mode="ranked")
        thread = core.sweeper.thread
        await soon(lambda: core.sweeper.thread is not thread, 10)
        for name in ("c", "d"):
            await other.lobby(name)
        key = (other.project, "duels", "ranked")
        await other.queue("c", mode="ranked")
        core.queues[key].held_until = now_ms() + 300  # both wait for a sweep
        await other.queue("d", mode="ranked")
        await other.sees("c", "in_game")
        assert set(core.sweeper._resting) == {stuck.project}  # pyright: ignore[reportPrivateUsage]
        assert (await stuck.do("mine", "a")).status == "in_queue"
    finally:
        release.set()
