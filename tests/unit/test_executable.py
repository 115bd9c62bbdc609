"""Whether a build can start here, and the words for it when it cannot."""

import platform
from pathlib import Path

import pytest

from fleet.node.base_image import split_reference
from fleet.node.docker_spec import taken_ports
from fleet.node.executable import check_executable, split_args
from fleet.node.images import config_folder
from fleet.node.runtime import BuildRef, LaunchFailed, Port

OTHER_CPU = 0xB7 if platform.machine() == "x86_64" else 0x3E


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (None, 0, "not in the build"),
        (b"#!/bin/sh\n", 0o644, "permission denied"),
        (b"MZ\x90\x00", 0o755, "Windows"),
        (b"hello", 0o755, "neither"),
        (b"", 0o755, "neither"),
        (b"\x7fELF" + bytes(14) + OTHER_CPU.to_bytes(2, "little"), 0o755, "exec format"),
    ],
)
def test_what_cannot_start_is_named(tmp_path: Path, content: bytes | None, mode: int, words: str) -> None:
    if content is not None:
        (tmp_path / "Server.x86_64").write_bytes(content)
        (tmp_path / "Server.x86_64").chmod(mode)
    with pytest.raises(LaunchFailed, match=words) as failure:
        check_executable(tmp_path, "Server.x86_64")
    assert failure.value.reason == "STARTUP_FAILURE_EXECUTABLE"


@pytest.mark.parametrize(
    ("text", "args"),
    [
        (None, []),
        ("", []),
        ("-a  -b", ["-a", "-b"]),
        ("-n 'two words'", ["-n", "two words"]),
        ("it's x", ["it's", "x"]),
    ],
)
def test_arguments_split_as_in_a_shell(text: str | None, args: list[str]) -> None:
    assert split_args(text) == args


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Bind for 127.0.0.1:20001 failed: port is already allocated", [20001]),
        ("listen udp4 127.0.0.1:20000: bind: address already in use", [20000]),
        ("address already in use", [20000, 20001]),
    ],
)
def test_the_taken_port_is_read_from_the_engines_words(message: str, expected: list[int]) -> None:
    ports = (Port("a", 1, 20000, "udp"), Port("b", 2, 20001, "udp"))
    assert [port.external for port in taken_ports(message, ports)] == expected


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("game", ("game", "latest")),
        ("game:1", ("game", "1")),
        ("host:5000/game", ("host:5000/game", "latest")),
        ("host:5000/game:2", ("host:5000/game", "2")),
        ("game@sha256:abc", ("game@sha256:abc", "")),
    ],
)
def test_image_references(reference: str, parts: tuple[str, str]) -> None:
    assert split_reference(reference) == parts


@pytest.mark.parametrize(
    ("executable", "working", "folder"),
    [
        ("/srv/game/Server", "/app", "/srv/game"),
        ("bin/Server", "/app", "/app/bin"),
        ("./Server", "/app", "/app"),
        (None, "/app", "/app"),
        (None, "", "/"),
    ],
)
def test_playflow_json_lies_beside_an_images_executable(executable: str | None, working: str, folder: str) -> None:
    build = BuildRef("b", "image", image="x", executable=executable)
    assert config_folder(build, {"WorkingDir": working, "Cmd": ["/elsewhere/run"]}) == folder
