"""The folder of one run of the process runtime: everything that is known of it, read back by any agent."""

import contextlib
import os
import posixpath
import shutil
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import orjson

from fleet.node.executable import executable_of, game_arguments
from fleet.node.game_api import CONFIG_PATH
from fleet.node.runtime import BuildRef, LaunchSpec, Observed, Port, RunKey
from fleet.node.server_folder import CONFIG_FILE
from fleet.node.shim import start_time

_PATH = "/usr/local/bin:/usr/bin:/bin"


class RunFolder:
    """Reads answer from the files each time: the keeper writes them, each atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def key(self) -> RunKey:
        instance_id, _, generation = self.path.name.rpartition(".")
        return RunKey(instance_id, int(generation))

    def describe(self, description: dict[str, Any]) -> None:
        draft = self.path / "run.json.part"
        draft.touch(mode=0o600)
        draft.write_bytes(orjson.dumps(description))
        draft.replace(self.path / "run.json")

    def description(self) -> dict[str, Any]:
        """What was launched; {} if that was never written down."""
        return self._read("run.json") or {}

    def belongs_to(self, fleet_id: str, region: str) -> bool:
        described = self.description()
        return described.get("fleet_id") == fleet_id and described.get("region") == region

    def beside_executable(self, build: BuildRef) -> Path:
        return (self.path / "game" / build.root / executable_of(build)).parent

    def config_folder(self) -> Path:
        """Where the described run has its playflow.json (a folder that is not there, if the run is gone)."""
        described = self.description()
        return Path(described.get("folder", self.path / "game"), described.get("beside", ""))

    def shim_pid(self) -> int:
        """The keeper's pid; 0 if it does not run."""
        return self._living("shim.json")

    def game_pid(self) -> int:
        return self._living("game.json")

    def alive(self) -> bool:
        return self.shim_pid() != 0

    def ended(self) -> bool:
        """It ran and is over, whether or not its end was written down."""
        return not self.alive() and (self.path / "game.json").exists()

    def exit(self) -> dict[str, Any] | None:
        return self._read("exit.json")

    def record_exit(self, end: dict[str, Any]) -> None:
        (self.path / "exit.json.part").write_bytes(orjson.dumps(end))
        (self.path / "exit.json.part").replace(self.path / "exit.json")

    def open_pidfd(self) -> int | None:
        """A pidfd of the keeper; None if it does not run."""
        pid = self.shim_pid()
        if not pid:
            return None
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        if self.shim_pid() != pid:  # it ended in between and the pid may be another's
            os.close(descriptor)
            return None
        return descriptor

    def signal_game(self, number: signal.Signals) -> None:
        """Signal the game and what it started; nothing if it is gone."""
        pid = self.game_pid()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)

    def frozen(self) -> bool:
        game = self.game_pid()
        return bool(game) and _state_of(game) == b"T"

    def freeze(self, frozen: bool) -> bool:
        """Stop or continue the game and all it started; False if it does not run.

        Those that a process forked while it was being stopped are found by looking again.
        """
        game, keeper = self.game_pid(), self.shim_pid()
        done = {keeper}
        number = signal.SIGSTOP if frozen else signal.SIGCONT
        while game and (found := set(family(keeper)) - done):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            done |= found
        return bool(game)

    def observed(self) -> Observed:
        described, end, started = self.description(), self.exit(), self._read("game.json")
        running = self.alive()
        if not running and end is None and started is not None:
            end = {"code": -1, "at": None}
        return Observed(
            key=self.key(),
            running=running,
            ports=tuple(Port(*fields) for fields in described["ports"]),
            labels=described["labels"],
            started_at=started["at"] if started else None,
            ended_at=end["at"] if end and not running else None,
            exit_code=end["code"] if end and not running else None,
            memory_mb=described["memory_mb"],
            cpus=described["cpus"],
            frozen=running and self.frozen(),
        )

    def _living(self, name: str) -> int:
        """Pid of the process recorded in a file, if that very process still runs (and is no zombie)."""
        recorded = self._read(name)
        if recorded is None:
            return 0
        try:
            state = _state_of(recorded["pid"])
            same = start_time(recorded["pid"]) == recorded["start"]
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return recorded["pid"] if same and state != b"Z" else 0

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return orjson.loads((self.path / name).read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):  # empty after a power cut: as if it had not been written
            return None


