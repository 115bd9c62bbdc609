"""The port allocator: one holder per number, whatever happens in whatever order."""

import socket

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from fleet.errors import Unavailable
from fleet.node.ports import PortAllocator, is_free

FIRST, LAST = 20000, 20006
HOLDERS = st.sampled_from("abcd")


class Allocator(RuleBasedStateMachine):
    """Against a plain model: who holds what, what strangers took, what is excluded until when."""

    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.strangers: set[int] = set()
        self.model: dict[int, str] = {}
        self.excluded: dict[int, float] = {}
        self.ports = PortAllocator(
            FIRST, LAST, "h", reserved=(20001,), free=lambda _, port: port not in self.strangers, clock=lambda: self.now
        )

    def available(self) -> set[int]:
        barred = {port for port, until in self.excluded.items() if self.now < until}
        return set(range(FIRST, LAST)) - set(self.model) - self.strangers - barred - {20001}

    @rule(holder=HOLDERS)
    def take(self, holder: str) -> None:
        available = self.available()
        if not available:
            with pytest.raises(Unavailable):
                self.ports.take(holder)
            return
        port = self.ports.take(holder)
        assert port in available
        self.model[port] = holder

    @rule(holder=HOLDERS)
    def release(self, holder: str) -> None:
        self.ports.release(holder)
        self.model = {port: owner for port, owner in self.model.items() if owner != holder}

    @rule(holder=HOLDERS, port=st.integers(FIRST - 1, LAST))
    def adopt(self, holder: str, port: int) -> None:
        self.ports.adopt(port, holder)
        self.model.setdefault(port, holder)

    @rule(port=st.integers(FIRST, LAST - 1), seconds=st.floats(0, 100))
    def exclude(self, port: int, seconds: float) -> None:
        self.ports.exclude(port, seconds)
        self.excluded[port] = self.now + seconds

    @rule(port=st.integers(FIRST, LAST - 1))
    def stranger_comes_or_goes(self, port: int) -> None:
        self.strangers ^= {port}

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def agrees_with_the_model(self) -> None:
        for holder in "abcd":
            assert set(self.ports.held_by(holder)) == {port for port, owner in self.model.items() if owner == holder}


TestAllocator = Allocator.TestCase


def test_a_port_given_back_rests_while_others_are_free() -> None:
    ports = PortAllocator(FIRST, LAST, "h", free=lambda *_: True)
    first = ports.take("a")
    ports.release("a")
    assert [ports.take("b") for _ in range(5)] == [20001, 20002, 20003, 20004, 20005]
    assert ports.take("b") == first


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_what_another_process_holds_is_not_free(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            other.listen()
        port = other.getsockname()[1]
        assert not is_free("127.0.0.1", port)
    assert is_free("127.0.0.1", port)


def test_a_range_must_be_one() -> None:
    with pytest.raises(ValueError, match="not a range"):
        PortAllocator(20000, 20000, "h")
