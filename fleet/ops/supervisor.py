"""`fleet run`: keeps Ray's head and the API alive, and takes them down in order when told to stop.

The strategy: prepare everything that is durable, adopt a head that survived an earlier supervisor or start a new one,
then wait for one of three things: a signal (go down in order), the end of a head process seen through its pidfd
(start anew), or an API that stays silent (deploy again, and if that does not help, start anew). Game servers are never
touched here: the region managers adopt them after every restart.

The first start is as patient as every later one: what may come up at the next try (`StartFailed`, or a machine without
room for a file or a process) is tried again, for `FIRST_START_S`. Once the fleet has been up, nothing but a signal ends
the supervisor: whatever goes wrong here, on a full disk for one, is logged, and tried again after a back-off.
"""

import asyncio
import fcntl
import os
import shutil
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import IO, TypeVar

import structlog

from fleet.actors.tasks import backoff_s, first_done
from fleet.errors import FleetError, Unavailable
from fleet.ops import api
from fleet.ops.config_check import check_configs
from fleet.ops.engine import ensure_engine
from fleet.ops.head import Head, forget_head, is_this_machine, read_head, start_head
from fleet.ops.home import Access, Home, OpsError, StartFailed, is_ours, port_is_free, read_access, write_access
from fleet.ops.logs import keep_ray_logs, link_ray_logs
from fleet.ops.processes import ProcessId, end_supervised, is_alive
from fleet.ops.shutdown import shut_down
from fleet.projects.admin_keys import AdminKeys
from fleet.projects.service import ensure_default_project
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from fleet.store.migrate import upgrade
from fleet.times import keep_clock

