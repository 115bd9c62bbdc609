"""Plain-process games outlive whatever is above them: the agent, its raylet, their sessions and process groups."""

import asyncio
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

from fleet.node.process import ProcessRuntime
from tests import games
from tests.contract.runtime_stage import Stage, ask

ROOT = Path(__file__).parents[2]
AGENT = """
import asyncio, pickle, sys
from fleet.node.process import ProcessRuntime
place, spec = pickle.load(open(sys.argv[1], "rb"))
async def main():
    runtime = ProcessRuntime(place)
    await runtime.start()
    await runtime.launch(spec)
    print("launched", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
# As Ray's raylet does it: its workers are its children, in its session, and it reaps what they leave.
RAYLET = """
import ctypes, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], stdout=subprocess.PIPE)
while line := child.stdout.readline():
    print(line.decode().strip(), child.pid, flush=True)
"""


def launched_by_an_agent(described: Path) -> tuple[subprocess.Popen[str], int]:
    """The raylet, and its agent's pid, once the game has been launched."""
    command = [sys.executable, "-c", RAYLET, AGENT, str(described)]
    raylet = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert raylet.stdout is not None
    line = next(line for line in raylet.stdout if line.startswith("launched"))
    return raylet, int(line.split()[1])


async def test_a_game_outlives_agent_and_raylet(tmp_path: Path) -> None:
    stage = Stage("process", tmp_path / "s", None)  # type: ignore[arg-type]
    spec = stage.spec(stage.build(games.demo()))
    described = tmp_path / "spec"
    described.write_bytes(pickle.dumps((stage.place(), spec)))
    raylet, agent = await asyncio.to_thread(launched_by_an_agent, described)
    stage.runtime = ProcessRuntime(stage.place())
    await stage.ready(spec)
    os.kill(agent, signal.SIGKILL)
    os.killpg(raylet.pid, signal.SIGKILL)
    await asyncio.to_thread(raylet.wait)
    assert raylet.stdout is not None
    raylet.stdout.close()
    assert (await asyncio.to_thread(ask, spec, "ping 1")).startswith("pong")
    await stage.open()
    (seen,) = await stage.runtime.list()
    assert seen.running
    assert seen.key == spec.key
    await stage.clear()
    await stage.die()
