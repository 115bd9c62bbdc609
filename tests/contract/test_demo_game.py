"""The demo game's WebSocket, which is its own code, against a well-kept client and against bad ones."""

import socket
import subprocess
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from fleet.ops.home import free_ports
from tests.games import DEMO, EXECUTABLE
from tests.waiting import eventually


@pytest.fixture
def port() -> Iterator[int]:
    """Of a demo game that listens for browsers."""
    udp, web = free_ports(2)
    command = [str(DEMO / EXECUTABLE), "--port", str(udp), "--web", str(web)]
    with subprocess.Popen(command, cwd=DEMO, stdout=subprocess.DEVNULL) as game:
        eventually(lambda: listens(web), 20, "the game listens")
        yield web
        assert game.poll() is None, "nothing that came has ended it"
        game.terminate()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def browser(port: int) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{port}/", proxy=None)


def test_each_message_is_answered_in_order_whatever_its_length(port: int) -> None:
    with browser(port) as player:
        words = [f"ping {'x' * size}" for size in (0, 1, 100, 119, 120, 121, 500, 2000)]
        for word in words:
            player.send(word)
        assert [player.recv(10) for _ in words] == [word.replace("ping", "pong local") for word in words]
        assert player.ping().wait(10)
        player.send("join Zoë 🎮")
        assert player.recv(10) == "welcome Zoë 🎮 Zoë 🎮"


BAD = [
    b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"x" * 20_000,
    b"GET / HTTP/1.1\r\nSec-WebSocket-Key: eA==\r\n\r\n\x81\x01x",  # not masked
    b"GET / HTTP/1.1\r\nSec-WebSocket-Key: eA==\r\n\r\n\x81\xff" + b"\xff" * 12,  # longer than memory
    b"GET / HTTP/1.1\r\nSec-WebSocket-Key: eA==\r\n\r\n\x01\x81aaaax",  # a message in pieces
]


@pytest.mark.parametrize("bad", BAD)
def test_who_speaks_something_else_is_cut_off_and_others_play_on(port: int, bad: bytes) -> None:
    with browser(port) as player:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
            stranger.sendall(bad)
            try:
                while stranger.recv(4096):
                    pass
            except ConnectionResetError:
                pass
        player.send("ping 1")
        assert player.recv(10) == "pong local 1"


def test_a_message_over_2048_bytes_ends_its_connection_alone(port: int) -> None:
    with browser(port) as player, browser(port) as other:
        player.send("x" * 2049)
        with pytest.raises(ConnectionClosed):
            player.recv(10)
        other.send("ping 2")
        assert other.recv(10) == "pong local 2"
