"""Placement never overfills a node, packs so that nodes empty out, and never puts a whole pool on one node."""

from collections import Counter
from math import ceil, inf

from hypothesis import given
from hypothesis import strategies as st

from fleet.region.placement import Demand, Packing, Room, place

demands = st.lists(
    st.builds(
        Demand,
        instance_id=st.uuids().map(str),
        memory_mb=st.sampled_from([512, 1024, 2048, 4096]),
        cores=st.sampled_from([0.0, 0.0, 1.0, 2.0]),
        shares=st.sampled_from([0.0, 0.5, 1.0]),
        ports=st.integers(0, 3),
        pool=st.sampled_from([None, None, "a", "b"]),
        build_id=st.sampled_from([None, "x", "y"]),
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
        overcommit=st.sampled_from([1.0, 4.0, inf]),
        ports=st.integers(0, 12),
        takes=st.sampled_from(["all", "all", "shared", "dedicated"]),
        pools=st.dictionaries(st.sampled_from(["a", "b"]), st.integers(1, 3), max_size=2),
        builds=st.frozensets(st.sampled_from(["x", "y"])),
        preparing=st.frozensets(st.sampled_from(["x", "y"]), max_size=1),
    ),
    max_size=6,
    unique_by=lambda r: r.node_id,
)


def put(placed: dict[str, str], demands: list[Demand], rooms: list[Room]) -> dict[str, list[Demand]]:
    by_id = {d.instance_id: d for d in demands}
    return {r.node_id: [by_id[name] for name, node in placed.items() if node == r.node_id] for r in rooms}


@given(demands, rooms)
def test_no_node_is_overfilled_and_draining_nodes_take_nothing(demands: list[Demand], rooms: list[Room]) -> None:
    there = put(place(demands, rooms), demands, rooms)
    for room in rooms:
        here = there[room.node_id]
        assert sum(d.memory_mb for d in here) <= room.memory_mb
        assert sum(d.cores for d in here) + sum(d.shares for d in here) / room.overcommit <= room.cores
        assert sum(d.ports for d in here) <= room.ports
        assert not (here and room.draining)
        assert not any(d.build_id in room.preparing for d in here)


@given(demands, rooms)
def test_a_node_takes_the_sizes_of_its_class_only(demands: list[Demand], rooms: list[Room]) -> None:
    there = put(place(demands, rooms), demands, rooms)
    for room in rooms:
        if room.takes != "all":
            assert all((d.cores > 0) == (room.takes == "dedicated") for d in there[room.node_id])


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


@given(demands, rooms)
def test_the_order_finds_what_looking_at_every_node_finds(demands: list[Demand], rooms: list[Room]) -> None:
    """The specification in one expression, and the packing that does not look at every node, agree."""
    left = {room.node_id: room for room in rooms}
    packing = Packing(rooms)
    for demand in demands:
        awake = [room for room in left.values() if not room.draining]
        entries = sum(room.pools.get(demand.pool or "", 0) for room in awake)
        known = any(demand.build_id in room.builds for room in awake)

        def rank(
            room: Room, demand: Demand = demand, entries: int = entries, known: bool = known
        ) -> tuple[object, ...]:
            here = room.pools.get(demand.pool, 0) + 1 if demand.pool else 0
            crowded = here if here > ceil((entries + 1) / 2) else 0
            absent = known and demand.build_id is not None and demand.build_id not in room.builds
            return crowded, absent, room.memory_mb, room.cores, room.node_id

        expected = min((room for room in awake if room.fits(demand)), key=rank, default=None)
        assert packing.find(demand) == (expected.node_id if expected else None)
        if expected:
            packing.take(demand)
            left[expected.node_id] = expected.less(demand)


@given(st.integers(2, 5), st.integers(1, 12))
def test_no_node_holds_more_than_half_of_a_pool(nodes: int, entries: int) -> None:
    rooms = [Room(f"n{i}", 1024 * (12 + i), 64) for i in range(nodes)]
    placed = place([Demand(f"e{i}", 1024, pool="p") for i in range(entries)], rooms)
    assert len(placed) == entries
    assert max(Counter(placed.values()).values()) <= ceil(entries / 2)


def test_a_pool_fits_on_one_node_if_no_other_has_room() -> None:
    rooms = [Room("a", 8192, 8), Room("b", 100, 8)]
    assert set(place([Demand(f"e{i}", 1024, pool="p") for i in range(4)], rooms).values()) == {"a"}


def test_the_fullest_node_that_fits_is_chosen() -> None:
    rooms = [Room("empty", 8192, 8), Room("full", 1500, 8), Room("too full", 500, 8)]
    assert place([Demand("a", 1024)], rooms) == {"a": "full"}


def test_a_server_goes_where_its_build_is() -> None:
    rooms = [Room("fuller", 4096, 8), Room("has it", 8192, 8, builds=frozenset({"x"}))]
    assert place([Demand("a", 1024, build_id="x"), Demand("b", 1024, build_id="y")], rooms) == {
        "a": "has it",
        "b": "fuller",
    }
