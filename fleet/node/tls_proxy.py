"""The proxy that ends TLS for this node's games: one HAProxy, in a session of its own.

It belongs to the node as games do: it outlives the agent and Ray's head, and the next agent finds it by its command
line. The agent starts it with the first TLS game, starts it again whenever it has ended, and gives it a renewed
certificate over its admin socket, so that no connection is cut. Its configuration is static (`tls_config.py`).
"""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from fleet.actors.tasks import SupervisedTasks
from fleet.errors import FleetError
from fleet.node.model import NodeShare
from fleet.node.node_ports import tls_range
from fleet.node.ports import is_free
from fleet.node.runtime import LaunchFailed, Port, PortTaken
from fleet.node.tls_config import ports_in, proxy_config
from fleet.settings import TlsSettings
from fleet.tls.certificates import certificate_for, covers, is_due, source_of, write_combined
from fleet.tls.dev_ca import Certificate

log = structlog.get_logger(__name__)

CONFIG, SITE, ADMIN = "haproxy.cfg", "site.pem", "admin.sock"
NOBODY = 65534
LOOK_S, RETRY_MOST_S = 5.0, 5.0
_START_S = 20.0


@dataclass(frozen=True, slots=True)
class ProxyPlace:
    """`folder`: this node's own, below `home`. `binary`: HAProxy, None where there is none for this platform."""

    folder: Path
    home: Path
    binary: str | None
    settings: TlsSettings


