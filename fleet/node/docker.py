"""The Docker runtime: every server is a container with all the isolation the engine offers.

The engine is the state: names make a launch idempotent, labels make a container adoptable, and what is remembered
here (pids, image facts) is a cache that any restart may lose.
"""

import asyncio
import contextlib
import math
import os
import resource
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import structlog

from fleet.actors.single_flight import SingleFlight
from fleet.errors import Conflict, NotFound
from fleet.node.base_image import ensure_base_image
from fleet.node.docker_disks import DockerDisks
from fleet.node.docker_doors import open_door
from fleet.node.docker_exits import ExitWatch
from fleet.node.docker_listing import is_running, of_details, of_running
from fleet.node.docker_logs import follow_lines, read_page, read_tail
from fleet.node.docker_net import GameNetworks
from fleet.node.docker_networks import DockerNetworks
from fleet.node.docker_orphans import OrphanHunt
from fleet.node.docker_spec import (
    DOOR,
    UNIX,
    Host,
    ImageFacts,
    container_config,
    container_name,
    door_of,
    fleet_filter,
    is_port_taken,
    key_of,
    secrets_owner,
    taken_ports,
)
from fleet.node.engine import Engine, EngineError
from fleet.node.executable import bundle_folder, check_executable, executable_of
from fleet.node.game_api import GameApi
from fleet.node.images import BuildImages
from fleet.node.isolation import Isolation
from fleet.node.launches import launch_gate
from fleet.node.runtime import (
    BuildRef,
    EngineUnavailable,
    Exited,
    LaunchFailed,
    LaunchSpec,
    LogLine,
    NetworkLost,
    Observed,
    Port,
    PortTaken,
    Readiness,
    RunKey,
    RuntimePlace,
)
from fleet.node.secret_files import SecretFiles
from fleet.node.series import Usage
from fleet.node.server_folder import make_private, server_folder, write_config
from fleet.node.words import Heard, Word

log = structlog.get_logger(__name__)
_PAUSE_AGAIN_S = (0.02, 0.1, 0.5)  # the engine's books of who is paused may lag behind what it has just done


