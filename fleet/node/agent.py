"""The NodeAgent actor: a lease on one node of a region, and the hands that work there.

The lease is the actor itself: it takes the node's one unit of `node:<region>`, so Ray's autoscaler starts a node for a
pending agent and takes it back when the agent is gone. All work is in `fleet.node.node`; this is its Ray shell.
"""

import asyncio
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.util
import structlog

from fleet.builds.bundle_cache import BundleCache
from fleet.builds.bundles import ensure_bundle, game_folders
from fleet.builds.object_store import open_artefacts
from fleet.errors import Fenced
from fleet.node.choose import choose_runtime
from fleet.node.facts import FleetFacts, is_joined, node_settings, own_share
from fleet.node.logs import LogArchive
from fleet.node.model import Drain, Hello, NodeShare, Page
from fleet.node.node import Node
from fleet.node.notice import SUFFIX, listen
from fleet.node.runtime import BuildRef, LaunchSpec, LogLine, Port, RunKey
from fleet.node.slot import take_slot
from fleet.node.tenure import Tenure
from fleet.node.tls_proxy import ProxyPlace, TlsProxy, tls_folder
from fleet.ops.haproxy import find_haproxy
from fleet.settings import FleetSettings, get_settings
from fleet.telemetry.logs import setup_logging

log = structlog.get_logger(__name__)

Order = tuple[str, tuple[Any, ...]]  # method of the agent, its arguments after the epoch

BUNDLES_EVERY_S = 300.0


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

    async def hello(self, epoch: int) -> Hello:
        return self._node.hello(epoch)

    async def poll(self, epoch: int, boot_id: str, after: int, timeout_s: float) -> Page | None:
        return await self._node.poll(epoch, boot_id, after, timeout_s)

    async def do(self, epoch: int, orders: list[Order]) -> list[bool]:
        """Several commands in one call; whether each was carried out. What failed is in this node's log."""

        async def one(method: str, arguments: tuple[Any, ...]) -> None:
            await getattr(self, method)(epoch, *arguments)

        results = await asyncio.gather(*(one(*order) for order in orders), return_exceptions=True)
        for (method, arguments), result in zip(orders, results, strict=True):
            if isinstance(result, Fenced):
                raise result
            if isinstance(result, BaseException):
                log.error("command failed", method=method, run=str(arguments[0]), exc_info=result)
        return [not isinstance(result, BaseException) for result in results]

    async def launch(self, epoch: int, spec: LaunchSpec) -> tuple[Port, ...]:
        return await self._node.launch(epoch, spec)

    async def stop(self, epoch: int, key: RunKey, grace_s: float) -> None:
        self._node.stop(epoch, key, grace_s)

    async def forget(self, epoch: int, key: RunKey) -> None:
        self._node.forget(epoch, key)

    async def ready(self, epoch: int, key: RunKey) -> None:
        self._node.ready(epoch, key)

    async def freeze(self, epoch: int, key: RunKey) -> None:
        await self._node.freeze(epoch, key)

    async def thaw(self, epoch: int, key: RunKey) -> None:
        await self._node.thaw(epoch, key)

    async def rewrite_config(self, epoch: int, key: RunKey, config: dict[str, Any]) -> None:
        await self._node.rewrite_config(epoch, key, config)

    async def prepare(self, epoch: int, build: BuildRef) -> None:
        await self._node.prepare(epoch, build)

    async def set_drain(self, epoch: int, drain: Drain | None) -> None:
        self._node.set_drain(epoch, drain)

    async def retire(self, epoch: int) -> None:
        """Before the lease ends: nothing may run here, and what the agent holds is put in order."""
        self._node.retire(epoch)
        await self.close()

    async def logs(self, key: RunKey, after: str | None, since_ms: int | None, limit: int) -> list[LogLine]:
        """Lines of a run, from the engine while it has them, else from the archive."""
        if self._node.has(key):
            lines = await self._node.logs(key, after, since_ms, limit)
            # The archive appears before the container goes, which may have happened while its log was read.
            if not self._archive.holds(key):
                return lines
        return await self._archive.page(key, after, since_ms, limit)

    async def usage(self, key: RunKey, period_s: int, step_s: int) -> dict[str, Any]:
        return self._node.usage(key, period_s, step_s)

    async def wait_logs(self, key: RunKey, after: str | None, timeout_s: float) -> tuple[list[LogLine], bool]:
        return await self._node.wait_logs(key, after, timeout_s)

    def has_run(self, name: str) -> bool:
        """Whether a run of this name (`str` of its key) is here."""
        instance_id, _, generation = name.rpartition(".")
        return self._node.has(RunKey(instance_id, int(generation)))

    async def close(self) -> None:
        await self._node.close()