class TlsProxy:
    """One per node; not for use by several threads."""

    def __init__(self, place: ProxyPlace, share: NodeShare) -> None:
        self._place, self._share = place, share
        self._certificate: Certificate | None = None
        self._source: tuple[tuple[int, int, int], ...] = ()
        self._serving: frozenset[int] = frozenset()
        self._starting = asyncio.Lock()
        self._tasks = SupervisedTasks("tls_proxy")
        self._kept = False

    def serves(self, port: int) -> bool:
        """Whether players can come to that port of the node's TLS range."""
        return port in self._serving if self._serving else is_free(self._share.bind_host, port)

    async def open(self, ports: Iterable[Port]) -> None:
        """Have the proxy run. PortTaken: it cannot have these. LaunchFailed: it cannot be started at all."""
        try:
            await self._ensure()
        except (FleetError, OSError, subprocess.SubprocessError) as error:
            detail = error.detail if isinstance(error, FleetError) else str(error)
            raise LaunchFailed("STARTUP_FAILURE_PORTS", f"TLS cannot be ended on this node: {detail}") from error
        if taken := tuple(port for port in ports if port.tls and port.external not in self._serving):
            raise PortTaken(taken, "something else listens on the TLS port")
        self._look_after()

    async def adopt(self, needed: bool) -> None:
        """Look after the proxy of an earlier agent, if it runs; have one if games that run need it."""
        if not needed and not await asyncio.to_thread(proxies, self._place.folder):
            return
        try:
            await self._ensure()
        except Exception as error:  # it is tried again, and games are adopted without
            log.error("tls_proxy_not_kept", error=repr(error))
        self._look_after()

    def _look_after(self) -> None:
        if not self._kept:
            self._kept = True
            self._tasks.keep("keep", self._keep, most_s=RETRY_MOST_S)

    async def close(self) -> None:
        """Look after it no more; it runs on."""
        await self._tasks.close()
        self._kept = False

    async def end(self) -> None:
        await self.close()
        await asyncio.to_thread(end_proxies, self._place.folder)

    async def _ensure(self) -> None:
        async with self._starting:
            if self._serving and self._kept:  # who would have noticed its end
                return
            running = await asyncio.to_thread(proxies, self._place.folder)
            await asyncio.to_thread(self._start, running)

    def _start(self, running: list[int]) -> None:
        """Start it, or take over what runs if that was started otherwise."""
        if self._place.binary is None:
            raise FleetError("there is no HAProxy for this platform.")
        folder = self._place.folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._renew(write=True)
        before = (folder / CONFIG).read_text() if running and (folder / CONFIG).exists() else ""
        config = self._config(ports_in(before))
        if config != before or not running:
            (folder / CONFIG).write_text(config)
            _run_haproxy(self._place.binary, folder, running)
        self._serving = ports_in(config)
        log.info("tls_proxy_ready", ports=len(self._serving), started=config != before or not running)

    def _config(self, had: frozenset[int]) -> str:
        wanted = tls_range(self._share)
        ports = [port for port in wanted if port in had or is_free(self._share.bind_host, port)]
        if not ports:
            raise FleetError("none of the node's TLS ports is free.")
        user = NOBODY if os.geteuid() == 0 else None
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        threads = max(1, min(4, (os.cpu_count() or 1) // 2))
        return proxy_config(self._share.bind_host, ports, len(wanted), user=user, files=files, threads=threads)

    def _renew(self, *, write: bool) -> bytes | None:
        """The certificate's file brought up to date; its content if it is another than before."""
        settings = self._place.settings
        source = source_of(settings)
        if self._certificate and source == self._source and not is_due(settings, self._certificate) and not write:
            return None
        found = certificate_for(settings, self._place.home, [self._share.public_host])
        if not covers(found.leaf, self._share.public_host):
            log.warning("certificate_of_another_name", host=self._share.public_host, remedy="FLEET_TLS__CERTIFICATE")
        content = write_combined(found, self._place.folder / SITE)
        self._certificate, self._source = found, source
        return content

    async def _keep(self) -> None:
        """Until cancelled: the proxy runs, and shows the newest certificate."""
        while True:
            await _ended(await asyncio.to_thread(proxies, self._place.folder), LOOK_S)
            if not await asyncio.to_thread(proxies, self._place.folder):
                log.error("tls_proxy_ended", folder=str(self._place.folder))
                self._serving = frozenset()
                await self._ensure()
            elif renewed := await asyncio.to_thread(lambda: self._renew(write=False)):
                await asyncio.to_thread(_show, self._place.folder, renewed)


def tls_folder(home: Path, scope: str) -> Path:
    """Where the proxy of one node of this machine has its files."""
    return home / "tls" / "nodes" / scope


def end_all_proxies(home: Path, regions: Collection[str] | None = None) -> int:
    """End those of all nodes of this home, or of some regions'; how many there were."""
    folders = (home / "tls" / "nodes").glob("*")
    return sum(end_proxies(folder) for folder in folders if regions is None or folder.name.split("+")[0] in regions)


def proxies(folder: Path) -> list[int]:
    """Process ids of the proxy of this folder; a container cannot pretend to be one."""
    ours = os.readlink("/proc/self/ns/pid")
    wanted = [b"-f", os.fsencode(folder / CONFIG)]
    found: list[int] = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0") if name.isdigit() else []
            if words[2:4] == wanted and b"haproxy" in words[0] and os.readlink(f"/proc/{name}/ns/pid") == ours:
                found.append(int(name))
    return found


def end_proxies(folder: Path) -> int:
    """End the proxy of this folder, and so its connections; how many processes there were."""
    running = proxies(folder)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    return len(running)


def _run_haproxy(binary: str, folder: Path, running: list[int]) -> None:
    """Returns once its ports are bound; those of an older one are handed over. FleetError in its own words."""
    command = [binary, "-D", "-f", str(folder / CONFIG)]
    if running:
        command += ["-x", ADMIN, "-sf", *map(str, running)]
    # Neither the agent's environment nor its marks: what a fleet's restart ends must not end its players' connections.
    done = subprocess.run(
        command,
        cwd=folder,
        env={},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        timeout=_START_S,
        check=False,
    )
    if done.returncode != 0:
        raise FleetError(f"HAProxy does not start: {done.stderr.decode(errors='replace').strip()[-500:]}")


def _show(folder: Path, certificate: bytes) -> None:
    """New connections get this certificate; the others go on."""
    text = certificate.decode()
    for command in (f"set ssl cert {SITE} <<\n{text}\n", f"commit ssl cert {SITE}\n"):
        answer = _command(folder, command)
        if "Success" not in answer and "Transaction" not in answer:
            raise FleetError(f"HAProxy does not take the certificate: {answer.strip()}")
    log.info("certificate_renewed", folder=str(folder))


def _command(folder: Path, command: str) -> str:
    # Through the folder's descriptor, since a socket's path may be 107 bytes long and ours are longer.
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as admin:
            admin.settimeout(_START_S)
            admin.connect(f"/proc/self/fd/{directory}/{ADMIN}")
            admin.sendall(command.encode())
            admin.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: admin.recv(65536), b"")).decode(errors="replace")
    finally:
        os.close(directory)


async def _ended(pids: list[int], timeout_s: float) -> None:
    """Return when one of the processes has ended, at once if there is none, or at the timeout."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    fds: list[int] = []
    with contextlib.suppress(TimeoutError, ProcessLookupError):
        try:
            for pid in pids:
                fds.append(os.pidfd_open(pid))
                loop.add_reader(fds[-1], ended.set)
            if pids:
                async with asyncio.timeout(timeout_s):
                    await ended.wait()
        finally:
            for fd in fds:
                loop.remove_reader(fd)
                os.close(fd)
