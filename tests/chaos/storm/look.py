"""What the storm sees of a fleet without asking it: its database, its engines, its processes and its games."""

import asyncio
import json
import socket
import time
from collections import Counter
from typing import Any

from sqlalchemy import func
from sqlmodel import col, select

from fleet.store.engine import Store
from fleet.store.lobby_tables import Lobby, Match
from fleet.store.tables import Server, ServerEvent
from tests.chaos.storm.audit import Seen
from tests.chaos.storm.faults import stopped
from tests.chaos.storm.ledger import Ledger
from tests.chaos.storm.world import World

LOOK_S = 20.0  # a look that takes longer has failed
ANSWER_S = 1.5
PROGRAMS = {
    "ray::NodeAgent": "agent",
    "ray::RegionManager": "manager",
    "ray::LobbyKeeper": "lobby manager",
    "ray::ServeReplica": "replica",
    "bin/haproxy": "proxy",
}


async def look(world: World, store: Store, ledger: Ledger) -> Seen:
    seen = Seen(time.monotonic(), {}, [], set(), {}, [], [], {}, {}, Counter())
    seen.containers = await _tried(seen, "engines", asyncio.to_thread(world.containers)) or []
    await _tried(seen, "database", _read(store, ledger, seen))
    _processes(world, seen)
    seen.folders = {
        path.name
        for home in world.homes
        if (home / "servers").is_dir()
        for path in (home / "servers").iterdir()
        if path.is_dir() and not path.name.startswith(".")
    }
    seen.answers = await _ask(seen)
    return seen


async def _tried(seen: Seen, what: str, work: Any) -> Any:
    try:
        async with asyncio.timeout(LOOK_S):
            return await work
    except Exception as error:
        seen.problems.append(f"{what}: {type(error).__name__} {str(error)[:200]}")
        return None


async def _read(store: Store, ledger: Ledger, seen: Seen) -> None:
    async with store.read() as session:
        expected = [one.instance_id for one in ledger.open]
        servers = select(Server).where((col(Server.step) != "stopped") | col(Server.instance_id).in_(expected))
        seen.rows = {row.instance_id: row for row in (await session.exec(servers)).all()}
        seen.lobbies = list((await session.exec(select(Lobby))).all())
        seen.matches = list((await session.exec(select(Match))).all())
        claims = (
            select(col(ServerEvent.instance_id), func.count())
            .where(col(ServerEvent.type) == "claimed")
            .group_by(col(ServerEvent.instance_id))
            .having(func.count() > 1)
        )
        seen.claims = {name: number for name, number in (await session.exec(claims)).all()}
        known = select(Match.match_id)
        per_match = (
            select(col(Server.match_id), func.count())
            .where(col(Server.match_id).in_(known))
            .group_by(col(Server.match_id))
            .having(func.count() > 1)
        )
        seen.per_match = {str(name): number for name, number in (await session.exec(per_match)).all()}


def _processes(world: World, seen: Seen) -> None:
    for pid, command in world.processes().items():
        for word, name in PROGRAMS.items():
            if word in command.split(" -", 1)[0]:
                seen.programs[name] += 1
                if stopped(pid):
                    seen.stopped.append(f"{name} {pid}")
    seen.programs["supervisor"] = int(world.supervisor is not None)
    try:
        socket.create_connection(("127.0.0.1", int(world.env["FLEET_PORT"])), 1).close()
    except OSError:
        seen.listening = False


async def _ask(seen: Seen) -> dict[str, dict[str, Any] | None]:
    """Each running game is asked for its state, all at once and a few times over."""
    targets: dict[tuple[str, int], str] = {}
    for name, row in seen.rows.items():
        ports = [port for port in row.network_ports or () if port["protocol"] == "udp"]
        if row.step == "running" and row.status == "running" and ports:
            targets[ports[0]["host"], ports[0]["external_port"]] = name
    heard: dict[str, dict[str, Any]] = {}
    if targets:
        await asyncio.to_thread(_hear, targets, heard)
    return {name: heard.get(name) for name in targets.values()}


def _hear(targets: dict[tuple[str, int], str], heard: dict[str, dict[str, Any]]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(0.2)
        end = time.monotonic() + ANSWER_S
        while len(heard) < len(targets) and time.monotonic() < end:
            for address, name in targets.items():
                if name not in heard:
                    _quietly(asker.sendto, b"state", address)
            while (got := _quietly(asker.recvfrom, 65536)) is not None:
                answer, address = got
                name = targets.get(address)
                if name is not None and (state := _state(answer)).get("instance_id") == name:
                    heard[name] = state


def _quietly(act: Any, *arguments: Any) -> Any:
    try:
        return act(*arguments)
    except OSError:
        return None


def _state(answer: bytes) -> dict[str, Any]:
    try:
        found = json.loads(answer)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
