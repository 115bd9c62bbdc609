"""Finds the server's executable in an unpacked build, and says clearly why it could not run here."""

import platform
import struct
from pathlib import Path, PurePosixPath

from fleet.builds.archive import ArchiveError

DEFAULT_EXECUTABLE = "Server.x86_64"
_MACHINES = {62: "x86_64", 183: "aarch64"}
_MAX_WRAPPERS = 4
_MAX_SHOWN = 5
# What file managers leave beside the one folder that holds everything.
_STRAYS = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"})


def find_executable(tree: Path, wanted: str | None) -> tuple[str, str]:
    """(root, executable): the game's folder inside the tree ("" = the top), and the file relative to it.

    A ZIP that wraps everything in one folder is as good as one that does not.
    """
    path = PurePosixPath(wanted or DEFAULT_EXECUTABLE)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ArchiveError(f"executable_path '{path}' must be relative to the build's folder, without '..'.")
    root = tree
    for _ in range(_MAX_WRAPPERS):
        found = root / path
        if found.is_file() and found.resolve().is_relative_to(tree.resolve()):
            _check_runs_here(found, str(path))
            inside = root.relative_to(tree)
            return "" if inside == Path() else str(inside), str(path)
        inner = [entry for entry in root.iterdir() if not _is_stray(entry.name)]
        if len(inner) != 1 or not inner[0].is_dir() or inner[0].is_symlink():
            break
        root = inner[0]
    raise ArchiveError(_missing(tree, path))


def _is_stray(name: str) -> bool:
    return name in _STRAYS or name.startswith("._")


def _missing(tree: Path, path: PurePosixPath) -> str:
    programs = [str(f.relative_to(tree)) for f in sorted(tree.rglob("*")) if f.is_file() and _is_program(f)]
    hint = "No Linux program is in the ZIP: make a Linux dedicated-server build."
    if programs:
        hint = f"Programs in the ZIP: {', '.join(programs[:_MAX_SHOWN])}. Pass one of them as executable_path."
    return f"The executable '{path}' is not in the ZIP. {hint}"


def _is_program(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.read(18)
    if head[:2] == b"#!":
        return True
    runs = head[:4] == b"\x7fELF" and head[16:18] in (b"\x02\x00", b"\x03\x00")
    return runs and ".so" not in file.suffixes


def _check_runs_here(file: Path, name: str) -> None:
    with file.open("rb") as opened:
        head = opened.read(20)
    if head[:2] == b"#!":
        return
    if head[:2] == b"MZ":
        raise ArchiveError(f"'{name}' is a Windows program. Make a Linux dedicated-server build.")
    if head[:4] in (b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"\xce\xfa\xed\xfe"):
        raise ArchiveError(f"'{name}' is a macOS program. Make a Linux dedicated-server build.")
    if head[:4] != b"\x7fELF" or len(head) < 20:
        raise ArchiveError(f"'{name}' is neither a Linux program (ELF) nor a script that starts with '#!'.")
    machine = _MACHINES.get(struct.unpack("<H" if head[5] == 1 else ">H", head[18:20])[0], "another processor")
    if machine != platform.machine():
        raise ArchiveError(f"'{name}' is made for {machine}, these machines are {platform.machine()}.")
