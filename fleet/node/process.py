"""The process runtime: a fallback for machines without a container engine. It does not isolate.

A run is a folder: `run.json` (what to start), `game/` (its files), the log, `shim.json` and `game.json` (pids with
start times), `exit.json` (its end). A keeper process per run (`shim.py`) writes them, so the folders are the whole
state and an agent that dies adopts everything by reading them. Ends are seen by pidfd, without polling.

There is no NAT: a game must listen on its external port. It is told by `PLAYFLOW_PORT_<NAME>` and by
`{port:<name>}` in its startup arguments.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import structlog

from fleet.actors.single_flight import SingleFlight
from fleet.errors import Conflict, NotFound
from fleet.node.executable import bundle_folder, check_executable, executable_of
from fleet.node.game_api import GameApi
from fleet.node.health import readiness_of
from fleet.node.log_tokens import page
from fleet.node.ports import is_free
from fleet.node.process_doors import ProcessDoors
from fleet.node.process_folder import (
    RunFolder,
    fill_folder,
    run_description,
    socket_inodes,
)
from fleet.node.process_logs import follow_lines, read_lines, tail_of
from fleet.node.process_usage import usage_of_all
from fleet.node.runtime import (
    BuildRef,
    Exited,
    LaunchFailed,
    LaunchSpec,
    LogLine,
    Observed,
    Port,
    PortTaken,
    Readiness,
    RunKey,
    RuntimePlace,
)
from fleet.node.secret_files import TOLD, SecretFiles
from fleet.node.series import Usage
from fleet.node.server_folder import make_private, server_folder, write_config
from fleet.node.words import Heard, Word
from fleet.times import now_ms

log = structlog.get_logger(__name__)

_SHIM = Path(__file__).with_name("shim.py")
VANISHED = -1  # exit code of a game whose keeper was killed
_START_TIMEOUT_S = 30.0


class ProcessRuntime:
    """Runtime (see `fleet.node.runtime`) on plain processes of this machine."""

    name = "process"
    networks = None

    def __init__(self, place: RuntimePlace) -> None:
        self._place = place
        self._locks: dict[RunKey, asyncio.Lock] = {}
        self._under_way: SingleFlight[RunKey, None] = SingleFlight()
        self._orphans: set[Path] = set()
        self._watched: dict[RunKey, int] = {}
        self._reported: set[RunKey] = set()
        self._secrets = SecretFiles(place.fleet_id, place.servers_dir)
        self._ended: asyncio.Queue[RunKey] = asyncio.Queue()
        self._api = GameApi()
        port_file = place.servers_dir.parent / "game-api" / f"{place.fleet_id}.{place.region}"
        self._doors = ProcessDoors(self._api, port_file)

    async def start(self) -> None:
        log.warning(
            "games run as plain processes of this user: no isolation, no memory limit, no private network. "
            "Run only builds that you trust, and install a container engine for anything else."
        )
        make_private(self._place.servers_dir)
        await self._doors.open()

    def warnings(self) -> tuple[str, ...]:
        return ("games run as plain processes of the agent's user: no isolation", *self._place.notes)

    async def close(self) -> None:
        await self._under_way.close()
        for descriptor in self._watched.values():
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
        self._watched.clear()
        await self._doors.close()

    async def prepare(self, build: BuildRef) -> None:
        self._game_files(build)

    def _game_files(self, build: BuildRef) -> Path:
        if self._place.closed:
            raise LaunchFailed("STARTUP_FAILURE_URL", self._place.closed)
        if build.kind == "image":
            raise LaunchFailed(
                "STARTUP_FAILURE_DOWNLOAD", "Docker image builds need a container engine, which this node lacks."
            )
        folder = bundle_folder(self._place.bundles, build)
        check_executable(folder / build.root, executable_of(build))
        return folder

    def _folder(self, key: RunKey) -> RunFolder:
        return RunFolder(server_folder(self._place.servers_dir, key))

    async def launch(self, spec: LaunchSpec) -> None:
        files = self._game_files(spec.build)
        # Seen through when the caller goes away: `stop` waits for the lock and then finds the process.
        await self._under_way.do(spec.key, lambda: self._carry_out(spec, files))

    async def _carry_out(self, spec: LaunchSpec, files: Path) -> None:
        async with self._locks.setdefault(spec.key, asyncio.Lock()):
            run = self._folder(spec.key)
            if run.alive() or run.ended():
                return
            taken = tuple(port for port in spec.ports if not is_free(spec.bind_host, port.published))
            if taken:
                raise PortTaken(taken, f"in use: {', '.join(str(port.published) for port in taken)}")
            await self._make(spec, files, run)

    async def _make(self, spec: LaunchSpec, files: Path, run: RunFolder) -> None:
        await asyncio.to_thread(fill_folder, run.path, files, writable=spec.build.writable)
        write_config(run.beside_executable(spec.build), spec.config)
        self._secrets.write(spec.key, spec.secrets.files, (os.getuid(), os.getgid()))
        description = run_description(spec, run, self._place.fleet_id, self._doors.url())
        run.describe(description)
        self._doors.serve(spec.key, description["door"], run.config_folder())
        secret = dict(spec.secrets.variables)
        if spec.secrets.files:
            secret[TOLD] = str(self._secrets.folder(spec.key))
        answer = await _start_shim(run.path, secret)
        if "error" in answer:
            await self._doors.shut(spec.key)
            await asyncio.to_thread(self._secrets.remove_run, spec.key)
            message = f"The server cannot be started: {answer['error']}"
            raise LaunchFailed("STARTUP_FAILURE_EXECUTABLE", message)
        self._watch(spec.key)

    async def readiness(self, spec_ports: tuple[Port, ...], key: RunKey) -> Readiness:
        run = self._folder(key)
        game = run.game_pid()
        if not game:
            return Readiness(missing=spec_ports)
        outside = {port.published: port for port in spec_ports}
        try:
            inodes = socket_inodes(run.shim_pid())
            seen = readiness_of(
                Path(f"/proc/{game}/net"), [replace(port, internal=port.published) for port in spec_ports], inodes
            )
        except OSError:  # ended meanwhile
            return Readiness(missing=spec_ports)
        missing = tuple(outside[port.published] for port in seen.missing)
        # The proxy that ends TLS comes from the same loopback.
        loopback = tuple(outside[port.published] for port in seen.loopback if not port.tls)
        # Published on the loopback only, a game on the loopback is where its players look for it.
        published = run.description().get("bind_host", "")
        return Readiness(missing, () if published.startswith("127.") or published == "::1" else loopback)

    async def exits(self) -> AsyncIterator[Exited]:
        for run in await asyncio.to_thread(self._mine):
            if run.alive() or run.ended():
                self._watch(run.key())
        while True:
            key = await self._ended.get()
            if key in self._reported or not self._folder(key).path.exists():
                continue
            self._reported.add(key)
            await self._doors.shut(key)
            yield await asyncio.to_thread(self._exited, key)

    def _watch(self, key: RunKey) -> None:
        """Put `key` on the queue when its keeper ends (now, if it has)."""
        if key in self._watched:
            return
        descriptor = self._folder(key).open_pidfd()
        if descriptor is None:
            self._ended.put_nowait(key)
            return
        self._watched[key] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._keeper_ended, key)

    def _keeper_ended(self, key: RunKey) -> None:
        descriptor = self._watched.pop(key)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        self._ended.put_nowait(key)

    def _exited(self, key: RunKey) -> Exited:
        run = self._folder(key)
        end = run.exit()
        if end is None:  # the keeper was killed: nobody is left to tell, so end what it kept
            run.signal_game(signal.SIGKILL)
            run.record_exit({"code": VANISHED, "at": now_ms()})
            return Exited(key, now_ms(), VANISHED, tail=tail_of(run.path))
        return Exited(key, end["at"], end["code"], tail=tail_of(run.path) if end["code"] else "")

    async def stop(self, key: RunKey, grace_s: float) -> None:
        async with self._locks.setdefault(key, asyncio.Lock()):
            run = self._folder(key)
            descriptor = run.open_pidfd()
            if descriptor is None:
                return
            try:
                run.freeze(False)  # a frozen game could not hear the signal
                run.signal_game(signal.SIGTERM)
                if not await _readable(descriptor, grace_s):
                    run.signal_game(signal.SIGKILL)
                    await _readable(descriptor, _START_TIMEOUT_S)
            finally:
                os.close(descriptor)

    async def freeze(self, key: RunKey) -> None:
        await self._freeze(key, True)

    async def thaw(self, key: RunKey) -> None:
        await self._freeze(key, False)

    async def _freeze(self, key: RunKey, frozen: bool) -> None:
        async with self._locks.setdefault(key, asyncio.Lock()):
            run = self._folder(key)
            while run.freeze(frozen):
                if run.frozen() == frozen:
                    return
                await asyncio.sleep(0.002)  # the signal is on its way
            raise NotFound("The server's run does not run any more.", error="Server gone")

    async def remove(self, key: RunKey) -> None:
        """As the protocol says; Conflict if it still runs."""
        run = self._folder(key)
        if run.alive():
            raise Conflict("The server still runs; stop it first.")
        await self._doors.shut(key)
        await asyncio.to_thread(self._secrets.remove_run, key)
        self._reported.discard(key)
        self._locks.pop(key, None)

    async def remove_orphans(self) -> int:
        found = set(await asyncio.to_thread(self._half_made))
        gone, self._orphans = found & self._orphans, found
        await asyncio.to_thread(self._secrets.sweep)
        for folder in gone:
            log.warning("orphan_removed", folder=str(folder))
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return len(gone)

    def _half_made(self) -> list[Path]:
        """Folders that a killed agent was filling: nothing says what they were for."""
        named = (path for path in self._place.servers_dir.glob("*.*") if not path.name.startswith("."))
        return [path for path in named if path.is_dir() and not RunFolder(path).description()]

    def hear(self, heard: Heard) -> None:
        self._api.heard = heard

    def say(self, key: RunKey, word: Word) -> None:
        self._api.say(key, word)

    async def rewrite_config(self, key: RunKey, config: dict[str, Any]) -> None:
        write_config(self._folder(key).config_folder(), config)
        self._api.changed(key)

    async def full_disks(self, keys: Collection[RunKey]) -> frozenset[RunKey]:
        return frozenset()

    async def usage(self, keys: Collection[RunKey]) -> dict[RunKey, Usage]:
        roots = {key: self._folder(key).game_pid() for key in keys}
        return await asyncio.to_thread(usage_of_all, {key: pid for key, pid in roots.items() if pid})

    async def serve(self, key: RunKey) -> None:
        run = self._folder(key)
        if door := run.description().get("door"):
            self._doors.serve(key, door, run.config_folder())

    async def logs(self, key: RunKey, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        return await asyncio.to_thread(lambda: page(read_lines(self._folder(key).path), after, since_ms, limit))

    def follow(self, key: RunKey, after: str | None) -> AsyncIterator[LogLine]:
        run = self._folder(key)
        return follow_lines(run.path, run.alive, after)

    def _mine(self) -> list[RunFolder]:
        found = (RunFolder(path) for path in self._place.servers_dir.glob("*.*") if path.is_dir())
        return [run for run in found if run.belongs_to(self._place.fleet_id, self._place.region)]

    # Last, since inside the class its name hides the built-in one.
    async def list(self) -> list[Observed]:
        return [run.observed() for run in await asyncio.to_thread(self._mine)]


async def _start_shim(folder: Path, secret: dict[str, str]) -> dict[str, Any]:
    """Start the keeper of a described run: {"game": pid}, or {"error": words}. `secret`: variables of the game that are
    not to lie on the disk, so they go through a pipe."""
    return await asyncio.to_thread(_start_shim_now, folder, orjson.dumps(secret))


def _start_shim_now(folder: Path, secret: bytes) -> dict[str, Any]:
    # Not the loop's own subprocesses: uvloop, which Ray's actors run on, hands every open file down to the child,
    # and a keeper that holds the other end of its own output never lets the caller see the end of it.
    command = [sys.executable, "-I", "-S", str(_SHIM), str(folder)]
    try:
        done = subprocess.run(
            command,
            input=secret,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={},
            timeout=_START_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"its keeper did not answer within {_START_TIMEOUT_S:.0f} s"}
    if done.returncode or not done.stdout:
        return {"error": f"its keeper failed with exit code {done.returncode}"}
    return orjson.loads(done.stdout)


async def _readable(descriptor: int, timeout_s: float) -> bool:
    """Wait until a pidfd says that its process has ended; False after `timeout_s`."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    copy = os.dup(descriptor)  # readers are registered by number: never share one with another waiter
    loop.add_reader(copy, lambda: ended.done() or ended.set_result(None))
    try:
        async with asyncio.timeout(timeout_s):
            await ended
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(copy)
        os.close(copy)
    return True
