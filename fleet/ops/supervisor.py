"""`fleet run`: keeps Ray's head and the API alive, and takes them down in order when told to stop.

The strategy: prepare everything that is durable, adopt a head that survived an earlier supervisor or start a new one,
then wait for one of three things: a signal (go down in order), the end of a head process seen through its pidfd
(start anew), or an API that stays silent (deploy again, and if that does not help, start anew). Game servers are never
touched here: the region managers adopt them after every restart.
"""

import asyncio
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import IO

import structlog

from fleet.errors import FleetError
from fleet.ops import api
from fleet.ops.engine import ensure_engine
from fleet.ops.head import Head, forget_head, read_head, start_head
from fleet.ops.home import Access, Home, OpsError, port_is_free, read_access, write_access
from fleet.ops.logs import keep_ray_logs, link_ray_logs
from fleet.ops.processes import end_supervised
from fleet.ops.shutdown import shut_down
from fleet.projects.admin_keys import AdminKeys
from fleet.projects.service import ensure_default_project
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from fleet.store.migrate import upgrade

log = structlog.get_logger(__name__)
Report = Callable[[str], None]
HEALTH_EVERY_S = 10.0
SILENT_LIMIT = 3
BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 60.0
REACHED_BY_LOOPBACK = ("127.0.0.1", "localhost", "0.0.0.0", "*")
# A head that lived this long was fine; its end starts a new series of attempts.
STABLE_S = 120.0


class AlreadyRunning(Exception):
    """Another supervisor holds the fleet's lock."""


def take_lock(home: Home) -> IO[str]:
    """Hold the fleet's lock, with our pid in it, until the returned file is closed. AlreadyRunning if it is held."""
    file = home.lock_file.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise AlreadyRunning from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def lock_holder(home: Home) -> int | None:
    """Pid of the supervisor that runs now, or None."""
    try:
        with take_lock(home):
            return None
    except AlreadyRunning:
        text = home.lock_file.read_text().strip()
        return int(text) if text.isdigit() else None


