"""The container configuration: what isolates a game, and what a restarted agent reads back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.node.docker_spec import Host, ImageFacts, container_config, door_of, key_of, labels_of, ports_of
from fleet.node.runtime import BuildRef, LaunchSpec, Port, RunKey

BASE = ImageFacts("fleet-base:1")
HOST = Host("f1", 2, Path("/home/servers"), Path("/home/bundles"))
ZIP = BuildRef("b1", "zip", "abc", unpacked_bytes=5 << 20)
IMAGE = BuildRef("b2", "image", image="game:1")


def spec(**changes: Any) -> LaunchSpec:
    fields: dict[str, Any] = {
        "key": RunKey("i-1", 2), "region": "us-east", "project_id": "p", "build": ZIP, "memory_mb": 512, "cpus": 1.0,
        "dedicated": False, "ports": (Port("game", 7777, 20000, "udp"),), "bind_host": "127.0.0.1",
        "startup_args": None, "environment": {}, "config": {}, "labels": {},
    }  # fmt: skip
    return LaunchSpec(**(fields | changes))


def test_every_wall_is_up() -> None:
    config = container_config(spec(), BASE, HOST)
    host = config["HostConfig"]
    assert config["User"] == "1000:1000"
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["ReadonlyRootfs"] is True
    assert host["Init"] is True
    assert host["Memory"] == host["MemorySwap"] == 512 << 20
    assert host["PidsLimit"] == 512
    assert host["RestartPolicy"] == {"Name": "no"}
    assert all(mount["ReadOnly"] and mount["Type"] == "bind" for mount in host["Mounts"])
    assert "size=64m" in host["Tmpfs"]["/tmp"]


def test_ports_are_published_on_the_bind_host_only() -> None:
    ports = (Port("game", 7777, 20000, "udp"), Port("query", 7777, 20001, "tcp"))
    bindings = container_config(spec(ports=ports), BASE, HOST)["HostConfig"]["PortBindings"]
    assert bindings == {
        "7777/udp": [{"HostIp": "127.0.0.1", "HostPort": "20000"}],
        "7777/tcp": [{"HostIp": "127.0.0.1", "HostPort": "20001"}],
    }


def test_cpus_are_clamped_to_the_host() -> None:
    assert container_config(spec(cpus=8), BASE, HOST)["HostConfig"]["NanoCpus"] == 2_000_000_000
    assert container_config(spec(cpus=0.5), BASE, HOST)["HostConfig"]["NanoCpus"] == 500_000_000


def test_a_zip_build_starts_in_its_folder_with_its_arguments() -> None:
    build = replace(ZIP, root="Linux/Server", executable="bin/Game.x86_64")
    config = container_config(spec(build=build, startup_args='-name "my room"'), BASE, HOST)
    assert config["WorkingDir"] == "/game/Linux/Server"
    assert config["Cmd"] == ["./bin/Game.x86_64", "-name", "my room"]


def test_a_writable_zip_build_is_copied_into_a_sized_folder() -> None:
    config = container_config(spec(build=replace(ZIP, writable=True)), BASE, HOST)
    assert "size=70m" in config["HostConfig"]["Tmpfs"]["/game"]
    assert {mount["Target"] for mount in config["HostConfig"]["Mounts"]} == {"/playflow", "/bundle"}
    assert config["Cmd"][-2:] == ["/game", "./Server.x86_64"]


def test_an_image_build_keeps_what_it_does_not_override() -> None:
    facts = ImageFacts("fleet-build:b2", ("/entry",), ("serve",), frozenset({"HOME", "PATH"}))
    plain = container_config(spec(build=IMAGE), facts, HOST)
    assert not {"Entrypoint", "Cmd", "User", "WorkingDir"} & set(plain)
    assert not any(entry.startswith("HOME=") for entry in plain["Env"])
    with_args = container_config(spec(build=IMAGE, startup_args="--x 1"), facts, HOST)
    assert (with_args["Entrypoint"], with_args["Cmd"]) == (["/entry"], ["serve", "--x", "1"])
    other = container_config(spec(build=replace(IMAGE, executable="/srv/game"), startup_args="-a"), facts, HOST)
    assert (other["Entrypoint"], other["Cmd"]) == (["/srv/game"], ["-a"])


def test_the_callers_environment_wins() -> None:
    env = container_config(spec(environment={"HOME": "/x", "A": "b=c"}), BASE, HOST)["Env"]
    url = "http+unix://%2Fplayflow%2Fagent.sock"
    assert sorted(env) == [
        "A=b=c",
        "HOME=/x",
        f"PLAYFLOW_AGENT_URL={url}",
        "PLAYFLOW_CONFIG=/playflow/playflow.json",
        f"PLAYFLOW_CONFIG_URL={url}/config",
    ]


@given(st.lists(st.integers(1, 65535), max_size=6), st.integers(1, 65000))
def test_the_door_is_never_on_a_port_of_the_game(declared: list[int], first: int) -> None:
    ports = tuple(Port(str(n), number, 20000 + n, "tcp") for n, number in enumerate(declared))
    door = door_of(spec(ports=ports), first)
    assert int(door) not in declared
    assert first <= int(door) <= first + len(declared)
    config = container_config(spec(ports=ports), BASE, replace(HOST, door_port=first))
    assert f"PLAYFLOW_CONFIG_URL=http://127.0.0.1:{door}/config" in config["Env"]
    assert config["Labels"]["fleet.door"] == door


def test_a_game_whose_tls_the_node_ends_is_published_on_the_loopback_alone() -> None:
    ports = (Port("web", 8080, 20500, "tcp", True, 20600), Port("game", 7777, 20000, "udp"))
    bindings = container_config(spec(ports=ports, bind_host="0.0.0.0"), BASE, HOST)["HostConfig"]["PortBindings"]
    assert bindings == {
        "8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "20600"}],
        "7777/udp": [{"HostIp": "0.0.0.0", "HostPort": "20000"}],
    }


def test_a_game_on_a_warm_network_publishes_nothing_itself() -> None:
    config = container_config(spec(network="fleet-net-1"), BASE, HOST)
    assert config["HostConfig"]["NetworkMode"] == "container:fleet-net-1"
    assert config["ExposedPorts"] == {}
    assert "PortBindings" not in config["HostConfig"]
    assert config["Labels"]["fleet.network"] == "fleet-net-1"


@given(
    names=st.lists(st.text(min_size=1, max_size=20), max_size=5),
    generation=st.integers(1, 10**6),
    protocol=st.sampled_from(["udp", "tcp"]),
    tls=st.booleans(),
)
def test_labels_tell_the_run_again(names: list[str], generation: int, protocol: Any, tls: bool) -> None:
    plain = 20100 if tls else 0
    ports = tuple(Port(name, 7000 + n, 20000 + n, protocol, tls, plain and plain + n) for n, name in enumerate(names))
    launched = spec(key=RunKey("i-1", generation), ports=ports, labels={"fleet.id": "forged", "own": "1"})
    labels = labels_of(launched, "f1")
    assert key_of(labels, f"/fleet-f1-i-1-{generation}", "f1") == launched.key
    assert ports_of(labels) == ports
    assert (labels["fleet.id"], labels["own"]) == ("f1", "1")


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ({}, "fleet-f1-i-1-2"),
        ({"fleet.server": "i-1"}, "fleet-f1-i-1-2"),
        ({"fleet.server": "i-1", "fleet.generation": "x"}, "fleet-f1-i-1-2"),
        ({"fleet.server": "i-1", "fleet.generation": "2"}, "busy_darwin"),
        ({"fleet.server": "i-1", "fleet.generation": "2"}, "fleet-f2-i-1-2"),
    ],
)
def test_a_container_with_borrowed_labels_is_not_ours(labels: dict[str, str], name: str) -> None:
    assert key_of(labels, name, "f1") is None


def test_arguments_may_name_the_port_to_bind() -> None:
    config = container_config(spec(startup_args="-p {port:game} {port:other}"), BASE, HOST)
    assert config["Cmd"][1:] == ["-p", "7777", "{port:other}"]
