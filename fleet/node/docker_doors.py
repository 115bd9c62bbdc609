"""How a game in a container reaches its node: a socket that the agent has opened inside the game's own network.

No packet leaves the container, no process of ours runs there, and no other container can reach it. Where the agent
may not enter network namespaces (it is not root), the door is a Unix socket in the run's folder instead.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import structlog

from fleet.node.docker_spec import SOCKET, UNIX
from fleet.node.game_api import GameApi
from fleet.node.netns import listener_in
from fleet.node.runtime import RunKey

log = structlog.get_logger(__name__)


async def open_door(api: GameApi, key: RunKey, door: str, pid: int, folder: Path) -> None:
    """`pid`: a process in the game's network. A door that cannot be opened is logged: the game runs without."""

    async def bind(factory: Callable[[], asyncio.Protocol]) -> asyncio.Server:
        made = _unix_listener(folder) if door == UNIX else listener_in(pid, int(door))
        return await asyncio.get_running_loop().create_server(factory, sock=made)

    try:
        await api.listen(key, folder, bind)
    except OSError as error:
        log.warning("game_api_not_open", run=str(key), door=door, error=str(error))


def _unix_listener(folder: Path) -> socket.socket:
    """Bound through the folder's descriptor, since a socket's path may be 107 bytes long and ours are longer."""
    (folder / SOCKET).unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        made.bind(f"/proc/self/fd/{directory}/{SOCKET}")
        (folder / SOCKET).chmod(0o666)  # the game runs as another user
        made.listen(16)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    finally:
        os.close(directory)
    return made