class Supervisor:
    """One per fleet; `run` returns the exit code."""

    def __init__(self, home: Home, settings: FleetSettings, report: Report) -> None:
        self._home = home
        self._settings = settings
        self._report = report
        self._url = api.local_url(settings)
        # Starting runs in a thread, which cannot be cancelled: it looks at the flag, and holds the lock meanwhile.
        self._stopping = threading.Event()
        self._starting = threading.Lock()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        work = asyncio.create_task(self._work())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        failure = work.exception() if work.done() else None
        stopped.cancel()
        work.cancel()
        await asyncio.gather(work, stopped, return_exceptions=True)
        await asyncio.to_thread(self._abandon_start)
        if failure is None:
            await asyncio.to_thread(shut_down, self._home, self._settings, self._report)
            return 0
        # Games of an earlier run may still have players: only what this start left behind is cleared away.
        await asyncio.to_thread(end_supervised, self._home, grace_s=3.0)
        expected = isinstance(failure, FleetError)
        log.error("supervisor_failed", error=str(failure), exc_info=None if expected else failure)
        self._report(f"failed: {failure}")
        return 1

    def _abandon_start(self) -> None:
        """If a start is under way, end what it waits for until it gives up."""
        self._stopping.set()
        while not self._starting.acquire(timeout=0.5):
            end_supervised(self._home, grace_s=1.0)
        self._starting.release()

    async def _work(self) -> None:
        await self._prepare()
        head = await self._first_head()
        self._report(f"healthy: {self._url}")
        while True:
            started = time.monotonic()
            reason = await self._watch(head)
            log.error("head_lost", reason=reason)
            head = await self._replace(steady=time.monotonic() - started > STABLE_S)

    async def _prepare(self) -> None:
        if self._settings.host not in REACHED_BY_LOOPBACK:
            raise OpsError(
                f"FLEET_HOST={self._settings.host} cannot work: the proxy reaches the API's processes by 127.0.0.1. "
                "Use 127.0.0.1, or 0.0.0.0 and a firewall."
            )
        self._report("Looking for a container engine")
        await asyncio.to_thread(ensure_engine, self._home, self._settings, self._report)
        self._report("Preparing the database")
        await asyncio.to_thread(upgrade, self._settings.database)
        await self._ensure_project()
        if (admin_key := AdminKeys(self._home.path).ensure()) is not None:
            self._report(f"The admin key, shown this once (docs/projects.md): {admin_key}")

    async def _ensure_project(self) -> None:
        store = Store(self._settings.database)
        try:
            made = await ensure_default_project(store)
        finally:
            await store.close()
        if made is not None:
            write_access(self._home, Access(self._url, made.server_key, made.client_key, made.project_id))
        elif (access := read_access(self._home)) is not None and access.url != self._url:
            write_access(self._home, Access(self._url, access.server_key, access.client_key, access.project_id))

    async def _first_head(self) -> Head:
        """A head that outlived its supervisor and still serves, else a new one."""
        head = read_head(self._home)
        if head and head.alive and await asyncio.to_thread(api.healthy, self._url):
            log.info("head_adopted", address=head.address)
            self._report("Adopting the Ray head that still runs")
            return head
        return await asyncio.to_thread(self._start)

    def _start(self) -> Head:
        """Clear away what is left of an older head, then start a new one and the API on it."""
        with self._starting:
            self._clear()
            self._step("Starting Ray")
            head = start_head(self._home, self._settings)
            link_ray_logs(self._home)
            log.info("head_started", address=head.address, gcs=head.gcs.pid, raylet=head.raylet.pid)
            self._step("Starting the API")
            api.deploy(self._home, self._settings, head)
            log.info("api_healthy", url=self._url)
            return head

    def _step(self, text: str) -> None:
        if self._stopping.is_set():
            raise OpsError("The fleet is being stopped.")
        self._report(text)

    def _clear(self) -> None:
        ended = end_supervised(self._home, grace_s=2.0)
        if ended:
            log.warning("remains_ended", processes=ended)
        keep_ray_logs(self._home)
        forget_head(self._home)
        if not port_is_free(self._settings.host, self._settings.port):
            raise OpsError(f"Port {self._settings.port} is taken by another program. Choose one with FLEET_PORT.")

    async def _replace(self, *, steady: bool) -> Head:
        """Start anew until it works, waiting longer each time."""
        wait_s = 0.0 if steady else BACKOFF_FIRST_S
        while True:
            try:
                return await asyncio.to_thread(self._start)
            except OpsError as error:
                wait_s = min(max(BACKOFF_FIRST_S, wait_s * 2), BACKOFF_MAX_S)
                log.error("start_failed", error=str(error), retry_in_s=wait_s)
                await asyncio.sleep(wait_s)

    async def _watch(self, head: Head) -> str:
        """Wait until the head must be replaced; says why."""
        died = asyncio.create_task(_until_ended([head.gcs.pid, head.raylet.pid]))
        silent = asyncio.create_task(self._until_silent(head))
        try:
            done, _ = await asyncio.wait({died, silent}, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()
        finally:
            died.cancel()
            silent.cancel()

    def _deploy_again(self, head: Head) -> None:
        with self._starting:
            api.deploy(self._home, self._settings, head)

    async def _until_silent(self, head: Head) -> str:
        """Coarse watch over the API, which has no process of its own: deploys again once before giving up."""
        silent = 0
        while True:
            await asyncio.sleep(HEALTH_EVERY_S)
            silent = 0 if await asyncio.to_thread(api.lives, self._url) else silent + 1
            if silent < SILENT_LIMIT:
                continue
            log.error("api_silent", url=self._url)
            try:
                await asyncio.to_thread(self._deploy_again, head)
            except OpsError as error:
                return f"the API stays silent: {error}"
            silent = 0


async def _until_ended(pids: list[int]) -> str:
    """Wait for the end of any of the processes, told by the kernel."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[str] = loop.create_future()
    fds: list[int] = []

    def note(pid: int) -> None:
        if not ended.done():
            ended.set_result(f"process {pid} ended")

    try:
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                return f"process {pid} ended"
            fds.append(fd)
            loop.add_reader(fd, note, pid)
        return await ended
    finally:
        for fd in fds:
            loop.remove_reader(fd)
            os.close(fd)
