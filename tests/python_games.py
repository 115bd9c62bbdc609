"""Games in Python, for containers that have none: the interpreter comes with the build, from Debian's packages."""

import sysconfig
from functools import cache
from pathlib import Path

from tests.debian import unpack_debian
from tests.games import EXECUTABLE, Files

_LEFT_OUT = ("/test/", "/idlelib/", "/lib2to3/", "/ensurepip/", "/distutils/", "/turtledemo/", "__pycache__")


@cache
def _interpreter() -> Files:
    root = unpack_debian("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libexpat1", "libffi8")
    library = root / "usr/lib/python3.11"
    files: Files = {"python": ((root / "usr/bin/python3.11").read_bytes(), 0o755)}
    for path in library.rglob("*"):
        name = f"lib/python3.11/{path.relative_to(library)}"
        if path.is_file() and not any(part in name for part in _LEFT_OUT):
            files[name] = (path.read_bytes(), 0o644)
    for path in (root / "usr/lib").glob("*-linux-gnu/lib*.so.*"):
        files[f"so/{path.name}"] = (path.read_bytes(), 0o644)
    for path in (root / "lib").glob("*-linux-gnu/lib*.so.*"):
        files[f"so/{path.name}"] = (path.read_bytes(), 0o644)
    return files


def _package(name: str) -> Files:
    folder = Path(sysconfig.get_paths()["purelib"]) / name
    return {f"lib/{name}/{path.relative_to(folder)}": (path.read_bytes(), 0o644) for path in folder.rglob("*.py")}


def python_game(program: str, *packages: str) -> Files:
    """A build that runs `program`, with pure-Python packages of the developers' environment."""
    start = (
        "#!/bin/sh\n"
        'here=$(cd "$(dirname "$0")" && pwd)\n'
        'export PYTHONHOME="$here" PYTHONPATH="$here/lib" LD_LIBRARY_PATH="$here/so" PYTHONDONTWRITEBYTECODE=1\n'
        'exec "$here/python" -u "$here/game.py" "$@"\n'
    )
    files = {EXECUTABLE: (start.encode(), 0o755), "game.py": (program.encode(), 0o644)}
    for package in packages:
        files |= _package(package)
    return files | _interpreter()


WEBSOCKET_ECHO = """
import asyncio, os
from websockets.asyncio.server import serve

async def player(socket):
    async for message in socket:
        await socket.send(f"echo {message}")

async def main():
    async with serve(player, "0.0.0.0", int(os.environ.get("PLAYFLOW_PORT_WEB", "8080"))):
        print("ready", flush=True)
        await asyncio.Future()

asyncio.run(main())
"""


def websocket_echo() -> Files:
    """Plain WebSockets on its port `web`, as a game that leaves TLS to its platform."""
    return python_game(WEBSOCKET_ECHO, "websockets")