log = structlog.get_logger(__name__)
Report = Callable[[str], None]
Result = TypeVar("Result")
FIRST_START_S = 600.0
HEALTH_EVERY_S = 10.0
SILENT_LIMIT = 3
ADOPT_LOOKS = 3  # a head that lives is replaced if its API was silent so often: on a busy machine once is nothing
# Ray's timers and Serve's go by the wall clock, so they stand still for as long as it was set back by.
STEP_BACK_S = 20.0
LOOK_S = 1.0  # how often processes are looked for that cannot be held
ABANDON_S = 60.0  # for a start that is under way to notice that the fleet shall end
BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 60.0
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
        failure: Exception | None = None
        try:
            await first_done(self._work(), stop.wait())
        except Exception as error:  # of the first start alone
            failure = error
        await asyncio.to_thread(self._abandon_start)
        if failure is None:
            await asyncio.to_thread(shut_down, self._home, self._settings, self._say)
            return 0
        # Games of an earlier run may still have players: only what this start left behind is cleared away.
        await asyncio.to_thread(end_supervised, self._home, grace_s=3.0)
        expected = isinstance(failure, FleetError)
        log.error("supervisor_failed", error=str(failure), exc_info=None if expected else failure)
        self._say(f"failed: {failure}")
        return 1

    def _abandon_start(self) -> None:
        """If a start is under way, end what it waits for until it gives up."""
        self._stopping.set()
        until = time.monotonic() + ABANDON_S
        while not self._starting.acquire(timeout=0.5):
            if time.monotonic() > until:
                log.error("start_not_abandoned", after_s=ABANDON_S)
                return
            end_supervised(self._home, grace_s=1.0)
        self._starting.release()

    async def _work(self) -> None:
        until = time.monotonic() + FIRST_START_S
        await self._patiently(self._prepare, until)
        head = await self._patiently(self._first_head, until)
        # Only now: who saw a start fail would have seen the key for nothing, and the next would not show it again.
        if (admin_key := AdminKeys(self._home.path).ensure()) is not None:
            self._say(f"The admin key, shown this once (docs/projects.md): {admin_key}")
        self._say(f"healthy: {self._url}")
        failures = 0
        while True:
            started = time.monotonic()
            try:
                reason = await self._watch(head)
            except Exception as error:  # the watch itself failed: that says nothing about the head
                failures += 1
                log.error("head_not_watched", error=repr(error), failures=failures, exc_info=error)
                await asyncio.sleep(backoff_s(failures, BACKOFF_FIRST_S, BACKOFF_MAX_S))
                continue
            failures = 0
            log.error("head_lost", reason=reason)
            head = await self._replace(steady=time.monotonic() - started > STABLE_S)

    async def _patiently(self, step: Callable[[], Awaitable[Result]], until: float) -> Result:
        """A step of the first start, tried again while it may yet succeed. Else `OpsError`, without a trace."""
        for failures in count(1):
            try:
                return await step()
            except Exception as error:
                if isinstance(error, FleetError) and not isinstance(error, StartFailed | Unavailable):
                    raise
                wait_s = backoff_s(failures, BACKOFF_FIRST_S, BACKOFF_MAX_S)
                told = error.detail if isinstance(error, FleetError) else sentence(error)
                log.error("first_start_failed", error=repr(error), failures=failures, exc_info=error)
                if time.monotonic() + wait_s > until:
                    tried = f"It was tried {failures} times in {FIRST_START_S / 60:.0f} minutes."
                    advice = f"Mend it, or free the machine, and try again. See {self._home.logs / 'supervisor.log'}."
                    raise OpsError(f"{told} {tried} {advice}") from error
                self._say(f"{told} Trying again in {wait_s:.0f} s")
                await asyncio.sleep(wait_s)
        raise AssertionError("unreachable")

    def _say(self, text: str) -> None:
        """To whoever follows the start; that nobody does, or cannot hear, stops nothing."""
        with suppress(OSError, ValueError):
            self._report(text)

    async def _prepare(self) -> None:
        await asyncio.to_thread(check_configs, self._settings)
        self._say("Looking for a container engine")
        await asyncio.to_thread(ensure_engine, self._home, self._settings, self._say)
        self._say("Preparing the database")
        await asyncio.to_thread(upgrade, self._settings.database, self._home.path)
        await self._ensure_project()

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
        if head and head.alive and await self._answers():
            log.info("head_adopted", address=head.address)
            self._say("Adopting the Ray head that still runs")
            return head
        return await asyncio.to_thread(self._start)

    async def _answers(self) -> bool:
        for _ in range(ADOPT_LOOKS):
            if await asyncio.to_thread(api.lives, self._url):
                return True
        return False

    def _start(self) -> Head:
        """Clear away what is left of an older head, then start a new one and the API on it."""
        with self._starting:
            self._clear()
            keep_clock(self._home.path)
            self._step("Starting Ray")
            head = start_head(self._home, self._settings)
            link_ray_logs(self._home)
            log.info("head_started", address=head.address, gcs=head.gcs.pid, raylet=head.raylet.pid)
            if not is_this_machine(head.address.rpartition(":")[0]):
                log.warning("ray_listens_everywhere", address=head.address, see="docs/operations.md, Ports")
                self._say("Ray listens on every interface, behind its token: let only the cluster's machines reach it")
            self._step("Starting the API")
            api.deploy(self._home, self._settings, head)
            log.info("api_healthy", url=self._url)
            return head

    def _step(self, text: str) -> None:
        if self._stopping.is_set():
            raise OpsError("The fleet is being stopped.")
        self._say(text)

    def _clear(self) -> None:
        ended = end_supervised(self._home, grace_s=2.0)
        if ended:
            log.warning("remains_ended", processes=ended)
        try:
            keep_ray_logs(self._home)
        except OSError as error:  # no room for them: the fleet is worth more than its old logs
            log.warning("ray_logs_not_kept", error=repr(error))
            shutil.rmtree(self._home.run_dir, ignore_errors=True)
        forget_head(self._home)
        host, port = self._settings.host, self._settings.port
        if not is_ours(host):
            raise OpsError(f"This machine has no address {host}. Set FLEET_HOST to one that it has, or to 0.0.0.0.")
        if not port_is_free("127.0.0.1", port) or not port_is_free(host, port):
            raise OpsError(f"Port {port} is taken by another program. Choose one with FLEET_PORT.")

    async def _replace(self, *, steady: bool) -> Head:
        """Start anew until it works, waiting longer each time."""
        for failures in count(1 if steady else 2):
            try:
                return await asyncio.to_thread(self._start)
            except Exception as error:
                wait_s = backoff_s(failures, BACKOFF_FIRST_S, BACKOFF_MAX_S)
                expected = isinstance(error, OpsError)
                log.error("start_failed", error=str(error), retry_in_s=wait_s, exc_info=None if expected else error)
                await asyncio.sleep(wait_s)
        raise AssertionError("unreachable")

    async def _watch(self, head: Head) -> str:
        """Wait until the head must be replaced; says why."""
        reasons: list[str] = []

        async def told(watch: Awaitable[str]) -> None:
            reasons.append(await watch)

        await first_done(told(_until_ended([head.gcs, head.raylet])), told(self._until_silent(head)))
        return reasons[0]

    def _deploy_again(self, head: Head) -> None:
        with self._starting:
            api.deploy(self._home, self._settings, head)

    async def _until_silent(self, head: Head) -> str:
        """Coarse watch over the API, which has no process of its own: deploys again once before giving up. And over the
        clock: one that is set back leaves Ray's processes alive and deaf."""
        silent = 0
        clock = WallClock()
        while True:
            await asyncio.to_thread(keep_clock, self._home.path)
            await asyncio.sleep(HEALTH_EVERY_S)
            if (back_s := clock.stepped_back_s()) >= STEP_BACK_S:
                return f"the clock was set back by {back_s:.0f} s"
            silent = 0 if await asyncio.to_thread(api.lives, self._url) else silent + 1
            if silent < SILENT_LIMIT:
                continue
            log.error("api_silent", url=self._url)
            try:
                await asyncio.to_thread(self._deploy_again, head)
            except OpsError as error:
                return f"the API stays silent: {error}"
            except Exception as error:  # nothing that a new head would mend, such as a full disk
                log.error("api_not_deployed", error=repr(error), exc_info=error)
            silent = 0


