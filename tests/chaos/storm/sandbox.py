"""Machines of the storm's own on this one: nobody else's network, mounts, processes or container engine is in reach.

`enter` runs this program again as root of new namespaces: processes (all end with it), mounts (own /run, own
/var/lib/docker) and network (a loopback and nothing else). So an engine can be killed, a firewall filled and a clock
stepped while others work on the same machine. A second machine is one more pair of namespaces, joined by a cable.
"""

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fleet.node.base_image import _CHANGES, _make, recipe_tag

INSIDE, IMAGE = "STORM_FOLDER", "STORM_IMAGE"
HEAD, NODE_A, NODE_B = "10.99.0.1", "10.99.0.3", "10.99.0.2"
CABLE = "cable0"
ENGINE_START_S = 60.0
_CONFIG = '{"userland-proxy": false, "live-restore": true, "icc": false}'


def missing() -> str | None:
    """Why there can be no machines of our own here."""
    if os.geteuid() != 0:
        return "only root may make namespaces"
    for program in ("unshare", "nsenter", "ip", "iptables", "dockerd", "mount"):
        if shutil.which(program) is None:
            return f"there is no {program}"
    done = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return None if done.returncode == 0 else f"namespaces are forbidden: {done.stderr.decode().strip()}"


def enter(module: str, arguments: list[str]) -> int:
    """Run the module in namespaces of its own; its exit code. What needs the world outside is made ready before.

    The module finds a folder for all that it writes in the variable INSIDE; it is removed in the end.
    """
    image = base_image_file()
    clock_library()
    folder = Path(tempfile.mkdtemp(prefix="storm-"))
    namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = [*namespaces, sys.executable, "-m", module, *arguments]
    try:
        inside = os.environ | {INSIDE: str(folder), IMAGE: str(image)}
        return subprocess.run(command, env=inside, check=False).returncode
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def become_first() -> None:
    """Leave the first process of the namespace behind as the one that buries orphans; go on in its child."""
    child = os.fork()
    if child == 0:
        return
    with suppress(ChildProcessError):
        while True:
            ended, status = os.wait()
            if ended == child:
                os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def clock_library() -> Path | None:
    """What makes processes see another wall clock (clock.c); None where there is no compiler."""
    if shutil.which("gcc") is None:
        return None
    source = Path(__file__).parent / "clock.c"
    made = _cache() / f"clock-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}.so"
    if not made.exists():
        draft = made.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", draft, source, "-ldl"], check=True)
        draft.rename(made)
    return made


def _cache() -> Path:
    cache = Path(tempfile.gettempdir()) / f"fleet-test-games-{os.getuid()}"
    cache.mkdir(exist_ok=True)
    return cache


def base_image_file() -> Path:
    """The image for ZIP builds as a file, made once: there is no way to a package archive from inside."""
    kept = _cache() / f"{recipe_tag().replace(':', '-')}.tar"
    if not kept.exists():
        asyncio.run(_make(_Kept(kept), recipe_tag()))  # pyright: ignore[reportArgumentType]
    return kept


