"""Network sandboxes: tiny containers that hold a network namespace whose ports are published already.

The engine's network set-up is two thirds of a container's start, so it is done ahead and the game joins it
(`NetworkMode: container:<name>`). A sandbox nobody took ends by itself a few minutes after the last sign of life of an
agent: a file that the agent touches. One that a game took lives while its file is there, whatever becomes of the agent;
the agent, or the next one, drops it when the game has ended. Agents remove what has ended, not the engine (AutoRemove):
engines remove such containers when they start, running ones too, and with them the ports of games that live on.
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import orjson

from fleet.actors.single_flight import SingleFlight
from fleet.node.docker_spec import fleet_filter, is_port_taken, port_bindings, port_key, taken_ports
from fleet.node.engine import Engine, EngineError
from fleet.node.runtime import EngineUnavailable, Network, Port, PortTaken, RuntimePlace

ROLE = "fleet.network-sandbox"
HOLD = "/hold"
_SIGN = "alive"
_OVER = ("created", "exited", "dead")
# Alone for more than five minutes, an untaken sandbox ends.
_HOLD_ON = f'while [ -e {HOLD}/"$0" ] || [ -n "$(find {HOLD}/{_SIGN} -mmin -5 2>/dev/null)" ]; do sleep 30; done'


def sandbox_config(
    place: RuntimePlace, image: str, name: str, bind_host: str, ports: tuple[Port, ...], mode: str = "bridge"
) -> dict[str, Any]:
    """Body of the engine's create call. Every wall that a game has, and smaller."""
    told = [port.numbers() for port in ports]
    memory = 16 << 20
    return {
        "Image": image,
        "Entrypoint": [],
        "Cmd": ["/bin/sh", "-c", _HOLD_ON, name],
        "User": "65534:65534",
        "WorkingDir": "/",
        "Labels": {
            **dict(entry.split("=", 1) for entry in fleet_filter(place.fleet_id, place.region)),
            ROLE: name,
            "fleet.bind-host": bind_host,
            "fleet.ports": orjson.dumps(told).decode(),
        },
        "ExposedPorts": {port_key(port): {} for port in ports},
        "HostConfig": {
            "NetworkMode": mode,
            "PortBindings": port_bindings(ports, bind_host),
            "Memory": memory,
            "MemorySwap": memory,
            "NanoCpus": 100_000_000,
            "PidsLimit": 16,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Init": True,
            "ReadonlyRootfs": True,
            "LogConfig": {"Type": "none"},
            "Mounts": [{"Type": "bind", "Source": str(hold_folder(place)), "Target": HOLD, "ReadOnly": True}],
        },
    }


def hold_folder(place: RuntimePlace) -> Path:
    return place.servers_dir / f".networks-{place.region}"


class DockerNetworks:
    """Networks (see `fleet.node.runtime`) of one fleet and region. `image`: any with a shell, present already.
    `mode`: on which network they are."""

    def __init__(self, engine: Engine, place: RuntimePlace) -> None:
        self._engine, self._place = engine, place
        self._folder = hold_folder(place)
        self._making: SingleFlight[str, None] = SingleFlight()
        self.image = ""
        self.mode = "bridge"

    async def make(self, name: str, bind_host: str, ports: tuple[Port, ...]) -> None:
        await self.alive()
        # The engine carries out what it was asked, whether or not the caller waits: so it is seen through, then undone.
        try:
            await self._making.do(name, lambda: self._make(name, bind_host, ports))
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):  # the next agent finds what is left, or it ends by itself
                if name in self._making:
                    await self._making.do(name, lambda: self._make(name, bind_host, ports))
                await self.drop(name)
            raise

    async def _make(self, name: str, bind_host: str, ports: tuple[Port, ...]) -> None:
        config = sandbox_config(self._place, self.image, name, bind_host, ports, self.mode)
        try:
            await self._engine.call("POST", "/containers/create", params={"name": name}, json=config)
            await self._engine.call("POST", f"/containers/{name}/start")
        except EngineError as error:
            await self.drop(name)
            if is_port_taken(error.message):
                raise PortTaken(taken_ports(error.message, ports), error.message) from error
            raise EngineUnavailable(error.message) from error

    def take(self, name: str) -> None:
        (self._folder / name).touch()

    async def drop(self, name: str) -> None:
        try:
            await self._engine.call("DELETE", f"/containers/{name}", params={"v": "1", "force": "1"})
        except EngineError as error:
            if error.status not in (404, 409):  # 409: it is being removed already
                raise EngineUnavailable(error.message) from error
        (self._folder / name).unlink(missing_ok=True)

    def forget_left(self, names: set[str]) -> int:
        """Remove the files of taken networks that are in `names`; how many."""
        for name in names:
            (self._folder / name).unlink(missing_ok=True)
        return len(names)

    def files(self) -> set[str]:
        """Names of networks that were taken."""
        return {path.name for path in self._folder.glob("*")} - {_SIGN}

    async def close(self) -> None:
        await self._making.close()

    async def alive(self) -> None:
        await asyncio.to_thread(self._touch)

    def _touch(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o711)  # a sandbox's user may look at its own file
        (self._folder / _SIGN).touch()

    # Last, since inside the class its name hides the built-in one.
    async def list(self) -> list[Network]:
        filters = {"label": [*fleet_filter(self._place.fleet_id, self._place.region), ROLE]}
        try:
            params = {"all": "1", "filters": orjson.dumps(filters).decode()}
            rows = await self._engine.call("GET", "/containers/json", params=params)
        except EngineError as error:
            raise EngineUnavailable(error.message) from error
        ours = [row for row in rows if row["Names"] == [f"/{row['Labels'][ROLE]}"]]
        for row in ours:  # made by an agent that was killed before it had started it; or it has ended
            if row["State"] in _OVER and row["Labels"][ROLE] not in self._making:
                await self.drop(row["Labels"][ROLE])
        return [self._network(row["Labels"]) for row in ours if row["State"] == "running"]

    def _network(self, labels: dict[str, str]) -> Network:
        ports = tuple(Port("", *fields) for fields in orjson.loads(labels["fleet.ports"]))
        name = labels[ROLE]
        return Network(name, labels["fleet.bind-host"], ports, (self._folder / name).exists())