def fill_folder(target: Path, bundle: Path, *, writable: bool) -> None:
    """A fresh run folder with the game's files: hard links, or copies where the game may write to them.

    What an interrupted launch left is replaced. playflow.json comes later, as a file of this run.
    """
    shutil.rmtree(target, ignore_errors=True)
    for name in ("tmp", "home"):
        (target / name).mkdir(parents=True)
    copy = shutil.copy2 if writable else os.link
    shutil.copytree(bundle, target / "game", symlinks=True, copy_function=copy, ignore=_config_links)
    if writable:
        for path in (target / "game").rglob("*"):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o200)


def _config_links(folder: str, names: list[str]) -> list[str]:
    # It points into a container's mount; here the file itself is written.
    return [name for name in names if name == CONFIG_FILE and os.path.islink(os.path.join(folder, name))]


def run_description(spec: LaunchSpec, run: RunFolder, fleet_id: str, door: str) -> dict[str, Any]:
    """run.json: what the keeper starts, and what a restarted agent must know."""
    folder = run.path / "game" / spec.build.root
    executable = executable_of(spec.build)
    arguments = game_arguments(spec.startup_args, {port.name: port.published for port in spec.ports})
    return {
        "fleet_id": fleet_id,
        "region": spec.region,
        "labels": spec.labels,
        "ports": [[port.name, *port.numbers()] for port in spec.ports],
        "bind_host": spec.bind_host,
        "memory_mb": spec.memory_mb,
        "cpus": spec.cpus,
        "folder": str(folder),
        "beside": posixpath.dirname(executable),
        "command": [str(folder / executable), *arguments],
        "environment": {
            "PLAYFLOW_CONFIG_URL": door,
            "PLAYFLOW_AGENT_URL": door.removesuffix(CONFIG_PATH),
            **_environment(spec, run),
        },
        "door": door,
        "limits": _limits(spec),
        "log_bytes": spec.log_mb << 20,
    }


def _environment(spec: LaunchSpec, run: RunFolder) -> dict[str, str]:
    defaults = {
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        "HOME": str(run.path / "home"),
        "TMPDIR": str(run.path / "tmp"),
        "PLAYFLOW_CONFIG": str(run.beside_executable(spec.build) / CONFIG_FILE),
    }
    ports = {f"PLAYFLOW_PORT_{port_variable(port.name)}": str(port.published) for port in spec.ports}
    return defaults | spec.environment | ports


def port_variable(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name).upper()


def _limits(spec: LaunchSpec) -> dict[str, int]:
    """Against accidents, not attacks: generous, since address space is not memory and NPROC counts the whole user."""
    return {
        "AS": (spec.memory_mb * 4 + 4096) << 20,
        "NPROC": 4096 + 4 * spec.pids,
        "FSIZE": (1024 + spec.writable_extra_mb) << 20,
        "NOFILE": 4096,
        "CORE": 0,
    }


def family(root: int) -> Generator[int]:
    """Process `root` and its descendants, each before its children are looked for."""
    waiting = [root] if root else []
    while waiting:
        pid = waiting.pop()
        yield pid
        with contextlib.suppress(OSError):  # a process may end while it is looked at
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                waiting += [int(child) for child in children.read_text().split()]


def socket_inodes(root: int) -> set[int]:
    """Inodes of all sockets held by process `root` and its descendants."""
    inodes: set[int] = set()
    for pid in family(root):
        with contextlib.suppress(OSError):
            inodes |= _sockets_of(pid)
    return inodes


def _state_of(pid: int) -> bytes:
    """The kernel's letter for a process: Z is a zombie, T is stopped."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]


def _sockets_of(pid: int) -> set[int]:
    inodes: set[int] = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
            if target.startswith("socket:["):
                inodes.add(int(target[8:-1]))
    return inodes
