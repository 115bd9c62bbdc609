"""The floor of a cold start: the bare engine's create + start of the same game until its port is open.

`python -m bench.launch_floor [n]` compares DockerRuntime.launch + readiness with it, with a network of its own and on
one made ahead, one after the other in one run, and prints JSON: medians in ms, their ratio, and the CPU of this
process per launch.
"""

import asyncio
import json
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from fleet.node.base_image import ensure_base_image
from fleet.node.docker import DockerRuntime
from fleet.node.engine import Engine
from fleet.node.health import readiness_of, until_ready
from fleet.node.runtime import BuildRef, LaunchSpec, Port, Readiness, RunKey, RuntimePlace
from tests import games

HOST = "127.0.0.1"
FIRST_PORT = 30000


@dataclass
class Sample:
    """Seconds until the port was open, and CPU seconds of this process meanwhile."""

    wall_s: float
    cpu_s: float


async def bare_engine_launch(n: int, *, first_port: int = FIRST_PORT) -> list[float]:
    """Seconds of `n` bare launches, one after the other. Removes what it started."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = games.make_bundle(Path(folder) / "bundle", games.demo())
        engine = Engine()
        try:
            image = await ensure_base_image(engine, "auto", Path(folder))
            return [(await _bare(engine, image, bundle, first_port + number)).wall_s for number in range(n)]
        finally:
            await engine.close()


async def bare_engine_at_once(n: int, *, first_port: int = FIRST_PORT) -> float:
    """Seconds until the last of `n` bare launches begun together has its port open."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = games.make_bundle(Path(folder) / "bundle", games.demo())
        engine = Engine()
        try:
            image = await ensure_base_image(engine, "auto", Path(folder))
            begun = time.perf_counter()
            ends = await asyncio.gather(
                *(_bare_until_open(engine, image, bundle, first_port + number) for number in range(n))
            )
            return max(ends) - begun
        finally:
            await engine.close()


async def _bare_until_open(engine: Engine, image: str, bundle: Path, port: int) -> float:
    """When the port was open (perf_counter); what was started is removed afterwards."""
    begun = time.perf_counter()
    return begun + (await _bare(engine, image, bundle, port)).wall_s


async def _bare(engine: Engine, image: str, bundle: Path, port: int) -> Sample:
    config = {
        "Image": image,
        "Cmd": ["./Server.x86_64"],
        "WorkingDir": "/game",
        "ExposedPorts": {"7777/udp": {}},
        "HostConfig": {
            "Mounts": [{"Type": "bind", "Source": str(bundle), "Target": "/game", "ReadOnly": True}],
            "PortBindings": {"7777/udp": [{"HostIp": HOST, "HostPort": str(port)}]},
        },
    }
    name = f"fleet-floor-{secrets.token_hex(6)}"

    async def launch() -> None:
        await engine.call("POST", "/containers/create", params={"name": name}, json=config)
        await engine.call("POST", f"/containers/{name}/start")
        details = await engine.call("GET", f"/containers/{name}/json")
        net = Path(f"/proc/{details['State']['Pid']}/net")

        async def probe() -> Readiness:
            return readiness_of(net, (Port("game", 7777, port, "udp"),))

        assert (await until_ready(probe, 60)).ready

    try:
        return await _timed(launch)
    finally:
        await engine.call("DELETE", f"/containers/{name}", params={"v": "1", "force": "1"})


async def _ours(runtime: DockerRuntime, port: int, *, warm: bool = False) -> Sample:
    """A launch until its port is open. `warm`: on a network made before the clock runs, as nodes keep some."""
    key = RunKey(secrets.token_hex(8), 1)
    network = f"fleet-net-bench-{key.instance_id}" if warm else None
    ports = (Port("game", 7777, port, "udp"),)
    spec = LaunchSpec(
        key=key, region="bench", project_id="bench", build=BuildRef("bench", "zip", "bundle"), memory_mb=256, cpus=1,
        dedicated=False, ports=ports, bind_host=HOST, startup_args=None, environment={},
        config={"instance_id": key.instance_id}, labels={}, network=network,
    )  # fmt: skip

    async def launch() -> None:
        await runtime.launch(spec)
        assert (await until_ready(lambda: runtime.readiness(ports, key), 60)).ready

    if network is not None:
        await runtime.networks.make(network, HOST, ports)
        runtime.networks.take(network)
    try:
        return await _timed(launch)
    finally:
        await runtime.stop(key, 0)
        await runtime.remove(key)
        if network is not None:
            await runtime.networks.drop(network)


async def _timed(work: Callable[[], Awaitable[None]]) -> Sample:
    wall, cpu = time.perf_counter(), time.process_time()
    await work()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu)


async def compare(n: int) -> dict[str, float]:
    """All three, alternating so that the machine's moods meet both alike. The first of each does not count."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = games.make_bundle(Path(folder) / "bundles" / "bundle", games.demo())
        place = RuntimePlace(f"bench{secrets.token_hex(4)}", "bench", Path(folder) / "servers", bundle.parent)
        runtime, engine = DockerRuntime(place), Engine()
        await runtime.start()
        image = await ensure_base_image(engine, "auto", Path(folder))
        bare: list[Sample] = []
        ours: list[Sample] = []
        warm: list[Sample] = []
        for port in range(FIRST_PORT, FIRST_PORT + 3 * (n + 1), 3):
            bare.append(await _bare(engine, image, bundle, port))
            ours.append(await _ours(runtime, port + 1))
            warm.append(await _ours(runtime, port + 2, warm=True))
        await runtime.close()
        await engine.close()
    return _summary(bare[1:], ours[1:], warm[1:])


def _summary(bare: list[Sample], ours: list[Sample], warm: list[Sample]) -> dict[str, float]:
    floor = statistics.median(sample.wall_s for sample in bare)
    mine = statistics.median(sample.wall_s for sample in ours)
    ahead = statistics.median(sample.wall_s for sample in warm)
    cpu = statistics.median(sample.cpu_s for sample in ours)
    return {
        "launches": len(ours),
        "bare_engine_ms": round(floor * 1000, 1),
        "docker_runtime_ms": round(mine * 1000, 1),
        "ratio": round(mine / floor, 3),
        "warm_network_ms": round(ahead * 1000, 1),
        "warm_network_ratio": round(ahead / floor, 3),
        "cpu_ms_per_launch": round(cpu * 1000, 2),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(compare(int(sys.argv[1]) if len(sys.argv) > 1 else 20)), indent=2))
