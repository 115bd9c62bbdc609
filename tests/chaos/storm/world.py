"""The fleet that the storm is about: its processes, its database, its machines, and how to find each."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fleet.ops.home import Home, find_home, free_ports, read_access
from fleet.ops.processes import MARKER, command_of, environment_of
from fleet.ops.supervisor import lock_holder
from fleet.store.engine import Store
from tests.chaos.storm import sandbox
from tests.chaos.storm.sandbox import HEAD, NODE_A, NODE_B, Machine
from tests.postgres import PostgresServer
from tests.s3 import LOGIN, S3Server

ROOT = Path(__file__).parent.parent.parent.parent
REGIONS = ("us-east", "eu-west")
PER_REGION = 2  # nodes
DISK_MB = 600
UP_S = 150.0


@dataclass
class World:
    """A running fleet. `machines`: 1 has head and nodes in one, 2 has the head, a node beside it and one far away."""

    folder: Path
    database: str
    machines: list[Machine]
    env: dict[str, str]
    clock: Path
    postgres: PostgresServer | None = None
    s3: S3Server | None = None
    node_runs: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def head(self) -> Machine:
        return self.machines[0]

    @property
    def home(self) -> Home:
        found = find_home(self.folder / "head")
        assert found is not None
        return found

    @property
    def homes(self) -> list[Path]:
        """Of the head and of each joined node."""
        return [self.folder / "head", *(self.folder / name for name in self.node_runs)]

    @property
    def access(self) -> Any:
        found = read_access(self.home)
        assert found is not None
        return found

    def store(self) -> Store:
        return Store(self.database_url)

    @property
    def database_url(self) -> str:
        return self.env.get("FLEET_DATABASE_URL") or f"sqlite+aiosqlite:///{self.folder}/head/fleet.db"

    # Processes -------------------------------------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Command by pid of every process of the fleet, nodes included, games and engines not."""
        places = {str(home) for home in self.homes}
        works = {f"/tmp/fleet-{home.joinpath('fleet-id').read_text().strip()}/work" for home in self.homes}
        found: dict[int, str] = {}
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            pid = int(name)
            if _folder_of(pid) in works or environment_of(pid).get(MARKER) in places:
                found[pid] = command_of(pid)
        return found

    def named(self, word: str, place: str | None = None) -> list[int]:
        """Pids of the processes whose command has that word, oldest first; `place`: of that home only."""
        found = [pid for pid, command in self.processes().items() if word in command.split(" -", 1)[0]]
        if place is not None:
            work = f"/tmp/fleet-{(self.folder / place / 'fleet-id').read_text().strip()}/work"
            found = [pid for pid in found if _folder_of(pid) == work]
        return sorted(found)

    @property
    def supervisor(self) -> int | None:
        return lock_holder(self.home)

    # Commands --------------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """`fleet up`, as a machine's service manager would start it again."""
        done = self._fleet(self.env, "up")
        if done.returncode != 0:
            raise RuntimeError(f"fleet up: {done.stdout[-2000:]}{done.stderr[-2000:]}")

    def _fleet(self, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fleet.cli", *arguments]
        return subprocess.run(
            command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=UP_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def run_node(self, name: str) -> None:
        """`fleet node run` of that node, as its service manager would."""
        far = name == "node-b"
        address = NODE_B if far else NODE_A
        machine = self.machines[1] if far else self.head
        env = self.env | {
            "FLEET_HOME": str(self.folder / name),
            "FLEET_PUBLIC_HOST": address,
            "FLEET_BIND_HOST": address,
        }
        arguments = [part for region in REGIONS for part in ("--region", region)]
        arguments += ["--address", f"{HEAD}:{self.env['FLEET_HEAD_PORT']}", "--node-ip", address]
        command = machine.command(sys.executable, "-m", "fleet.cli", "node", "run", *arguments)
        with (self.folder / f"{name}.out").open("ab") as log:
            self.node_runs[name] = subprocess.Popen(
                command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def step_clock(self, seconds: int) -> None:
        """What the fleet's processes take for the time is that much beside the true one."""
        with self.clock.open("r+b") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))

    # Containers ------------------------------------------------------------------------------------------------------

    def containers(self) -> list[dict[str, str]]:
        """Every container of the fleet on every machine. RuntimeError if an engine does not answer."""
        found: list[dict[str, str]] = []
        for machine in self.machines:
            fields = {
                "id": "{{.ID}}",
                "name": "{{.Names}}",
                "state": "{{.State}}",
                "server": '{{.Label "fleet.server"}}',
                "generation": '{{.Label "fleet.generation"}}',
                "region": '{{.Label "fleet.region"}}',
                "network": '{{.Label "fleet.network"}}',
                "sandbox": '{{.Label "fleet.network-sandbox"}}',
            }
            filters = ["--all", "--filter", f"label=fleet.id={self.home.fleet_id}"]
            lines = machine.docker("ps", *filters, "--no-trunc", "--format", "|".join(fields.values())).splitlines()
            found += [dict(zip(fields, line.split("|"), strict=True)) | {"machine": machine.name} for line in lines]
        return found

    def end(self) -> None:
        """Everything of the fleet ends at once; what it wrote goes with the work folder."""
        for run in self.node_runs.values():
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
        if (supervisor := self.supervisor) is not None:
            os.kill(supervisor, signal.SIGKILL)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for machine in self.machines:
            with suppress(RuntimeError, subprocess.TimeoutExpired):
                if names := [found["id"] for found in self.containers()]:
                    machine.docker("rm", "--force", *names)
        if self.postgres is not None:
            self.postgres.remove()
        if self.s3 is not None:
            self.s3.stop()


def _folder_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
    except OSError:
        return ""


def build_machines(folder: Path, count: int) -> list[Machine]:
    """Once per process: the machines, with engines that run and know the image for ZIP builds."""
    image = Path(os.environ[sandbox.IMAGE])
    Machine.shared_disk(folder / "disks")
    machines = [sandbox.first_machine(folder / "machine-a")]
    if count == 2:
        machines.append(sandbox.second_machine(folder / "machine-b"))
    for machine in machines:
        machine.start_engine()
        machine.load(image)
    return machines


def start_world(folder: Path, machines: list[Machine], database: str, runtime: str) -> World:
    """A new fleet on these machines: `fleet up`, its nodes joined."""
    folder.mkdir()
    two = len(machines) == 2
    for name in ("head", "node-a", "node-b") if two else ("head",):
        Machine.small_disk(folder / name, DISK_MB)
    clock = folder / "clock"
    clock.write_bytes(bytes(8))
    (folder / "nodes.yaml").write_text(yaml.safe_dump(_nodes(on_head=not two)))
    env = _environment(folder, clock, runtime)
    world = World(folder, database, machines, env, clock)
    if two:
        # The node beside the head and the one far away reach what is durable by the network.
        world.s3 = S3Server(HEAD)
        env |= LOGIN | {
            "FLEET_HEAD_ADDRESS": HEAD,
            "FLEET_HEAD_PORT": str(free_ports(1)[0]),
            "FLEET_ARTEFACTS_URL": world.s3.url("storm"),
            "FLEET_RAY_TOKEN": str(folder / "token"),
        }
        (folder / "token").write_text("0123456789abcdef" * 4)
        (folder / "token").chmod(0o600)
    if database == "postgres":
        world.postgres = PostgresServer()
        world.postgres.create()
        world.postgres.start()
        env["FLEET_DATABASE_URL"] = world.postgres.url(world.postgres.new_database())
    world.up()
    for name in ("node-a", "node-b") if two else ():
        world.run_node(name)
    _until_nodes(world)
    return world


def _until_nodes(world: World) -> None:
    end = time.monotonic() + UP_S
    homes = [home for home in world.homes if (home / "fleet-id").exists()]
    while len(homes) < len(world.homes):
        assert time.monotonic() < end, "the nodes do not come up"
        time.sleep(0.2)
        homes = [home for home in world.homes if (home / "fleet-id").exists()]


def _nodes(*, on_head: bool) -> dict[str, Any]:
    node = {
        "memory_mb": 6000,
        "max_nodes": PER_REGION,
        "min_nodes": PER_REGION,
        "ports": {"first": 20000, "per_region": 200},
    }
    return {"regions": list(REGIONS), "on_head": on_head, "node": node}


def _environment(folder: Path, clock: Path, runtime: str) -> dict[str, str]:
    library = sandbox.clock_library()
    own = {k: v for k, v in os.environ.items() if not k.startswith(("FLEET_", "RAY_", "AWS_")) and k != "DOCKER_HOST"}
    return own | {
        "PYTHONPATH": str(ROOT),
        "FLEET_HOME": str(folder / "head"),
        "FLEET_PORT": str(free_ports(1)[0]),
        "FLEET_NODE_CONFIG": str(folder / "nodes.yaml"),
        "FLEET_RUNTIME": runtime,
        "FLEET_SERVERS__READY_DEADLINE_S": "30",
        "FLEET_LIMITS__READS_PER_S": "5000",
        "FLEET_LIMITS__WRITES_PER_S": "1000",
        "FLEET_LIMITS__LOBBY_WRITES_PER_ADDRESS_PER_S": "1000",
        **({"LD_PRELOAD": str(library), "FLEET_STORM_CLOCK": str(clock)} if library else {}),
    }