@ray.remote
class NodeAgent(Agent):
    """One per leased node. Detached and restarted by Ray; after a restart it adopts what runs."""

    async def __init__(self, region: str, share: NodeShare, facts: FleetFacts) -> None:
        local = get_settings()
        if is_joined(facts, local):
            share = own_share(share, local, str(ray.util.get_node_ip_address()))  # pyright: ignore[reportUnknownArgumentType]
        settings = node_settings(facts, local)
        setup_logging(f"agent-{region}", settings.home)
        archive = LogArchive(settings.home / "logs" / "servers", settings.logs)
        ray_context = ray.get_runtime_context()
        slot = await asyncio.to_thread(take_slot, settings.home / "agents", region, str(ray_context.get_actor_id()))
        scope = region if slot == 0 else f"{region}+{slot}"
        runtime = await choose_runtime(settings, scope)
        share, tls = tls_of(share, settings, scope, runtime.name)
        store = open_artefacts(settings)
        self._bundles = BundleCache(settings.bundles, scope, settings.bundle_limits)

        async def fetch(build: BuildRef) -> None:
            if build.kind == "zip" and build.content_hash:
                if not (settings.bundles / build.content_hash).is_dir():
                    await asyncio.to_thread(self._bundles.make_room, build.unpacked_bytes)
                folders = game_folders(build.root, build.executable)
                await asyncio.to_thread(
                    ensure_bundle, store, build.content_hash, folders, settings.bundles, settings.upload
                )

        async def keep_log(key: RunKey) -> None:
            await archive.keep(runtime, key)

        node = Node(
            f"{scope}@{host_id()}",
            share,
            runtime,
            fetch,
            keep_log,
            settings.node,
            tenure=Tenure(str(ray_context.get_node_id()), scope),
            tls=tls,
        )
        super().__init__(node, archive)
        await node.start()
        self._deaf = listen(settings.home / "agents" / f"{scope}{SUFFIX}", node.notice)
        self._sweepers = [asyncio.create_task(sweep(archive)), asyncio.create_task(self._keep_bundles())]
        log.info("agent ready", region=region, runtime=runtime.name, home=str(settings.home), pid=os.getpid())

    async def launch(self, epoch: int, spec: LaunchSpec) -> tuple[Port, ...]:
        if spec.build.content_hash:
            await asyncio.to_thread(self._bundles.mark, spec.build.content_hash, str(spec.key))
        return await super().launch(epoch, spec)

    async def _keep_bundles(self) -> None:
        """Remove unpacked builds that the limits do not allow, once in a while. Until cancelled."""
        while True:
            await asyncio.sleep(BUNDLES_EVERY_S)
            try:
                await asyncio.to_thread(self._bundles.release, self.has_run)
                await asyncio.to_thread(self._bundles.make_room)
            except OSError:  # the next round tries again
                log.exception("bundles could not be looked after")


def tls_of(share: NodeShare, settings: FleetSettings, scope: str, runtime: str) -> tuple[NodeShare, TlsProxy | None]:
    """What ends TLS for a node's games, and the share without TLS ports where nothing can."""
    binary = find_haproxy() if runtime != "simulated" and share.tls_ports else None
    if binary is None:
        return (share if runtime == "simulated" else replace(share, tls_ports=0)), None
    return share, TlsProxy(ProxyPlace(tls_folder(settings.home, scope), settings.home, binary, settings.tls), share)


async def sweep(archive: LogArchive) -> None:
    """Every hour, what is too old goes. Until cancelled."""
    while True:
        await archive.sweep()
        await asyncio.sleep(3600)
