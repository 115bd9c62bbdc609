"""Sockets of our own in a game's network namespace, without a process there: a short-lived thread goes in.

Only root may (CAP_SYS_ADMIN); `can_enter` tells. A socket belongs to the namespace in which it was made, wherever it
is used afterwards.
"""

import ctypes
import os
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000


def in_namespace_of(pid: int, work: Callable[[], T]) -> T:
    """Do quick `work` in the network namespace of a process. OSError: not allowed, or it is gone."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            _enter(f"/proc/{pid}/ns/net")
            done.append(work())
        except BaseException as error:
            failed.append(error)

    # A thread of its own, never one of a pool: it stays in the namespace until it ends.
    thread = threading.Thread(target=run, name="netns", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def _enter(path: str) -> None:
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(namespace)


def can_enter() -> bool:
    try:
        in_namespace_of(os.getpid(), lambda: None)
    except OSError:
        return False
    return True


def listener_in(pid: int, port: int) -> socket.socket:
    """A TCP socket that listens on `127.0.0.1:port` inside. OSError also if something else has that port."""

    def listen() -> socket.socket:
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(("127.0.0.1", port))
            found.listen(16)
            found.setblocking(False)
        except OSError:
            found.close()
            raise
        return found

    return in_namespace_of(pid, listen)
