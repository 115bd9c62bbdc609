"""Host ports with TLS: pairs that never meet others, and a proxy configuration that leads each to its partner."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import Unavailable
from fleet.node.model import NodeShare
from fleet.node.node_ports import NodePorts, tls_range
from fleet.node.runtime import Port
from fleet.node.tls_config import ports_in, proxy_config, spans_of
from fleet.region.nodes_config import PortRange
from fleet.region.placement import Demand, Room, place
from fleet.region.queue import no_room

SHARE = NodeShare(4096, 4.0, 20_000, 20_020, "0.0.0.0", "games.example", tls_ports=4)
PLAIN, TLS = Port("game", 7777, 0, "udp"), Port("web", 8080, 0, "tcp", True)


def ports_of(share: NodeShare = SHARE, **more: object) -> NodePorts:
    return NodePorts(share, lambda _host, _port: True, **more)  # type: ignore[arg-type]


@given(wanted=st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=40))
def test_no_host_port_is_held_twice(wanted: list[tuple[int, bool, bool]]) -> None:
    ports, held = ports_of(), dict[str, list[Port]]()
    for holder, tls, leaves in wanted:
        name = str(holder)
        if leaves:
            ports.release(name)
            held.pop(name, None)
            continue
        try:
            held.setdefault(name, []).append(ports.give(TLS if tls else PLAIN, name))
        except Unavailable:
            of_kind = [port for all_of in held.values() for port in all_of if port.tls == tls]
            assert len(of_kind) == (SHARE.tls_ports if tls else SHARE.ports), "room is given out whole"
    given_out = [port for all_of in held.values() for port in all_of]
    numbers = [port.external for port in given_out] + [port.plain for port in given_out if port.tls]
    assert len(set(numbers)) == len(numbers)
    assert all(SHARE.port_first <= number < SHARE.port_last for number in numbers)
    assert all(port.plain == port.external + SHARE.tls_ports for port in given_out if port.tls)


def test_what_an_earlier_agent_gave_is_not_given_again() -> None:
    old = ports_of().give(TLS, "a")
    ports = ports_of()
    ports.adopt(old, "a")
    others = [ports.give(TLS, "b") for _ in range(SHARE.tls_ports - 1)]
    assert old.external not in {port.external for port in others}
    with pytest.raises(Unavailable, match="Widen"):
        ports.give(TLS, "b")


def test_all_ports_of_a_run_or_none() -> None:
    ports = ports_of()
    with pytest.raises(Unavailable):
        ports.give_all([TLS] * 5, "greedy")
    assert ports.held_by("greedy") == []
    with pytest.raises(Unavailable, match="tls_enabled"):
        ports_of(replace(SHARE, tls_ports=0)).give(TLS, "a")


def test_only_ports_that_the_proxy_has_are_given() -> None:
    ports = ports_of(serves=lambda port: port == tls_range(SHARE)[2])
    assert ports.give(TLS, "a").external == tls_range(SHARE)[2]
    with pytest.raises(Unavailable):
        ports.give(TLS, "a")


@given(ports=st.sets(st.integers(20_000, 20_060), min_size=1))
def test_the_proxy_listens_on_exactly_its_ports(ports: set[int]) -> None:
    config = proxy_config("0.0.0.0", ports, 100, user=None, files=1024, threads=1)
    assert ports_in(config) == ports
    assert ports_in(proxy_config("::", ports, 100, user=65534, files=1 << 20, threads=2)) == ports
    assert [n for first, last in spans_of(ports) for n in range(first, last + 1)] == sorted(ports)
    assert "server game 127.0.0.1:+100\n" in config


def test_a_server_goes_where_tls_ports_are_left_and_a_caller_is_told_if_nowhere() -> None:
    demand = Demand("a", 1024, tls_ports=1)
    rooms = [Room("none", 4096, 8.0, tls_ports=0), Room("some", 8192, 8.0, tls_ports=1)]
    assert place([demand, replace(demand, instance_id="b")], rooms) == {"a": "some"}
    assert "TLS" in no_room("us-east", "small", demand).detail
    assert "TLS" not in no_room("us-east", "small", Demand("a", 1024)).detail


def test_a_range_too_small_for_its_tls_ports_is_refused() -> None:
    assert PortRange(per_region=900).tls_ports == 100
    assert PortRange(per_region=3).tls_ports == 0
    with pytest.raises(ValueError, match="each takes two"):
        PortRange(per_region=10, tls=6)
