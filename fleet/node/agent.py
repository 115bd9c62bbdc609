"""The NodeAgent actor: a lease on one node of a region, and the hands that work there.

The lease is the actor itself: it takes the node's one unit of `node:<region>`, so Ray's autoscaler starts a node for a
pending agent and takes it back when the agent is gone. All work is in `fleet.node.node`; this is its Ray shell.
"""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.util
import structlog

from fleet.actors.lanes import HEALTH, LOGS, WATCH, Lanes, in_lanes, lane
from fleet.actors.startup import Startup
from fleet.actors.tasks import SupervisedTasks
from fleet.actors.watchdog import Watchdog
from fleet.builds.bundle_cache import BundleCache
from fleet.builds.bundles import ensure_bundle, game_folders, progress
from fleet.builds.object_store import open_artefacts
from fleet.errors import Fenced
from fleet.node.choose import choose_runtime
from fleet.node.facts import FleetFacts, is_joined, node_settings, own_share
from fleet.node.logs import LogArchive
from fleet.node.model import Drain, Hello, NodeShare, Page
from fleet.node.moving import while_moving
from fleet.node.node import Node
from fleet.node.notice import SUFFIX, listen
from fleet.node.runtime import BuildRef, LaunchSpec, LogLine, Port, RunKey
from fleet.node.server_disks import ServerDisks
from fleet.node.slot import take_slot
from fleet.node.tenure import Tenure
from fleet.node.tls_proxy import ProxyPlace, TlsProxy, tls_folder
from fleet.ops.haproxy import find_haproxy
from fleet.settings import FleetSettings, get_settings
from fleet.telemetry.logs import setup_logging

log = structlog.get_logger(__name__)

Order = tuple[str, tuple[Any, ...]]  # method of the agent, its arguments after the epoch

BUNDLES_EVERY_S, BUNDLES_LIMIT_S = 300.0, 600.0
SWEEP_S, SWEEP_LIMIT_S = 3600.0, 600.0


@dataclass(frozen=True, slots=True)
class Lease:
    """An agent as Ray knows it. `agent_id` stays the same when Ray starts it again; `address`: of its machine."""

    agent_id: str
    ray_node: str
    address: str


def host_id() -> str:
    """A name for this machine that stays the same when its agent or Ray starts anew."""
    machine = Path("/etc/machine-id")
    suffix = machine.read_text().strip()[:8] if machine.exists() else ""
    return "-".join(filter(None, [socket.gethostname(), suffix]))


