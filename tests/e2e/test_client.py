"""The Python client on the real fleet: upload, start, wait, logs, stop, by both clients; and the page's example."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fleet.client import AsyncFleetClient, FleetClient
from tests import games
from tests.conftest import ROOT, RunningFleet

pytestmark = [pytest.mark.fleet]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "game.zip"
    path.write_bytes(games.demo_zip())
    return path


def test_a_server_from_upload_to_stop(fleet: RunningFleet, archive: Path) -> None:
    with FleetClient(fleet.url, fleet.server_key) as client:
        build = client.builds.upload(archive, name="by-client")
        assert client.builds.wait_ready(build.build_id).status == "ready"
        server = client.servers.start(name="by-client", region="us-east", version_tag="by-client")
        server = client.servers.wait(server.instance_id)
        assert server.network_ports[0].external_port
        first = next(client.servers.follow_logs(server.instance_id))
        assert first.instance == server.instance_id
        client.servers.stop(server.instance_id)
        assert client.servers.wait(server.instance_id, "stopped").stopped_at
        assert first.message in [line.message for line in client.servers.all_logs(server.instance_id)]


async def test_the_same_for_asyncio_heard_as_events(fleet: RunningFleet, archive: Path) -> None:
    async with AsyncFleetClient(fleet.url, fleet.server_key) as client:
        build = await client.builds.upload(archive, name="by-async")
        await client.builds.wait_ready(build.build_id)
        begun, heard = asyncio.Event(), []

        async def listen() -> None:
            async for event in client.events.follow(after="0-0.0-0", only=["server"]):
                heard.append(event)
                begun.set()

        listening = asyncio.create_task(listen())
        server = await client.servers.start(name="by-async", region="us-east", version_tag="by-async", wait_running=60)
        server = await client.servers.wait(server.instance_id)
        lines = client.servers.follow_logs(server.instance_id)
        assert (await anext(lines)).instance == server.instance_id
        await client.servers.stop(server.instance_id)
        rest = [line async for line in lines]  # it ends with the run
        assert {line.instance for line in rest} <= {server.instance_id}
        await client.servers.wait(server.instance_id, "stopped")
        async with asyncio.timeout(60):
            while not any((one.subject, one.type) == (server.instance_id, "server.stopped") for one in heard):
                begun.clear()
                await begun.wait()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


def test_the_pages_example_works(fleet: RunningFleet) -> None:
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), re.DOTALL)
    assert found is not None
    env = os.environ | {"FLEET_URL": fleet.url, "FLEET_API_KEY": fleet.server_key}
    done = subprocess.run(
        [sys.executable, "-c", found[1]], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"players connect to \S+:\d+", done.stdout)


def test_the_command_line_stands_on_the_client(fleet: RunningFleet, archive: Path) -> None:
    def fleet_says(*arguments: str) -> str:
        done = fleet.command(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "is ready" in fleet_says("builds", "push", str(archive), "--name", "by-hand", "--ready-by", "ports")
    assert "by-hand" in fleet_says("builds", "list", "--name", "by-hand")
    instance_id, status = fleet_says("start", "by-hand", "--build", "by-hand").split()[:2]
    assert status == "running"
    assert instance_id in fleet_says("servers")
    assert fleet_says("logs", instance_id[:12])
    fleet_says("pools")
    assert "stopped" in fleet_says("stop", instance_id[:12])
    refused = fleet.command("start", "x", "--region", "atlantis")
    assert refused.returncode == 1
    assert "atlantis" in refused.stderr
    assert "Traceback" not in refused.stderr
