"""Which bridge game containers are on, and that its walls (`firewall.py`) stand, now and after somebody changed them.

An engine that a fleet started (it bears the label `fleet.engine`) has a default bridge for games alone. On another
engine the games get a bridge of their own, since rules on the default one would concern other people's containers; the
engine then starts a resolver for each network namespace, which costs a launch about 0.15 s (none with warm networks).
"""

import asyncio
import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from fleet.actors.tasks import SupervisedTasks
from fleet.errors import Unavailable
from fleet.node.as_root import NotAllowed, may_be_root, missing_tools, run
from fleet.node.engine import Engine, EngineError
from fleet.node.file_lock import held
from fleet.node.firewall import (
    Walls,
    missing,
    removal_text,
    resolvers_of,
    restore_text,
    rules_of,
)

log = structlog.get_logger(__name__)

ENGINE_LABEL = "fleet.engine=1"
CHECK_S = 30.0
_TIMEOUT_S = 20.0
_LOCK_S = 60.0  # while other agents put theirs up
_TRIES = 3  # to change rules that other fleets may change at the same time
_LOOK_LIMIT_S = _LOCK_S + (2 * _TRIES + 3) * _TIMEOUT_S
_NF_CALL = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


class NoWalls(Exception):
    """The walls cannot be put up; says why."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """`mode`: what a container's NetworkMode must be. `name`: the host's interface."""

    mode: str
    name: str


class Isolation:
    """Of one agent's containers. Several agents and fleets of a machine do the same beside each other."""

    def __init__(
        self, engine: Engine, fleet_id: str, api_ports: tuple[int, ...], reach: tuple[str, ...], lock: Path
    ) -> None:
        self._engine, self._fleet_id, self._api_ports = engine, fleet_id, api_ports
        self._reach, self._lock = reach, lock
        self._walls: Walls | None = None
        self._tasks = SupervisedTasks("isolation")
        self.problem = ""

    async def open(self, info: dict[str, Any]) -> str:
        """Put the walls up; the NetworkMode for containers. `problem` says what is wrong, if anything is."""
        bridge = await self._bridge(info)
        resolvers = await asyncio.to_thread(_resolvers)
        self._walls = Walls(bridge.name, self._fleet_id, self._api_ports, resolvers, self._reach)
        await self._look()
        self._tasks.every("walls", self._look, CHECK_S, limit_s=_LOOK_LIMIT_S)
        return bridge.mode

    async def close(self) -> None:
        await self._tasks.close()

    async def _bridge(self, info: dict[str, Any]) -> Bridge:
        if ENGINE_LABEL in (info.get("Labels") or ()):
            return Bridge("bridge", _bridge_name(await self._engine.call("GET", "/networks/bridge")))
        name = network_name(self._fleet_id)
        with contextlib.suppress(EngineError):
            return Bridge(name, _bridge_name(await self._engine.call("GET", f"/networks/{name}")))
        try:
            await self._engine.call("POST", "/networks/create", json=network_config(self._fleet_id))
        except EngineError as error:
            if error.status != 409:  # another agent was faster
                log.error("no_own_bridge", error=error.message)
                return Bridge("bridge", _bridge_name(await self._engine.call("GET", "/networks/bridge")))
        return Bridge(name, own_bridge(self._fleet_id))

    async def _look(self) -> None:
        walls = self._walls
        assert walls is not None
        before, self.problem = self.problem, ""
        try:
            changed = await asyncio.to_thread(_put_up, walls, self._lock)
        except (NoWalls, Unavailable, OSError, subprocess.TimeoutExpired) as error:
            self.problem = f"games are not walled off from this machine and private networks: {error}"
            if self.problem != before:
                log.error("isolation_not_in_force", bridge=walls.bridge, reason=str(error))
            return
        if changed:
            log.info("isolation_in_force", bridge=walls.bridge, mended=changed)


def _resolvers() -> tuple[str, ...]:
    try:
        return resolvers_of(Path("/etc/resolv.conf").read_text())
    except OSError:
        return ()


def own_bridge(fleet_id: str) -> str:
    """Name of the interface (at most 15 characters)."""
    return f"fl-{fleet_id}"[:15]


def network_name(fleet_id: str) -> str:
    return f"fleet-{fleet_id}"


def network_config(fleet_id: str) -> dict[str, Any]:
    """A bridge of our own on an engine that is not."""
    return {
        "Name": network_name(fleet_id),
        "Driver": "bridge",
        "CheckDuplicate": True,
        "EnableIPv6": False,
        "Labels": {"fleet.id": fleet_id},
        "Options": {
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.bridge.enable_ip_masquerade": "true",
            "com.docker.network.bridge.name": own_bridge(fleet_id),
        },
    }


def take_down(fleet_id: str, lock: Path) -> None:
    """Remove a fleet's rules, and those of bridges that no other fleet uses."""
    if missing_tools(("iptables-save",)) or not may_be_root():
        return
    try:
        with held(lock, _LOCK_S):
            _remove(fleet_id)
    except (NoWalls, Unavailable, OSError, subprocess.TimeoutExpired) as error:
        log.error("rules_not_removed", error=str(error))


def _remove(fleet_id: str) -> None:
    for tries_left in reversed(range(_TRIES)):
        text = removal_text(_saved(), fleet_id)
        if not text:
            return
        try:
            _restore(text)
        except NoWalls:  # another fleet changed them meanwhile
            if not tries_left:
                raise


def _put_up(walls: Walls, lock: Path) -> list[str]:
    """What was not as it must be, and is now."""
    if not may_be_root():
        raise NoWalls("the agent is neither root nor may it use sudo without a password")
    if missing_tools(("iptables-save", "iptables-restore")):
        raise NoWalls("iptables is not installed")
    if _NF_CALL.exists() and _NF_CALL.read_text().strip() != "1":
        _run(["sysctl", "-q", "-w", "net.bridge.bridge-nf-call-iptables=1"])  # else games meet below the filter
    with held(lock, _LOCK_S):
        return _mend(walls)


def _mend(walls: Walls) -> list[str]:
    """Other fleets have locks of their own, so what was read may have changed since: then it is read again."""
    mended: list[str] = []
    problem = ""
    for _ in range(_TRIES):
        saved = _saved()
        if walls.outer not in rules_of(saved):
            raise NoWalls(f"the engine has no chain {walls.outer}")
        wrong = missing(saved, walls)
        if not wrong:
            return mended
        mended, problem = mended or wrong, "; ".join(wrong)
        try:
            _restore(restore_text(saved, walls))
        except NoWalls as error:
            problem = str(error)
    if missing(_saved(), walls):
        raise NoWalls(problem)
    return mended


def _saved() -> str:
    return _run(["iptables-save", "-t", "filter"])


def _restore(text: str) -> None:
    _run(["iptables-restore", "-w", "5", "--noflush"], text)


def _run(command: list[str], text: str = "") -> str:
    try:
        return run(command, text, _TIMEOUT_S)
    except NotAllowed as error:
        raise NoWalls(f"{command[0]}: {error}") from error


def _bridge_name(network: dict[str, Any]) -> str:
    return str(network["Options"].get("com.docker.network.bridge.name", f"br-{network['Id'][:12]}"))