class Agent:
    """What a region may ask of a node. `NodeAgent` puts one behind Ray, `simulated_host.py` many."""

    def __init__(self, node: Node, archive: LogArchive) -> None:
        self._node = node
        self._archive = archive

    async def _up(self) -> Node:
        """The node. `Unavailable`, with what is missing, while it is not there yet."""
        return self._node

    async def hello(self, epoch: int) -> Hello:
        return (await self._up()).hello(epoch)

    async def poll(self, epoch: int, boot_id: str, after: int, timeout_s: float) -> Page | None:
        return await (await self._up()).poll(epoch, boot_id, after, timeout_s)

    async def do(self, epoch: int, orders: list[Order]) -> list[bool]:
        """Several commands in one call; whether each was carried out. What failed is in this node's log."""
        await self._up()

        async def one(method: str, arguments: tuple[Any, ...]) -> None:
            await getattr(self, method)(epoch, *arguments)

        results = await asyncio.gather(*(one(*order) for order in orders), return_exceptions=True)
        for (method, arguments), result in zip(orders, results, strict=True):
            if isinstance(result, Fenced):
                raise result
            if isinstance(result, BaseException):
                log.error("command_failed", method=method, run=str(arguments[0]), exc_info=result)
        return [not isinstance(result, BaseException) for result in results]

    async def launch(self, epoch: int, spec: LaunchSpec) -> tuple[Port, ...]:
        return await (await self._up()).launch(epoch, spec)

    async def stop(self, epoch: int, key: RunKey, grace_s: float) -> None:
        (await self._up()).stop(epoch, key, grace_s)

    async def forget(self, epoch: int, key: RunKey) -> None:
        (await self._up()).forget(epoch, key)

    async def ready(self, epoch: int, key: RunKey) -> None:
        (await self._up()).ready(epoch, key)

    async def freeze(self, epoch: int, key: RunKey) -> None:
        await (await self._up()).freeze(epoch, key)

    async def thaw(self, epoch: int, key: RunKey) -> None:
        await (await self._up()).thaw(epoch, key)

    async def rewrite_config(self, epoch: int, key: RunKey, config: dict[str, Any]) -> None:
        await (await self._up()).rewrite_config(epoch, key, config)

    async def prepare(self, epoch: int, build: BuildRef) -> None:
        await (await self._up()).prepare(epoch, build)

    async def set_drain(self, epoch: int, drain: Drain | None) -> None:
        (await self._up()).set_drain(epoch, drain)

    async def retire(self, epoch: int) -> None:
        """Before the lease ends: nothing may run here, and what the agent holds is put in order."""
        (await self._up()).retire(epoch)
        await self.close()

    async def logs(self, key: RunKey, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        """Lines of a run, from the engine while it has them, else from the archive."""
        node = await self._up()
        if node.has(key):
            lines = await node.logs(key, after, since_ms, limit)
            # The archive appears before the container goes, which may have happened while its log was read.
            if not self._archive.holds(key):
                return lines
        return await self._archive.page(key, after, since_ms, limit)

    async def usage(self, key: RunKey, period_s: int, step_s: int) -> dict[str, Any]:
        return (await self._up()).usage(key, period_s, step_s)

    async def wait_logs(self, key: RunKey, after: str | None, timeout_s: float) -> tuple[list[LogLine], bool]:
        return await (await self._up()).wait_logs(key, after, timeout_s)

    async def close(self) -> None:
        await self._node.close()


class StartingAgent(Agent):
    """An agent that comes up in the background, however often that fails, and answers from then on."""

    def __init__(self, region: str, share: NodeShare, facts: FleetFacts) -> None:
        self._region, self._share, self._facts = region, share, facts
        self._tasks = SupervisedTasks("agent", region=region)
        self._startup = Startup(f"The agent of a node of region {region}", self._tasks)
        self._launching: Counter[str] = Counter()
        self._watchdog: Watchdog | None = None
        self._deaf: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Needs a running loop."""
        self._startup.begin(self._come_up)

    async def _up(self) -> Node:
        await self._startup.ready()
        return self._node

    def _lease(self) -> Lease:
        """Who this agent is to Ray."""
        raise NotImplementedError

    async def _come_up(self) -> None:
        """From nothing, each time: what an earlier try has opened it has closed, but for the slot, which is kept."""
        lease, local = self._lease(), get_settings()
        share = own_share(self._share, local, lease.address) if is_joined(self._facts, local) else self._share
        self._watchdog = self._watchdog or Watchdog(local.hung_s)
        settings = node_settings(self._facts, local)
        setup_logging(f"agent-{self._region}", settings.home)
        slot = await asyncio.to_thread(take_slot, settings.home / "agents", self._region, lease.agent_id)
        scope = self._region if slot == 0 else f"{self._region}+{slot}"
        runtime = await choose_runtime(settings, scope)
        archive = LogArchive(settings.home / "logs" / "servers", settings.logs)
        disks = ServerDisks(settings.servers_dir, settings.bundle_limits.min_free_percent)
        self._bundles = BundleCache(settings.bundles, scope, settings.bundle_limits, disks.promised)
        share, tls = tls_of(share, settings, scope, runtime.name)

        async def keep_log(key: RunKey) -> None:
            await archive.keep(runtime, key)

        node = Node(
            f"{scope}@{host_id()}",
            share,
            runtime,
            bundle_fetcher(settings, self._bundles),
            keep_log,
            settings.node,
            tenure=Tenure(lease.ray_node, scope),
            tls=tls,
        )
        await node.start()
        super().__init__(node, archive)
        self._begin_housekeeping(settings.home / "agents" / f"{scope}{SUFFIX}")
        log.info("agent_ready", region=self._region, runtime=runtime.name, home=str(settings.home), pid=os.getpid())

    def _begin_housekeeping(self, notices: Path) -> None:
        try:
            self._deaf = listen(notices, self._node.notice)
        except OSError:  # a node without warnings is better than none
            log.exception("notices_not_heard", pipe=str(notices))
        self._tasks.every("sweep_logs", self._archive.sweep, SWEEP_S, limit_s=SWEEP_LIMIT_S, at_once=True)
        self._tasks.every("keep_bundles", self._keep_bundles, BUNDLES_EVERY_S, limit_s=BUNDLES_LIMIT_S)

    async def alive(self) -> None:
        """A sign of life, whatever it still waits for."""

    async def launch(self, epoch: int, spec: LaunchSpec) -> tuple[Port, ...]:
        await self._up()
        name = str(spec.key)
        self._launching[name] += 1
        try:
            if spec.build.content_hash:
                await asyncio.to_thread(self._bundles.mark, spec.build.content_hash, name)
            if spec.build.kind == "image":  # unpacked builds that nobody runs give way to its disk
                await asyncio.to_thread(self._bundles.make_room, beside=spec.disk_mb << 20)
            return await super().launch(epoch, spec)
        finally:
            self._launching -= Counter({name: 1})

    async def _keep_bundles(self) -> None:
        """Remove unpacked builds that the limits do not allow."""
        await asyncio.to_thread(self._bundles.release, self.has_run)
        await asyncio.to_thread(self._bundles.make_room)

    def has_run(self, name: str) -> bool:
        """Whether a run of this name (`str` of its key) is here, or is just being launched."""
        instance_id, _, generation = name.rpartition(".")
        return name in self._launching or self._node.has(RunKey(instance_id, int(generation)))

    async def close(self) -> None:
        self._deaf()
        self._deaf = lambda: None
        await self._tasks.close()
        if self._watchdog is not None:
            await self._watchdog.close()
            self._watchdog = None
        if self._startup.done:
            await super().close()


@in_lanes
class NodeAgent(StartingAgent):
    """One per leased node. Detached and restarted by Ray; after a restart it adopts what runs."""

    async def __init__(self, region: str, share: NodeShare, facts: FleetFacts) -> None:
        super().__init__(region, share, facts)
        self._lanes = Lanes()
        self.begin()

    @lane(HEALTH)
    async def alive(self) -> None:
        await self._lanes.run(super().alive)

    @lane(WATCH)
    async def poll(self, epoch: int, boot_id: str, after: int, timeout_s: float) -> Page | None:
        return await self._lanes.run(partial(super().poll, epoch, boot_id, after, timeout_s))

    @lane(LOGS)
    async def logs(self, key: RunKey, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        return await self._lanes.run(partial(super().logs, key, after, since_ms, limit))

    @lane(LOGS)
    async def wait_logs(self, key: RunKey, after: str | None, timeout_s: float) -> tuple[list[LogLine], bool]:
        return await self._lanes.run(partial(super().wait_logs, key, after, timeout_s))

    @lane(LOGS)
    async def usage(self, key: RunKey, period_s: int, step_s: int) -> dict[str, Any]:
        return await self._lanes.run(partial(super().usage, key, period_s, step_s))

    def _lease(self) -> Lease:
        context = ray.get_runtime_context()
        address = str(ray.util.get_node_ip_address())  # pyright: ignore[reportUnknownArgumentType]
        return Lease(str(context.get_actor_id()), str(context.get_node_id()), address)


def bundle_fetcher(settings: FleetSettings, bundles: BundleCache) -> Callable[[BuildRef], Awaitable[None]]:
    """Has a ZIP build unpacked on this machine. `Unavailable` if that stands still for `node.no_progress_s`."""

    async def fetch(build: BuildRef) -> None:
        if build.kind != "zip" or not build.content_hash:
            return
        content_hash, folders = build.content_hash, game_folders(build.root, build.executable)
        if not (settings.bundles / content_hash).is_dir():
            await asyncio.to_thread(bundles.make_room, build.unpacked_bytes)
        await while_moving(
            lambda: ensure_bundle(open_artefacts(settings), content_hash, folders, settings.bundles, settings.upload),
            lambda: progress(settings.bundles, content_hash),
            settings.node.no_progress_s,
            f"Fetching the build {build.build_id}",
        )

    return fetch


def tls_of(share: NodeShare, settings: FleetSettings, scope: str, runtime: str) -> tuple[NodeShare, TlsProxy | None]:
    """What ends TLS for a node's games, and the share without TLS ports where nothing can."""
    binary = find_haproxy() if runtime != "simulated" and share.tls_ports else None
    if binary is None:
        return (share if runtime == "simulated" else replace(share, tls_ports=0)), None
    return share, TlsProxy(ProxyPlace(tls_folder(settings.home, scope), settings.home, binary, settings.tls), share)
