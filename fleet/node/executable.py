"""What a build starts, and whether this machine can start it: told before the launch, in a developer's words."""

import platform
import shlex
from collections.abc import Mapping
from pathlib import Path

from fleet.node.runtime import BuildRef, LaunchFailed

DEFAULT_EXECUTABLE = "Server.x86_64"
_MACHINES = {0x03: "x86", 0x3E: "x86_64", 0x28: "arm", 0xB7: "aarch64", 0xF3: "riscv64"}


def split_args(startup_args: str | None) -> list[str]:
    """Arguments as a shell would split them; with unbalanced quotes, at whitespace."""
    if not startup_args:
        return []
    try:
        return shlex.split(startup_args)
    except ValueError:
        return startup_args.split()


def game_arguments(startup_args: str | None, ports: Mapping[str, int]) -> list[str]:
    """The split arguments, `{port:<name>}` in them replaced by the port that the game must bind."""
    arguments = split_args(startup_args)
    for name, number in ports.items():
        arguments = [argument.replace(f"{{port:{name}}}", str(number)) for argument in arguments]
    return arguments


def executable_of(build: BuildRef) -> str:
    """Path of a ZIP build's executable inside the game's folder."""
    return build.executable or DEFAULT_EXECUTABLE


def bundle_folder(bundles: Path, build: BuildRef) -> Path:
    """The unpacked archive on this node; LaunchFailed if it is not there."""
    folder = bundles / (build.content_hash or "none")
    if not build.content_hash or not folder.is_dir():
        raise LaunchFailed("STARTUP_FAILURE_DOWNLOAD", f"Build {build.build_id} is not unpacked on this node.")
    return folder


def check_executable(game_folder: Path, name: str) -> Path:
    """The executable's path, if this machine can run it; LaunchFailed says what is wrong with it."""
    path = game_folder / name
    if not path.is_file():
        raise _unfit(f"'{name}' is not in the build. Set executable_path to your server's executable.")
    if not path.stat().st_mode & 0o111:
        raise _unfit(f"'{name}' is not executable (permission denied). Upload the build again.")
    with path.open("rb") as file:
        head = file.read(20)
    if head[:4] == b"\x7fELF":
        _check_machine(name, head)
    elif head[:2] == b"MZ":
        raise _unfit(f"'{name}' is a Windows program. Export a Linux dedicated server.")
    elif head[:2] != b"#!":
        raise _unfit(f"'{name}' is neither a Linux program (ELF) nor a script with a #! line.")
    return path


def _check_machine(name: str, head: bytes) -> None:
    built_for = _MACHINES.get(int.from_bytes(head[18:20], "little"), "another CPU")
    here = platform.machine()
    if built_for != here and (built_for, here) != ("x86", "x86_64"):
        raise _unfit(f"'{name}' was built for {built_for}, but servers run on {here} (exec format error).")


def _unfit(message: str) -> LaunchFailed:
    return LaunchFailed("STARTUP_FAILURE_EXECUTABLE", message)
