"""Real open-source game servers from Debian's packages, uploaded and started through the public API."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import games
from tests.player import Studio, stopped_after

pytestmark = [pytest.mark.fleet, pytest.mark.docker]


def port_of(server: dict[str, Any], name: str) -> int:
    return next(p["external_port"] for p in server["network_ports"] if p["name"] == name)


def test_teeworlds_answers_players_through_the_published_port(studio: Studio) -> None:
    build = studio.push(games.make_zip(games.teeworlds()), "teeworlds")
    assert build["status"] == "ready", build
    server = studio.start(
        "teeworlds",
        startup_args='"sv_port 8303" "sv_register 0" "sv_name Fleet test"',
        port_configs=[{"name": "game", "internal_port": 8303, "protocol": "udp"}],
    )
    with stopped_after(studio, server):
        assert games.teeworlds_name("127.0.0.1", port_of(server, "game")) == "Fleet test"


def test_cube2_answers_on_its_second_port_too(studio: Studio) -> None:
    build = studio.push(games.make_zip(games.cube2()), "cube2")
    assert build["status"] == "ready", build
    server = studio.start(
        "cube2",
        startup_args="-j28785 -nFleetTest -mlocalhost",
        environment_variables={"LD_LIBRARY_PATH": "."},
        port_configs=[
            {"name": "game", "internal_port": 28785, "protocol": "udp"},
            {"name": "info", "internal_port": 28786, "protocol": "udp"},
        ],
    )
    with stopped_after(studio, server):
        assert games.cube2_name("127.0.0.1", port_of(server, "info")) == "FleetTest"


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def teeworlds_image(studio: Studio, tmp_path: Path) -> Iterator[str]:
    """A local image, as a studio would have it in its registry: the fleet's base image with the game inside."""
    base = docker("images", "fleet-base", "--format", "{{.Repository}}:{{.Tag}}").split()[0]
    tag = "fleet-test-teeworlds:1"
    for path, (content, mode) in games.teeworlds().items():
        file = tmp_path / "game" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)
    container = docker("create", base, "/game/Server.x86_64")
    try:
        docker("cp", f"{tmp_path}/game/.", f"{container}:/game")
        docker("commit", "-c", 'ENTRYPOINT ["/game/Server.x86_64"]', "-c", "WORKDIR /game", container, tag)
    finally:
        docker("rm", container)
    yield tag
    docker("rmi", "--force", tag)


def test_teeworlds_as_a_container_image(studio: Studio, teeworlds_image: str) -> None:
    body = {"image_url": teeworlds_image, "name": "teeworlds-image"}
    accepted = studio.call("POST", "/builds/docker-image", json=body)
    build = studio.processed(accepted["build_id"])
    assert build["status"] == "ready", build
    server = studio.start(
        "teeworlds-image",
        startup_args='"sv_port 8303" "sv_register 0" "sv_name From an image"',
        port_configs=[{"name": "game", "internal_port": 8303, "protocol": "udp"}],
    )
    with stopped_after(studio, server):
        assert games.teeworlds_name("127.0.0.1", port_of(server, "game")) == "From an image"
