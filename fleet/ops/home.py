"""The fleet's home folder: who this fleet is and how to reach it, in files that outlive every process."""

import json
import os
import secrets
import socket
import stat
import tempfile
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from fleet.errors import FleetError
from fleet.private_file import write_private


class OpsError(FleetError):
    """Starting or stopping the fleet failed; the detail says why and what to do."""

    status = 500
    error = "Operation failed"


class StartFailed(OpsError):
    """Something did not come up that may at the next try, such as on a machine that was too busy."""


@dataclass(frozen=True, slots=True)
class Access:
    """`fleet.json`: what scripts need to use the API."""

    url: str
    server_key: str
    client_key: str
    project_id: str


@dataclass(frozen=True, slots=True)
class Home:
    """Paths of one fleet. `run_dir` is short, since paths of UNIX sockets may have 107 bytes only."""

    path: Path
    fleet_id: str

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def lock_file(self) -> Path:
        return self.path / "supervisor.lock"

    @property
    def access_file(self) -> Path:
        return self.path / "fleet.json"

    @property
    def head_file(self) -> Path:
        return self.path / "ray.json"

    @property
    def engine_file(self) -> Path:
        return self.path / "engine.json"

    @property
    def token_file(self) -> Path:
        return self.path / "ray-token"

    @property
    def serve_file(self) -> Path:
        return self.path / "serve.yaml"

    def shows_keys(self, command: str, *, asked: bool) -> bool:
        """Whether a command shows keys: the first time that it has any to show, and when it is asked to. Terminals are
        recorded, and shared."""
        marker = self.path / f".keys-shown-by-{command}"
        first = not marker.exists()
        marker.touch(mode=0o600)
        return first or asked

    @property
    def run_dir(self) -> Path:
        return Path(tempfile.gettempdir()) / f"fleet-{self.fleet_id}"

    @property
    def work_dir(self) -> Path:
        """Working folder of every process that the supervisor starts, and of nothing else."""
        return self.run_dir / "work"


def open_home(path: Path) -> Home:
    """Make the home folder (mode 700), its id and its Ray token where they are missing."""
    path = path.resolve()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    (path / "logs").mkdir(mode=0o700, exist_ok=True)
    id_file = path / "fleet-id"
    if not id_file.exists():
        write_private(id_file, secrets.token_hex(4))
    home = Home(path, id_file.read_text().strip())
    if not home.token_file.exists():
        write_private(home.token_file, secrets.token_hex(32))
    return home


def find_home(path: Path) -> Home | None:
    """The home folder if a fleet has ever been started in it."""
    id_file = path.resolve() / "fleet-id"
    return Home(path.resolve(), id_file.read_text().strip()) if id_file.exists() else None


def make_run_dir(home: Home) -> Path:
    """The run folder, private to this user. OpsError if somebody else holds its name."""
    home.run_dir.mkdir(mode=0o700, exist_ok=True)
    found = home.run_dir.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise OpsError(f"{home.run_dir} belongs to somebody else. Remove it and try again.")
    home.run_dir.chmod(0o700)
    home.work_dir.mkdir(exist_ok=True)
    return home.run_dir


def read_json(path: Path) -> dict[str, Any] | None:
    """A file of ours, or None if it is missing or half-written by a crash."""
    try:
        found: Any = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return cast(dict[str, Any], found) if isinstance(found, dict) else None


def write_access(home: Home, access: Access) -> None:
    write_private(home.access_file, json.dumps(asdict(access), indent=2) + "\n")


def read_access(home: Home) -> Access | None:
    found = read_json(home.access_file)
    return Access(**found) if found else None


_given: deque[int] = deque(maxlen=1000)


def free_ports(count: int, *, first: int = 5500, last: int = 9990) -> list[int]:
    """Ports of 127.0.0.1 that are free now, below those of Ray's workers, game servers and the kernel.

    None is given twice, since who gets one listens there only later.
    """
    found: list[int] = []
    while len(found) < count:
        port = first + secrets.randbelow(last - first + 1)
        if port not in _given and port_is_free("127.0.0.1", port):
            found.append(port)
            _given.append(port)
    return found


def reserve_ports(*ports: int) -> None:
    """Somebody will listen there: `free_ports` gives none of these."""
    _given.extend(ports)


def port_is_free(host: str, port: int) -> bool:
    family, address = _bindable(host, port)
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return False
    return True


def is_ours(host: str) -> bool:
    """Whether this machine can listen there."""
    try:
        family, address = _bindable(host, 0)
        with socket.socket(family) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def _bindable(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    found = socket.getaddrinfo("0.0.0.0" if host == "*" else host, port, type=socket.SOCK_STREAM)[0]
    return found[0], found[4]
