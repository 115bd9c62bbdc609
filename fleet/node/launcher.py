"""A run's way from the order to open ports: the build, the container on free ports, the wait for the game."""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import structlog

from fleet.errors import FleetError, Unavailable
from fleet.node.model import RunState
from fleet.node.node_ports import NodePorts
from fleet.node.prepare import Preparer
from fleet.node.run import Run, waiting_for
from fleet.node.runtime import (
    BuildRef,
    EngineUnavailable,
    LaunchFailed,
    LaunchSpec,
    NetworkLost,
    Port,
    PortTaken,
    Readiness,
    RunKey,
    Runtime,
)

log = structlog.get_logger(__name__)
T = TypeVar("T")

_AGAIN_S, _AGAIN_MOST_S = 0.2, 5.0
_PORT_ATTEMPTS = 20
_LACKS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO}


class Told(Protocol):
    """Who is told how far a run has come."""

    def move(self, run: Run, state: RunState) -> None: ...

    def tell(self, run: Run, **facts: Any) -> None: ...

    def end(self, run: Run, state: RunState, *, at: int | None = None, **facts: Any) -> None: ...

    def leave_network(self, run: Run) -> None: ...


class TlsEnd(Protocol):
    """What ends TLS for games (`tls_proxy.py`)."""

    def serves(self, port: int) -> bool: ...

    async def open(self, ports: Iterable[Port]) -> None: ...

    async def adopt(self, needed: bool) -> None: ...

    async def close(self) -> None: ...

    async def end(self) -> None: ...


class Launcher:
    """`tls` is None where nothing ends TLS: such games have no TLS ports, or do not run at all (simulation)."""

    def __init__(
        self,
        runtime: Runtime,
        ports: NodePorts,
        fetch: Callable[[BuildRef], Awaitable[None]],
        told: Told,
        tls: TlsEnd | None,
    ) -> None:
        self._runtime, self._ports, self._fetch, self._told, self._tls = runtime, ports, fetch, told, tls
        self.preparer = Preparer(self._make_ready)

    def reserve(self, key: RunKey, wanted: tuple[Port, ...]) -> tuple[Port, ...]:
        """Host ports for a run that has no warm network."""
        return self._ports.give_all(wanted, str(key))

    async def launch(self, run: Run, spec: LaunchSpec) -> None:
        """To the end, whatever it is: the run then runs, or has failed and its reason is told."""
        try:
            await self._patiently(run, lambda: self.preparer.ensure(spec.build), EngineUnavailable, Unavailable)
            self._told.move(run, RunState.CREATING)
            ports = await self._create(run, spec)
            self._told.move(run, RunState.BOOTING)
            await self.until_ready(run, ports)
        except LaunchFailed as failure:
            self._fail(run, failure.reason, str(failure))
        except FleetError as failure:
            self._fail(run, "STARTUP_FAILURE_DOWNLOAD", failure.detail)
        except asyncio.CancelledError:
            raise
        except Exception as fault:
            log.exception("launch failed", run=str(spec.key))
            self._fail(run, "STARTUP_FAILURE_URL", f"The node failed: {fault!r}")

    async def _make_ready(self, build: BuildRef) -> None:
        await self._fetch(build)
        await self._runtime.prepare(build)

    def _fail(self, run: Run, reason: str, message: str) -> None:
        self._told.end(run, RunState.FAILED, reason=reason, message=message)

    async def _create(self, run: Run, spec: LaunchSpec) -> tuple[Port, ...]:
        for _ in range(_PORT_ATTEMPTS):
            try:
                if self._tls is not None and any(port.tls for port in spec.ports):
                    await self._tls.open(spec.ports)
                await self._patiently(run, lambda spec=spec: self._runtime.launch(spec), EngineUnavailable)
                return spec.ports
            except NetworkLost as lost:
                log.warning("warm network lost", run=str(spec.key), error=str(lost))
                self._told.leave_network(run)
            except PortTaken as taken:
                log.warning("host port taken by something else", run=str(spec.key), error=str(taken))
                for port in taken.ports or spec.ports:
                    self._ports.exclude(port)
                self._ports.release(str(spec.key))
                self._told.leave_network(run)
            spec = replace(spec, network=None, ports=self.reserve(spec.key, spec.ports))
            self._told.tell(run, ports=spec.ports)
        raise LaunchFailed("STARTUP_FAILURE_PORTS", "No free host port could be found on the node.")

    async def until_ready(self, run: Run, ports: tuple[Port, ...]) -> None:
        """The kernel gives no event for a bound socket, so look, often at first, then less."""
        delay = 0.002
        while True:
            seen = await self._look(run, ports)
            if run.view.state.ended:
                return
            if seen.ready and run.said_ready.is_set():
                self._told.move(run, RunState.RUNNING)
                return
            message = waiting_for(seen, said_ready=run.said_ready.is_set())
            if seen.loopback or seen.ready:  # a developer has something to mend, or only its word is missing
                self._told.tell(run, message=message)
            run.view = replace(run.view, message=message)
            if seen.ready:
                await run.said_ready.wait()
                continue
            await asyncio.sleep(delay)
            delay = min(delay * 1.3, 0.25)

    async def _look(self, run: Run, ports: tuple[Port, ...]) -> Readiness:
        """A look that fails is made again: a game that runs is not given up because nobody could see it."""
        delay, failed = _AGAIN_S, False
        while True:
            try:
                return await self._runtime.readiness(ports, run.view.key)
            except Exception as error:
                if not failed:
                    log.warning("boot_not_seen", run=str(run.view.key), error=repr(error))
                failed = True
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, 1.0)

    async def _patiently(self, run: Run, call: Callable[[], Coroutine[Any, Any, T]], *passing: type[Exception]) -> T:
        """Call, and again while it fails of something that passes: engine or store are away, the disk is full. It
        ends when the region, which hears what the run waits for, calls it off."""
        delay = _AGAIN_S
        while True:
            try:
                return await call()
            except Exception as error:
                if not isinstance(error, passing) and not _of_the_machine(error):
                    raise
                log.warning("launch_waits", run=str(run.view.key), error=str(error))
                self._told.tell(run, message=f"The node tries again: {error}")
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, _AGAIN_MOST_S)


def _of_the_machine(error: Exception) -> bool:
    """Whether the machine lacks something for now (room, descriptors, memory), which is no fault of the build."""
    return isinstance(error, OSError) and error.errno in _LACKS
