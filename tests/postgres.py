"""A PostgreSQL server of the tests' own: own folder and port, an unprivileged user, gone with the test process."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from fleet.ops.home import free_ports

START_TIMEOUT_S = 60.0
_PACKAGE = "postgresql"


class PostgresMissing(Exception):
    """There is no PostgreSQL here, and none can be installed."""


def _programs() -> Path:
    """The folder of the newest server's programs; installed by apt if there is none and we may."""
    if not (found := sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))):
        _install()
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise PostgresMissing("apt-get installed no server")
    return found[-1].parent


def _install() -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise PostgresMissing("install the package 'postgresql' (only root may do that here, by apt-get)")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", _PACKAGE]):
        done = subprocess.run(
            ["apt-get", "-o", "DPkg::Lock::Timeout=120", *command],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise PostgresMissing(f"apt-get {command[0]} failed: {done.stderr.strip()[-400:]}")


class PostgresServer:
    """Started by `start`, ended by `stop`; databases are made on it by copy, in milliseconds."""

    def __init__(self) -> None:
        self._bin = _programs()
        self._folder = Path(tempfile.mkdtemp(prefix="fleet-pg-"))
        self._password = secrets.token_hex(16)
        self.port = free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None
        self._as: tuple[str, ...] = ()
        if os.geteuid() == 0:  # the server refuses to run as root
            user = next(u for u in ("postgres", "nobody") if u in {entry.pw_name for entry in pwd.getpwall()})
            entry = pwd.getpwnam(user)
            os.chown(self._folder, entry.pw_uid, entry.pw_gid)
            self._as = ("--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--clear-groups")

    def _command(self, *command: str) -> list[str]:
        # The kernel ends it with the thread that started it, so with this process, however that ends.
        return ["setpriv", *self._as, "--pdeathsig", "INT", *command]

    def create(self) -> None:
        """Make the cluster's files."""
        password = self._folder / "password"
        password.write_text(self._password)
        password.chmod(0o644)  # inside a folder of mode 700
        command = self._command(
            str(self._bin / "initdb"), "-D", str(self._folder / "data"), "-U", "fleet", "-A", "scram-sha-256",
            "--pwfile", str(password), "-E", "UTF8", "--locale", "C.UTF-8", "--no-sync",
        )  # fmt: skip
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Run, and return once it takes connections."""
        # Every commit reaches the kernel, so killing processes loses nothing; fsync is for power cuts.
        options = [f"-cport={self.port}", "-clisten_addresses=127.0.0.1", f"-cunix_socket_directories={self._folder}"]
        options += ["-cfsync=off", "-cmax_connections=200", "-cshared_buffers=32MB"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(str(self._bin / "postgres"), "-D", str(self._folder / "data"), *options),
                cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._client("pg_isready").returncode != 0:
            words = (self._folder / "server.log").read_text()[-2000:]
            assert self._process.poll() is None, words
            assert time.monotonic() < deadline, words
            time.sleep(0.05)

    def _client(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PGPASSWORD": self._password, "PGCONNECT_TIMEOUT": "10"}
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "fleet", "-d", "postgres"]
        command = [str(self._bin / program), *where, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def sql(self, *statements: str) -> str:
        """Run statements as the owner; what they print."""
        commands = [part for statement in statements for part in ("-c", statement)]
        done = self._client("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", *commands)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def url(self, database: str) -> str:
        """As a provider would write it."""
        return f"postgres://fleet:{self._password}@127.0.0.1:{self.port}/{database}"

    def new_database(self, template: str = "template1") -> str:
        """An empty database, or a copy of one that nobody uses; its name."""
        name = f"t{secrets.token_hex(6)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def drop(self, database: str) -> None:
        self.sql(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    @property
    def pids(self) -> list[int]:
        """The server and its back ends."""
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        return [server.pid, *(child.pid for child in server.children(recursive=True))]

    def halt(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: fast shutdown. SIGQUIT: as if it had crashed. The files stay."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def freeze(self) -> None:
        """Every process of the server stops; the kernel still takes what is sent to it."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, which: signal.Signals) -> None:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            os.kill(pid, which)

    def remove(self) -> None:
        """End it and leave nothing behind."""
        self.halt()
        shutil.rmtree(self._folder, ignore_errors=True)