class DockerRuntime:
    """Runtime (see `fleet.node.runtime`) on the Docker engine of this machine."""

    name = "docker"

    def __init__(self, place: RuntimePlace, *, socket: str | None = None) -> None:
        self._place = place
        self._engine = Engine(socket)
        self._images = BuildImages(self._engine, place)
        self._labels = fleet_filter(place.fleet_id, place.region)
        self.networks = DockerNetworks(self._engine, place)
        self._watch = ExitWatch(self._engine, place.fleet_id, self._labels, self.networks, self)
        self._launches = launch_gate()
        self._locks: dict[RunKey, asyncio.Lock] = {}
        self._under_way: SingleFlight[RunKey, None] = SingleFlight()
        self._disks = DockerDisks(place)
        self._hunt = OrphanHunt(self._engine, place.fleet_id, place.servers_dir, self.networks, self._disks.files)
        self._inside = GameNetworks(self._find_pid)
        self._api = GameApi()
        self._base = ImageFacts("")
        lock = place.servers_dir.parent / "firewall.lock"
        self._isolation = Isolation(self._engine, place.fleet_id, place.api_ports, place.reach, lock)
        # More open files than the engine itself may have would be refused; ours are a good guess of that.
        files = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        self._secrets = SecretFiles(place.fleet_id, place.servers_dir)
        kept = (place.servers_dir, place.bundles, files, self._secrets.root)
        self._host = Host(place.fleet_id, os.cpu_count() or 1, *kept, runtime=place.oci_runtime)
        self._lacking = ""  # why no game may be started on this engine

    async def ping(self) -> None:
        """EngineUnavailable unless the engine answers now."""
        try:
            await self._engine.call("GET", "/_ping", decode=False, timeout_s=10)
        except EngineError as error:
            raise EngineUnavailable(error.message) from error

    async def start(self) -> None:
        info = await self._ask("GET", "/info")
        door_port = self._place.door_port if self._inside.enters else 0
        self._host = replace(self._host, cpus=info["NCPU"], door_port=door_port)
        if (wanted := self._place.oci_runtime) and wanted not in info["Runtimes"]:
            known = ", ".join(sorted(info["Runtimes"]))
            self._lacking = f"The container engine has no runtime '{wanted}' (FLEET_DOCKER_RUNTIME); it has {known}."
        make_private(self._place.servers_dir)
        await self._disks.look(info, self._engine.socket)
        self._images.cache.on_disk(info.get("DockerRootDir") or "")
        if self._place.walled:
            try:
                mode = await self._isolation.open(info)
            except EngineError as error:
                raise EngineUnavailable(error.message) from error
            self._host = replace(self._host, network=mode)
            self.networks.mode = mode
        place = self._place
        base = await ensure_base_image(self._engine, place.base_image, place.servers_dir.parent, place.no_progress_s)
        self._base = ImageFacts(base)
        self.networks.image = self._base.reference

    def warnings(self) -> tuple[str, ...]:
        off = "games are not walled off from this machine and private networks: FLEET_NODE__WALLS is off"
        problem = self._isolation.problem if self._place.walled else off
        return tuple(filter(None, (*self._place.notes, problem, self._lacking)))

    async def close(self) -> None:
        await self._under_way.close()
        await self._watch.close()
        await self.networks.close()
        await self._isolation.close()
        self._inside.close()
        await self._images.close()
        await self._api.close()
        await self._engine.close()

    async def prepare(self, build: BuildRef) -> None:
        await self._image(build)

    async def _image(self, build: BuildRef) -> ImageFacts:
        if self._lacking:
            raise LaunchFailed("STARTUP_FAILURE_EXECUTABLE", self._lacking)
        if build.kind == "image":
            image = await self._images.prepare(build)
            self._disks.check(build, image)
            return image
        folder = bundle_folder(self._place.bundles, build)
        check_executable(folder / build.root, executable_of(build))
        return self._base

    async def launch(self, spec: LaunchSpec) -> None:
        image = await self._image(spec.build)
        async with self._launches.place(spec.project_id):
            # The engine carries out a start whose caller has gone, so a cancelled launch is seen through, and
            # `stop` waits for it: otherwise it would find nothing to stop, and the server would run for ever.
            await self._under_way.do(spec.key, lambda: self._carry_out(spec, image))

    async def _carry_out(self, spec: LaunchSpec, image: ImageFacts) -> None:
        folder = server_folder(self._place.servers_dir, spec.key)
        async with self._locks.setdefault(spec.key, asyncio.Lock()):
            folder.mkdir(exist_ok=True)
            write_config(folder, spec.config)
            self._secrets.write(spec.key, spec.secrets.files, secrets_owner(spec, image))
            name, plan = self._name(spec.key), self._disks.plan(spec, image)
            mounted = await self._disks.ready(spec.key, plan)
            try:
                if await self._create(name, container_config(spec, image, self._host, plan, mounted)):
                    if plan.root == "loop":
                        await self._disks.attach(spec.key, await self._inspect(name) or {})
                    await self._open_door_ahead(spec, folder)
                    await self._start(name, spec)
            except EngineError as error:
                await self._api.shut(spec.key)
                with contextlib.suppress(EngineUnavailable):  # then the search for orphans finds it
                    await self._disks.remove(spec.key)
                await asyncio.to_thread(self._secrets.remove_run, spec.key)
                raise self._refusal(error, spec) from error
            self._watch.launched(spec.key, spec.network)
            await self.serve(spec.key)

    async def _open_door_ahead(self, spec: LaunchSpec, folder: Path) -> None:
        """Where that is possible, the game finds its door open when it starts."""
        door = door_of(spec, self._host.door_port)
        pid = 0
        if spec.network is not None and door != UNIX:
            details = await self._inspect(spec.network)
            pid = int(details["State"]["Pid"]) if details else 0
        if pid or door == UNIX:
            await open_door(self._api, spec.key, door, pid, folder)

    async def serve(self, key: RunKey) -> None:
        if (door := self._api.door(key)) is not None and door.listening is not None:
            return
        details = await self._inspect(self._name(key))
        if details is None or not details["State"]["Running"]:
            return
        place, pid = details["Config"]["Labels"].get(DOOR), int(details["State"]["Pid"])
        if place:
            await open_door(self._api, key, place, pid, server_folder(self._place.servers_dir, key))

    def _name(self, key: RunKey) -> str:
        return container_name(self._place.fleet_id, key)

    async def _create(self, name: str, config: dict[str, Any]) -> bool:
        """True if the container now waits to be started; False if it runs (or has run) already."""
        for _ in range(2):
            try:
                await self._engine.call("POST", "/containers/create", params={"name": name}, json=config)
                return True
            except EngineError as error:
                if error.status != 409:
                    raise
            if not await self._discard_half_made(name):
                return False
        raise EngineUnavailable(f"container {name} cannot be replaced")

    async def _discard_half_made(self, name: str) -> bool:
        """Remove what an interrupted launch left. False if that launch was carried out, so there is nothing to do."""
        details = await self._inspect(name)
        if details is not None and details["State"]["Status"] != "created":
            return False
        await self._delete(name)
        return True

    async def _start(self, name: str, spec: LaunchSpec) -> None:
        try:
            await self._engine.call("POST", f"/containers/{name}/start")
        except EngineError as error:
            if error.status == 304:
                return
            log.warning("launch_refused", server=spec.key.instance_id, error=error.message)
            await self._delete(name)
            raise

    def _refusal(self, error: EngineError, spec: LaunchSpec) -> Exception:
        """The engine's words as one of the protocol's errors."""
        text = error.message
        if spec.network and (spec.network in text or "cannot join network" in text or "/ns/net" in text):
            return NetworkLost(text)
        if is_port_taken(text):
            return PortTaken(taken_ports(text, spec.ports), text)
        if error.status == 404 or "No such image" in text:
            self._images.forget(spec.build)
            return LaunchFailed("STARTUP_FAILURE_DOWNLOAD", f"The build's image is gone from the node: {text}")
        if "bind source path does not exist" in text:
            return LaunchFailed("STARTUP_FAILURE_DOWNLOAD", f"The build's files are gone from the node: {text}")
        if error.status == 400 or "OCI runtime create failed" in text:
            return LaunchFailed("STARTUP_FAILURE_EXECUTABLE", f"The server cannot be started: {text[:500]}")
        return EngineUnavailable(text)

    async def readiness(self, spec_ports: tuple[Port, ...], key: RunKey) -> Readiness:
        return await self._inside.readiness(spec_ports, key)

    async def _find_pid(self, key: RunKey) -> int:
        details = await self._inspect(self._name(key))
        return int(details["State"]["Pid"]) if details else 0

    async def _observe(self, row: dict[str, Any]) -> Observed | None:
        labels: dict[str, str] = row["Labels"]
        key = key_of(labels, (row["Names"] or [""])[0], self._place.fleet_id)
        if key is None:
            return None
        if is_running(row):
            return of_running(key, row)
        details = await self._inspect(row["Id"])  # None: removed since the listing
        return of_details(key, labels, details["State"]) if details else None

    async def exits(self) -> AsyncIterator[Exited]:
        async for exited in self._watch.exits():
            self._inside.forget(exited.key)
            await self._api.shut(exited.key)
            yield exited

    async def stop(self, key: RunKey, grace_s: float) -> None:
        seconds = math.ceil(grace_s)
        async with self._locks.setdefault(key, asyncio.Lock()):
            with contextlib.suppress(NotFound):
                await self._pause(key, "unpause")  # a frozen game could not hear the signal
            path = f"/containers/{self._name(key)}/stop"
            await self._settle("POST", path, {"t": str(seconds)}, timeout_s=seconds + 60)

    async def freeze(self, key: RunKey) -> None:
        async with self._locks.setdefault(key, asyncio.Lock()):
            await self._pause(key, "pause")

    async def thaw(self, key: RunKey) -> None:
        async with self._locks.setdefault(key, asyncio.Lock()):
            await self._pause(key, "unpause")

    async def _pause(self, key: RunKey, command: str) -> None:
        """Pause or unpause; done already is success. NotFound if it does not run."""
        for delay_s in (*_PAUSE_AGAIN_S, None):
            try:
                await self._engine.call("POST", f"/containers/{self._name(key)}/{command}")
                return
            except EngineError as error:
                refusal = error.message
            state = (await self._inspect(self._name(key)) or {"State": {"Running": False}})["State"]
            if not state["Running"]:
                raise NotFound("The server's run does not run any more.", error="Server gone")
            if state["Paused"] == (command == "pause"):
                return
            if delay_s is None:
                raise EngineUnavailable(refusal)
            await asyncio.sleep(delay_s)

    async def remove(self, key: RunKey) -> None:
        """As the protocol says; Conflict if it still runs."""
        async with self._locks.setdefault(key, asyncio.Lock()):  # not while it is being made
            await self._settle("DELETE", f"/containers/{self._name(key)}", {"v": "1"})
            await self._disks.remove(key)
            await asyncio.to_thread(self._secrets.remove_run, key)
        self._watch.removed(key)
        self._inside.forget(key)
        await self._api.shut(key)
        self._locks.pop(key, None)

    async def remove_orphans(self) -> int:
        try:
            await self._images.cache.make_room()
        except EngineError as error:
            raise EngineUnavailable(error.message) from error
        await asyncio.to_thread(self._secrets.sweep)
        return await self._hunt.remove()

    async def usage(self, keys: Collection[RunKey]) -> dict[RunKey, Usage]:
        looks = [(key, await self._inside.pid(key), self._api.connections(key)) for key in keys]
        read = self._inside.usage
        seen = await asyncio.to_thread(lambda: {key: read(key, pid, own) for key, pid, own in looks if pid})
        return {key: usage for key, usage in seen.items() if usage is not None}

    async def full_disks(self, keys: Collection[RunKey]) -> frozenset[RunKey]:
        return await self._disks.full(keys)

    def hear(self, heard: Heard) -> None:
        self._api.heard = heard

    def say(self, key: RunKey, word: Word) -> None:
        self._api.say(key, word)

    async def rewrite_config(self, key: RunKey, config: dict[str, Any]) -> None:
        write_config(server_folder(self._place.servers_dir, key), config)
        self._api.changed(key)

    async def logs(self, key: RunKey, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        return await read_page(self._engine, self._name(key), after, since_ms, limit)

    def follow(self, key: RunKey, after: str | None) -> AsyncIterator[LogLine]:
        return follow_lines(self._engine, self._name(key), after)

    async def tail(self, key: RunKey) -> str:
        return await read_tail(self._engine, self._name(key))

    async def _inspect(self, name: str) -> dict[str, Any] | None:
        return await self._ask("GET", f"/containers/{name}/json", missing_ok=True)

    async def _delete(self, name: str) -> None:
        await self._settle("DELETE", f"/containers/{name}", {"v": "1", "force": "1"})

    async def _settle(self, method: str, path: str, params: dict[str, str], timeout_s: float = 60.0) -> None:
        """A command whose effect may be there already: gone and already stopped are success."""
        try:
            await self._engine.call(method, path, params=params, timeout_s=timeout_s)
        except EngineError as error:
            if error.status == 409 and "running container" in error.message:
                raise Conflict("The server still runs; stop it first.") from error
            if error.status not in (304, 404) and "already in progress" not in error.message:
                raise EngineUnavailable(error.message) from error

    async def _ask(
        self, method: str, path: str, params: dict[str, str] | None = None, *, missing_ok: bool = False
    ) -> Any:
        try:
            return await self._engine.call(method, path, params=params)
        except EngineError as error:
            if error.status == 404 and missing_ok:
                return None
            raise EngineUnavailable(error.message) from error

    # Last, since inside the class its name hides the built-in one.
    async def list(self) -> list[Observed]:
        filters = orjson.dumps({"label": self._labels}).decode()
        rows = await self._ask("GET", "/containers/json", {"all": "1", "filters": filters})
        return [run for run in await asyncio.gather(*map(self._observe, rows)) if run is not None]
