"""An SSH server of the tests' own on loopback addresses: own keys, own home folder, nothing outside is changed."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from fleet.ops.home import free_ports

RUN = Path("/run/sshd")
_PACKAGES = ("openssh-server", "openssh-client", "rsync")

# Ray calls ssh for port 22, and on the head without the proxy of the cluster's file: this leads it to ours.
_PROXY = """\
import os, select, socket, sys
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
ways = {0: peer.sendall, peer.fileno(): lambda data: os.write(1, data)}
while True:
    for source in select.select(list(ways), [], [])[0]:
        data = os.read(source, 65536) if source == 0 else peer.recv(65536)
        if not data and source != 0:
            sys.exit()
        if not data:
            peer.shutdown(socket.SHUT_WR)
            del ways[0]
            continue
        ways[source](data)
"""


def missing() -> str | None:
    """Why there can be no server here; installs the packages if it may."""
    if os.geteuid() != 0:
        return "only root may run an SSH server of several addresses"
    if not (shutil.which("rsync") and Path("/usr/sbin/sshd").exists()):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *_PACKAGES]):
            lock = ["-o", "DPkg::Lock::Timeout=120"]
            done = subprocess.run(["apt-get", *lock, *command], env=environment, capture_output=True, check=False)
            if done.returncode != 0:
                return f"apt-get {command[0]} failed: {done.stderr.decode()[-300:]}"
    return None


class SshServer:
    """Sessions start in `home`, whatever the user's own home is."""

    def __init__(self, folder: Path, addresses: list[str]) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.key, host_key = folder / "key", folder / "host-key"
        for path in (self.key, host_key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
        self.port = free_ports(1)[0]
        (folder / "proxy.py").write_text(_PROXY)
        # ssh takes `~` of a key's path for the user's real home, where ours is not.
        self.programs = folder / "bin"
        self.programs.mkdir()
        wrapper = self.programs / "ssh"
        options = f"-i {self.key} -o 'ProxyCommand=python3 {folder}/proxy.py %h {self.port}'"
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {options} "$@"\n')
        wrapper.chmod(0o755)
        config = folder / "sshd_config"
        listen = [f"ListenAddress {address}:{self.port}" for address in addresses]
        config.write_text("\n".join([
            *listen, f"HostKey {host_key}", f"AuthorizedKeysFile {self.key}.pub", "PermitRootLogin prohibit-password",
            "PasswordAuthentication no", "UsePAM no", "StrictModes no", f"PidFile {folder}/sshd.pid",
            f"SetEnv HOME={self.home}", "MaxStartups 50", "MaxSessions 50",
        ]) + "\n")  # fmt: skip
        self._made_run = not RUN.exists()
        RUN.mkdir(exist_ok=True)
        self._log = (folder / "sshd.log").open("ab")
        command = ["setpriv", "--pdeathsig", "TERM", "/usr/sbin/sshd", "-D", "-e", "-f", str(config)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        self._wait(addresses[0], folder / "sshd.log")

    def _wait(self, address: str, log: Path) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection((address, self.port), 5).close()
                return
            except OSError:
                assert self._process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()
        if self._made_run:
            shutil.rmtree(RUN, ignore_errors=True)
