"""Ending a listener without forgetting whom it has just let in."""

import asyncio

_ACCEPT_TURNS = 4  # of the loop: the task of an accepted socket, its protocol, its reader, and one to spare


async def stop_accepting(listener: asyncio.Server) -> None:
    """Close it when whoever it has accepted is a connection of its server: asyncio forgets, and never closes, those who
    are on the way from one to the other when it is closed."""
    loop = asyncio.get_running_loop()
    for accepting in listener.sockets:
        loop.remove_reader(accepting.fileno())
    for _ in range(_ACCEPT_TURNS):
        await asyncio.sleep(0)
    listener.close()