class WallClock:
    """Whether the machine's clock was set back."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._ahead = wall() - steady()

    def stepped_back_s(self) -> float:
        """By how many seconds since it was asked last; 0 if it was not."""
        before, self._ahead = self._ahead, self._wall() - self._steady()
        return max(0.0, before - self._ahead)


async def _until_ended(processes: list[ProcessId]) -> str:
    """Wait for the end of any of the processes, told by the kernel; looked for where that is not possible."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[str] = loop.create_future()
    fds: list[int] = []

    def note(pid: int) -> None:
        if not ended.done():
            ended.set_result(f"process {pid} ended")

    try:
        for process in processes:
            try:
                fd = os.pidfd_open(process.pid)
            except ProcessLookupError:
                return f"process {process.pid} ended"
            except OSError as error:  # no descriptors left, for one
                log.warning("process_not_held", pid=process.pid, error=repr(error))
                return await _seen_to_end(processes)
            fds.append(fd)
            loop.add_reader(fd, note, process.pid)
            if not is_alive(process):  # another has its number already
                return f"process {process.pid} ended"
        return await ended
    finally:
        for fd in fds:
            loop.remove_reader(fd)
            os.close(fd)


async def _seen_to_end(processes: list[ProcessId]) -> str:
    while True:
        gone = [one.pid for one in processes if not is_alive(one)]
        if gone:
            return f"process {gone[0]} ended"
        await asyncio.sleep(LOOK_S)


def sentence(error: Exception) -> str:
    """An unexpected error, for people who start a fleet."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}." if text else f"{type(error).__name__}."
