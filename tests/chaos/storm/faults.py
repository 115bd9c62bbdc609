"""How each kind of fault is done and undone. Games are hit behind everybody's back, by the engine."""

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.chaos.storm import sandbox
from tests.chaos.storm.ledger import Ledger
from tests.chaos.storm.schedule import Fault
from tests.chaos.storm.world import World

Undo = Callable[[], Awaitable[None]]
PROGRAMS = {
    "kill-manager": "ray::RegionManager",
    "kill-lobby-manager": "ray::LobbyKeeper",
    "kill-agent": "ray::NodeAgent",
    "kill-replica": "ray::ServeReplica",
    "kill-proxy": "bin/haproxy",
    "kill-gcs": "gcs_server",
    "hang-agent": "ray::NodeAgent",
    "hang-manager": "ray::RegionManager",
    "freeze-manager": "ray::RegionManager",
    "freeze-agent": "ray::NodeAgent",
}
HEALTHY_TARGETS = ("running", "created")


class Faults:
    """Does them to one world. What it did to a game is noted in the ledger: that one need not survive."""

    def __init__(self, world: World, ledger: Ledger) -> None:
        self._world = world
        self._ledger = ledger

    async def begin(self, fault: Fault) -> tuple[str, Undo | None]:
        """Do it; what was hit ("" if there was nothing to hit), and how it is undone."""
        kind = fault.kind
        if kind in PROGRAMS:
            return await self._program(fault)
        return await getattr(self, "_" + kind.replace("-", "_"))(fault)

    # Processes -------------------------------------------------------------------------------------------------------

    async def _program(self, fault: Fault) -> tuple[str, Undo | None]:
        pids = self._world.named(PROGRAMS[fault.kind])
        if not pids:
            return "", None
        pid = pids[fault.target % len(pids)]
        what = f"{PROGRAMS[fault.kind].rsplit('/', 1)[-1]} {pid}"
        if fault.kind.startswith("kill"):
            _send(pid, signal.SIGKILL)
            return what, None
        _send(pid, signal.SIGSTOP)
        if fault.kind.startswith("hang"):
            return what, None
        return what, _later(_send, pid, signal.SIGCONT)

    async def _kill_raylet(self, fault: Fault) -> tuple[str, Undo | None]:
        return self._kill_first("raylet/raylet", "head")

    async def _kill_node_raylet(self, fault: Fault) -> tuple[str, Undo | None]:
        nodes = sorted(self._world.node_runs)
        return self._kill_first("raylet/raylet", nodes[fault.target % len(nodes)])

    def _kill_first(self, word: str, place: str) -> tuple[str, Undo | None]:
        pids = self._world.named(word, place)
        for pid in pids[:1]:
            _send(pid, signal.SIGKILL)
        return (f"{word} of {place}" if pids else ""), None

    async def _kill_node_runner(self, fault: Fault) -> tuple[str, Undo | None]:
        """`fleet node run` itself; its service manager starts it again."""
        nodes = sorted(self._world.node_runs)
        name = nodes[fault.target % len(nodes)]
        run = self._world.node_runs[name]
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        await asyncio.to_thread(run.wait)
        return name, _later(self._world.run_node, name)

    async def _kill_head(self, fault: Fault) -> tuple[str, Undo | None]:
        """Every process of the head's home: Ray, replicas, managers, and the agents that are beside them."""
        work = f"/tmp/fleet-{self._world.home.fleet_id}/work"
        pids = [pid for pid in self._world.processes() if _folder(pid) == work]
        for pid in pids:
            _send(pid, signal.SIGKILL)
        return f"{len(pids)} processes", None

    async def _kill_supervisor(self, fault: Fault) -> tuple[str, Undo | None]:
        pid = self._world.supervisor
        if pid is None:
            return "", None
        _send(pid, signal.SIGKILL)
        return f"supervisor {pid}", lambda: asyncio.to_thread(self._world.up)

    async def _freeze_machine(self, fault: Fault) -> tuple[str, Undo | None]:
        """Every process of the fleet and every engine stands still, as virtual machines that are moved."""
        pids = list(self._world.processes())
        if (supervisor := self._world.supervisor) is not None:
            pids.append(supervisor)
        for pid in pids:
            _send(pid, signal.SIGSTOP)
        for machine in self._world.machines:
            machine.signal_engine(signal.SIGSTOP)

        async def thaw() -> None:
            for machine in self._world.machines:
                machine.signal_engine(signal.SIGCONT)
            for pid in pids:
                _send(pid, signal.SIGCONT)

        return f"{len(pids)} processes", thaw

    # What all stand on -----------------------------------------------------------------------------------------------

    def _machine(self, fault: Fault) -> sandbox.Machine:
        return self._world.machines[fault.target % len(self._world.machines)]

    async def _engine_hangs(self, fault: Fault) -> tuple[str, Undo | None]:
        machine = self._machine(fault)
        machine.signal_engine(signal.SIGSTOP)
        return machine.name, _later(machine.signal_engine, signal.SIGCONT)

    async def _engine_restarts(self, fault: Fault) -> tuple[str, Undo | None]:
        machine = self._machine(fault)
        machine.kill_engine()
        return machine.name, lambda: asyncio.to_thread(machine.start_engine)

    async def _database_locked(self, fault: Fault) -> tuple[str, Undo | None]:
        holder = sqlite3.connect(self._world.folder / "head" / "fleet.db", timeout=20, check_same_thread=False)
        holder.isolation_level = None
        await asyncio.to_thread(holder.execute, "BEGIN EXCLUSIVE")

        async def free() -> None:
            holder.execute("ROLLBACK")
            holder.close()

        return "fleet.db", free

    async def _database_hangs(self, fault: Fault) -> tuple[str, Undo | None]:
        assert self._world.postgres is not None
        pids = self._world.postgres.pids
        for pid in pids:
            _send(pid, signal.SIGSTOP)

        async def thaw() -> None:
            for pid in pids:
                _send(pid, signal.SIGCONT)

        return f"{len(pids)} processes", thaw

    async def _database_restarts(self, fault: Fault) -> tuple[str, Undo | None]:
        """As if it had crashed. It is started by this very thread, with which it would end."""
        assert self._world.postgres is not None
        for pid in self._world.postgres.pids:  # one that hangs would end only once it is thawed, and be away then
            _send(pid, signal.SIGCONT)
        self._world.postgres.halt(signal.SIGQUIT)
        self._world.postgres.start()
        return "postgres", None

    async def _disk_full(self, fault: Fault) -> tuple[str, Undo | None]:
        """Of the head, or of a node."""
        homes = self._world.homes
        filler = homes[fault.target % len(homes)] / "filler"
        await asyncio.to_thread(_fill, filler)

        async def free() -> None:
            filler.unlink(missing_ok=True)

        return filler.parent.name, free

    async def _store_away(self, fault: Fault) -> tuple[str, Undo | None]:
        if (store := self._world.s3) is not None:
            store.signal(signal.SIGSTOP)
            return "s3", _later(store.signal, signal.SIGCONT)
        archives = self._world.folder / "head" / "artefacts" / "archives"
        if not archives.exists():
            return "", None
        aside = archives.with_name("away")
        archives.rename(aside)

        async def back() -> None:
            if archives.exists():  # somebody wrote meanwhile
                for path in archives.iterdir():
                    path.replace(aside / path.name)
                archives.rmdir()
            aside.rename(archives)

        return "archives", back

    async def _network_cut(self, fault: Fault) -> tuple[str, Undo | None]:
        second = self._world.machines[1]
        sandbox.cut_cable(second, cut=True)
        self._ledger.cut_since = time.monotonic()

        async def mend() -> None:
            sandbox.cut_cable(second, cut=False)
            assert self._ledger.cut_since is not None
            self._ledger.was_cut(time.monotonic() - self._ledger.cut_since)

        return "cable", mend

    async def _clock_step(self, fault: Fault) -> tuple[str, Undo | None]:
        step = 3600 if fault.target % 2 else -3600
        self._world.step_clock(step)
        self._ledger.clock_stepped = True
        return f"{step:+d} s", _later(self._world.step_clock, 0)

    # Games -----------------------------------------------------------------------------------------------------------

    async def _game(self, fault: Fault) -> tuple[sandbox.Machine, dict[str, str]] | None:
        try:
            found = await asyncio.to_thread(self._world.containers)
        except Exception:  # its engine is away: nothing can be done to games
            return None
        games = sorted((one for one in found if one["server"] and one["state"] == "running"), key=lambda one: one["id"])
        spared = self._ledger.anchors
        games = [one for one in games if one["server"] not in spared]
        if not games:
            return None
        chosen = games[fault.target % len(games)]
        machine = next(machine for machine in self._world.machines if machine.name == chosen["machine"])
        self._ledger.hit(chosen["server"])
        return machine, chosen

    async def _by_engine(self, fault: Fault, *command: str) -> tuple[str, sandbox.Machine, str]:
        found = await self._game(fault)
        if found is None:
            return "", self._world.head, ""
        machine, game = found
        try:
            await asyncio.to_thread(machine.docker, *command, game["id"])
        except Exception:  # it has just ended, or its engine has
            return "", machine, game["id"]
        return f"{game['server'][:8]}.{game['generation']}", machine, game["id"]

    async def _kill_game(self, fault: Fault) -> tuple[str, Undo | None]:
        what, _, _ = await self._by_engine(fault, "kill", "--signal", "KILL")
        return what, None

    async def _remove_game(self, fault: Fault) -> tuple[str, Undo | None]:
        what, _, _ = await self._by_engine(fault, "rm", "--force")
        return what, None

    async def _pause_game(self, fault: Fault) -> tuple[str, Undo | None]:
        what, machine, name = await self._by_engine(fault, "pause")

        async def unpause() -> None:
            with suppress(Exception):  # it may have been stopped or removed meanwhile
                await asyncio.to_thread(machine.docker, "unpause", name)

        return what, unpause if what else None


def _later(act: Callable[..., None], *arguments: object) -> Undo:
    async def undo() -> None:
        act(*arguments)

    return undo


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _folder(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
    except OSError:
        return ""


def _fill(path: Path) -> None:
    """To the last byte, as a log that ran away does it."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 65536)


def stopped(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    return False