class _Kept:
    """Takes the image in place of an engine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def call(self, method: str, path: str, *, data: Any = None, **_: Any) -> Any:
        if method != "POST":
            return {}
        draft = self._path.with_suffix(f".{os.getpid()}")
        with draft.open("wb") as file:
            async for chunk in data:
                file.write(chunk)
        draft.rename(self._path)
        return None


class Machine:
    """One machine: its engine, and how to run something there. `holder` keeps the namespaces of the second one."""

    def __init__(self, name: str, folder: Path, holder: int | None = None) -> None:
        self.name = name
        self.folder = folder
        self._inside = ["nsenter", f"--target={holder}", "--net", "--uts", "--mount", "--"] if holder else []
        self.socket = folder / "docker.sock"
        self._engine: subprocess.Popen[bytes] | None = None

    def command(self, *command: str) -> list[str]:
        return [*self._inside, *command]

    def run(self, *command: str) -> str:
        done = subprocess.run(self.command(*command), capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: {' '.join(command)}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def docker(self, *arguments: str) -> str:
        return self.run("docker", "--host", f"unix://{self.socket}", *arguments)

    # The engine ------------------------------------------------------------------------------------------------------

    def start_engine(self) -> None:
        """Start dockerd and wait until it answers; its containers of before are there again."""
        config = self.folder / "dockerd.json"
        config.write_text(_CONFIG)
        with suppress(RuntimeError):
            self.run("rm", "-f", "/run/docker.pid")
        command = [
            "dockerd",
            "--config-file",
            str(config),
            "-H",
            "unix:///run/docker.sock",
            "-H",
            f"unix://{self.socket}",
        ]
        with (self.folder / "dockerd.log").open("ab") as log:
            self._engine = subprocess.Popen(
                self.command(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + ENGINE_START_S
        while not self.engine_answers():
            if time.monotonic() > end:
                raise RuntimeError(f"{self.name}: the engine does not start, see {self.folder}/dockerd.log")
            time.sleep(0.1)

    def engine_answers(self) -> bool:
        with suppress(RuntimeError, subprocess.TimeoutExpired):
            command = ["docker", "--host", f"unix://{self.socket}", "version"]
            return subprocess.run(command, capture_output=True, timeout=5, check=False).returncode == 0
        return False

    def signal_engine(self, number: signal.Signals) -> None:
        """Only dockerd: containerd and its shims go on, as they do when a machine's engine is restarted."""
        assert self._engine is not None
        self._engine.send_signal(number)

    def kill_engine(self) -> None:
        assert self._engine is not None
        self._engine.kill()
        self._engine.wait()

    def load(self, image: Path) -> None:
        changes = [part for change in _CHANGES for part in ("--change", change)]
        self.docker("import", *changes, str(image), recipe_tag())

    # Its disk --------------------------------------------------------------------------------------------------------

    @staticmethod
    def shared_disk(folder: Path) -> None:
        """What is mounted below that folder later is seen by every machine."""
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "storm", folder], check=True)
        subprocess.run(["mount", "--make-shared", folder], check=True)

    @staticmethod
    def small_disk(folder: Path, megabytes: int) -> None:
        """A disk of its own at that folder, so that it can be filled."""
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "storm", folder], check=True)


def first_machine(folder: Path) -> Machine:
    """This namespace as a machine. Once per process."""
    folder.mkdir(parents=True)
    _own_run(folder)
    # Nobody answers for names here, and says so at once.
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    subprocess.run(["mount", "--bind", folder / "resolv.conf", "/etc/resolv.conf"], check=True)
    _ip("link set lo up")
    _ip(f"link add {CABLE} type veth peer name {CABLE}b")
    for address in (HEAD, NODE_A):
        _ip(f"addr add {address}/24 dev {CABLE}")
    _ip(f"link set {CABLE} up")
    _ip(f"route add default via {NODE_B} dev {CABLE}")
    return Machine("head", folder)


def second_machine(folder: Path) -> Machine:
    """A machine at the other end of the cable. Everything that is mounted by now is there too."""
    folder.mkdir(parents=True)
    holder = subprocess.Popen(
        ["unshare", "--net", "--uts", "--mount", "--propagation", "unchanged", "sleep", "infinity"]
    )
    own = f"/proc/{holder.pid}/ns/net"
    end = time.monotonic() + 10
    while os.readlink(own) == os.readlink("/proc/self/ns/net"):
        assert time.monotonic() < end
        time.sleep(0.02)
    machine = Machine("second", folder, holder.pid)
    machine.run("mount", "--make-rslave", "/")
    machine.run("hostname", "storm-second")  # nodes are told apart by it
    _ip(f"link set {CABLE}b netns {holder.pid}")
    (folder / "docker").mkdir()
    machine.run("mount", "-t", "tmpfs", "tmpfs", "/run")
    machine.run("mount", "--bind", str(folder / "docker"), "/var/lib/docker")
    machine.run("ip", "link", "set", "lo", "up")
    machine.run("ip", "addr", "add", f"{NODE_B}/24", "dev", f"{CABLE}b")
    machine.run("ip", "link", "set", f"{CABLE}b", "up")
    machine.run("ip", "route", "add", "default", "via", HEAD, "dev", f"{CABLE}b")
    return machine


def cut_cable(second: Machine, *, cut: bool) -> None:
    """What the machines say to each other is lost in silence, both ways. Players still reach the games."""
    how = "-I" if cut else "-D"
    subprocess.run(["iptables", how, "INPUT", "-i", CABLE, "-p", "tcp", "-j", "DROP"], check=True)
    second.run("iptables", how, "INPUT", "-i", f"{CABLE}b", "-p", "tcp", "-j", "DROP")


def _own_run(folder: Path) -> None:
    (folder / "docker").mkdir()
    Path("/var/lib/docker").mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    Path("/run/lock").mkdir()
    subprocess.run(["mount", "--bind", folder / "docker", "/var/lib/docker"], check=True)


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)
