"""Placement never overfills a node, and packs so that nodes empty out."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.region.placement import Demand, Room, place

demands = st.lists(
    st.builds(
        Demand,
        instance_id=st.uuids().map(str),
        memory_mb=st.sampled_from([512, 1024, 2048, 4096]),
        cores=st.sampled_from([0.0, 1.0, 2.0]),
    ),
    max_size=20,
    unique_by=lambda d: d.instance_id,
)
rooms = st.lists(
    st.builds(
        Room,
        node_id=st.uuids().map(str),
        memory_mb=st.integers(0, 8192),
        cores=st.sampled_from([0.0, 1.0, 4.0]),
        draining=st.booleans(),
    ),
    max_size=6,
    unique_by=lambda r: r.node_id,
)


@given(demands, rooms)
def test_no_node_is_overfilled_and_draining_nodes_take_nothing(demands: list[Demand], rooms: list[Room]) -> None:
    placed = place(demands, rooms)
    by_id = {d.instance_id: d for d in demands}
    for room in rooms:
        here = [by_id[name] for name, node in placed.items() if node == room.node_id]
        assert sum(d.memory_mb for d in here) <= room.memory_mb
        assert sum(d.cores for d in here) <= room.cores
        assert not (here and room.draining)


@given(demands, rooms)
def test_what_is_not_placed_fits_nowhere(demands: list[Demand], rooms: list[Room]) -> None:
    placed = place(demands, rooms)
    by_id = {d.instance_id: d for d in demands}
    left = {room.node_id: room for room in rooms}
    for name, node in placed.items():
        left[node] = left[node].less(by_id[name])
    for demand in demands:
        if demand.instance_id not in placed:
            assert not any(room.fits(demand) for room in left.values())


def test_the_fullest_node_that_fits_is_chosen() -> None:
    rooms = [Room("empty", 8192, 8), Room("full", 1500, 8), Room("too full", 500, 8)]
    assert place([Demand("a", 1024)], rooms) == {"a": "full"}
