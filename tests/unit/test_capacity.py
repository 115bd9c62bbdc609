"""The region grows at once, shrinks slowly, never needs what it gives away, and comes to rest."""

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.region.capacity import CapacityMemory, CapacityPlan, CapacityPolicy, NodeClass, NodeState, plan_capacity
from fleet.region.placement import Demand, place

POLICY = CapacityPolicy(surplus_ms=600_000, unneeded_ms=30_000)
SHARED = NodeClass("shared", "node:r", 8192, 8, 4, takes="shared", cost_per_hour=0.2)
DEDICATED = NodeClass("dedicated", "node:r:dedicated", 8192, 4, 2, takes="dedicated", cost_per_hour=0.4)
CLASSES = (SHARED, DEDICATED)
WINDOW = POLICY.surplus_ms

sizes = st.sampled_from([(512, 0.0), (2048, 0.0), (8192, 0.0), (2048, 1.0), (4096, 4.0), (16384, 0.0)])


@st.composite
def demands(draw: st.DrawFn, prefix: str = "d", most: int = 12) -> list[Demand]:
    drawn = draw(st.lists(sizes, max_size=most))
    return [Demand(f"{prefix}{i}", memory, cores) for i, (memory, cores) in enumerate(drawn)]


@st.composite
def node_states(draw: st.DrawFn) -> list[NodeState]:
    found: list[NodeState] = []
    for c in CLASSES:
        for number in range(draw(st.integers(0, c.max_nodes))):
            used = draw(st.sampled_from([0, 0, 512, 2048, 8192]))
            cause = draw(st.sampled_from([None, None, "surplus", "operator", "notice"]))
            room = replace(c.room(f"{c.name}{number}"), memory_mb=c.memory_mb - used, draining=cause is not None)
            movable = tuple(draw(demands(f"{room.node_id}-", 2))) if used >= 512 else ()
            movable = tuple(m for m in movable if m.memory_mb <= used and (m.cores > 0) == (c.takes == "dedicated"))
            found.append(NodeState(room, c.name, draw(st.booleans()), used == 0, cause, movable[:1]))
    return found


def decide(
    wanted: list[Demand],
    nodes: list[NodeState],
    asked: dict[str, int] | None = None,
    memory: CapacityMemory | None = None,
    now: int = 0,
    headroom: list[Demand] | None = None,
    classes: tuple[NodeClass, ...] = CLASSES,
) -> tuple[CapacityPlan, CapacityMemory]:
    known = memory or CapacityMemory()
    return plan_capacity(wanted, headroom or [], nodes, asked or {}, classes, known, now, POLICY)


def long_ago(wanted: list[Demand], nodes: list[NodeState]) -> CapacityMemory:
    """What is remembered when all has been like this for longer than the window."""
    return decide(wanted, nodes)[1]


asks = st.fixed_dictionaries({"shared": st.integers(0, 2), "dedicated": st.integers(0, 1)})


@given(demands(), node_states(), asks)
def test_everything_that_can_have_room_gets_it_at_once(
    wanted: list[Demand], nodes: list[NodeState], asked: dict[str, int]
) -> None:
    plan, _ = decide(wanted, nodes, asked)
    rooms = [replace(n.room, draining=False) for n in nodes if n.cause is None or n.room.node_id in plan.undrain]
    for c in CLASSES:
        number = asked[c.name] + plan.ask.get(c.name, 0)
        rooms += [c.room(f"new-{c.name}{i}") for i in range(number)]
    leased = Counter(n.node_class for n in nodes)
    for c in CLASSES:
        assert leased[c.name] + asked[c.name] + plan.ask.get(c.name, 0) <= max(
            c.max_nodes, leased[c.name] + asked[c.name]
        )
    for demand in wanted:
        if demand.instance_id in plan.short:
            full = [c for c in CLASSES if leased[c.name] + asked[c.name] + plan.ask.get(c.name, 0) >= c.max_nodes]
            assert all(c in full or not c.room("").fits(demand) for c in CLASSES)
    # Each of the rest fits somewhere by itself, and together they need no more memory than there is.
    rest = [d for d in wanted if d.instance_id not in plan.short]
    assert all(any(room.fits(d) for room in rooms) for d in rest)
    assert sum(d.memory_mb for d in rest) <= sum(room.memory_mb for room in rooms)


@given(demands(), demands("h", 4), node_states(), asks)
def test_what_is_drained_is_not_needed(
    wanted: list[Demand], headroom: list[Demand], nodes: list[NodeState], asked: dict[str, int]
) -> None:
    memory = decide(wanted, nodes, asked, headroom=headroom)[1]
    plan, _ = decide(wanted, nodes, asked, memory, WINDOW, headroom)
    by_id = {n.room.node_id: n for n in nodes}
    assert all(by_id[name].cause is None and by_id[name].ready for name in plan.drain)
    if plan.drain:
        assert not plan.ask
        assert not plan.undrain
        ready = [n.room for n in nodes if n.cause is None and n.ready]
        rest = [room for room in ready if room.node_id not in plan.drain]
        moving = [d for name in plan.drain for d in by_id[name].movable]
        # What waits for a silent node, or for one that was asked for, does not count: it needs none of these.
        needed = len(place([*wanted, *headroom], ready))
        assert len(place([*wanted, *headroom, *moving], rest)) >= needed + len(moving)


@given(demands(), node_states())
def test_only_empty_nodes_that_drain_are_released(wanted: list[Demand], nodes: list[NodeState]) -> None:
    plan, _ = decide(wanted, nodes)
    by_id = {n.room.node_id: n for n in nodes}
    for name in plan.release:
        assert by_id[name].empty
        assert by_id[name].ready
        assert by_id[name].cause in ("surplus", "notice")
    assert not set(plan.release) & set(plan.undrain)
    assert all(by_id[name].cause == "surplus" for name in plan.undrain)


@settings(max_examples=60)
@given(demands(), st.integers(0, 4), st.integers(0, 2))
def test_under_constant_demand_it_comes_to_rest(wanted: list[Demand], shared: int, dedicated: int) -> None:
    """Played through time: what is asked comes, what is drained goes when empty. It must not swing."""
    nodes = {f"{c.name}{i}": c.name for c, number in ((SHARED, shared), (DEDICATED, dedicated)) for i in range(number)}
    causes: dict[str, str] = {}
    memory, now, changes = CapacityMemory(), 0, 0
    by_name = {c.name: c for c in CLASSES}
    quiet_since = 0
    for tick in range(60):
        states = [
            NodeState(
                replace(by_name[c].room(name), draining=name in causes),
                c,
                empty=True,
                cause="surplus" if name in causes else None,
            )
            for name, c in nodes.items()
        ]
        # The wanted ones keep wanting room (as headroom does), so that demand is constant.
        plan, memory = decide(wanted, states, {}, memory, now)
        if plan.ask or plan.drain or plan.undrain or plan.release:
            changes += 1
            quiet_since = tick
        for name in plan.drain:
            causes[name] = "surplus"
        for name in plan.undrain:
            del causes[name]
        for name in plan.release:
            del nodes[name], causes[name]
        for c, number in plan.ask.items():
            for _ in range(number):
                nodes[f"{c}-{tick}-{len(nodes)}"] = c
        now += 60_000
    assert changes <= 3, "it swings"
    assert quiet_since <= 2 + WINDOW // 60_000
    assert not causes


def node(name: str, used: int = 0, **values: object) -> NodeState:
    room = replace(SHARED.room(name), memory_mb=SHARED.memory_mb - used, draining=values.get("cause") is not None)
    return NodeState(room, "shared", empty=used == 0, **values)  # type: ignore[arg-type]


def small(name: str, **values: object) -> Demand:
    return Demand(name, 1024, **values)  # type: ignore[arg-type]


def test_many_at_once_ask_for_many_nodes_at_once() -> None:
    plan, _ = decide([small(f"s{i}") for i in range(20)], [])
    assert plan.ask == {"shared": 3}


def test_nodes_on_their_way_are_counted() -> None:
    plan, _ = decide([small(f"s{i}") for i in range(20)], [], {"shared": 2})
    assert plan.ask == {"shared": 1}


def test_a_dedicated_size_asks_for_a_dedicated_node() -> None:
    plan, _ = decide([Demand("d", 4096, 4.0)], [node("n")])
    assert plan.ask == {"dedicated": 1}


def test_a_draining_node_is_taken_back_before_another_is_asked_for() -> None:
    plan, _ = decide([small("s")], [node("n", cause="surplus"), node("o", cause="operator")])
    assert plan.undrain == ("n",)
    assert not plan.ask
    assert not plan.release


def test_the_emptiest_is_drained_and_only_after_a_while() -> None:
    nodes = [node("full", 6000), node("half", 3000), node("empty", 500)]
    plan, memory = decide([], nodes)
    assert not plan.drain
    plan, memory = decide([], nodes, memory=memory, now=WINDOW - 1)
    assert not plan.drain
    plan, memory = decide([], nodes, memory=memory, now=WINDOW)
    assert plan.drain[:1] == ("empty",)


def test_demand_in_between_begins_the_wait_anew() -> None:
    nodes = [node("a"), node("b")]
    _, memory = decide([], nodes)
    _, memory = decide([small(f"s{i}") for i in range(12)], nodes, memory=memory, now=WINDOW // 2)
    plan, memory = decide([], nodes, memory=memory, now=WINDOW)
    assert not plan.drain
    plan, memory = decide([], nodes, memory=memory, now=WINDOW + WINDOW // 2)
    assert not plan.drain
    plan, _ = decide([], nodes, memory=memory, now=2 * WINDOW)
    assert plan.drain == ("a", "b")


def test_idle_pool_entries_must_fit_elsewhere_before_their_node_is_drained() -> None:
    idle = tuple(small(f"w{i}", pool="p") for i in range(3))
    full = [node("full", 7000), node("other", 3072, movable=idle)]
    plan, _ = decide([], full, memory=long_ago([], full), now=WINDOW)
    assert "other" not in plan.drain
    roomy = [node("full", 4000), node("other", 3072, movable=idle)]
    plan, _ = decide([], roomy, memory=long_ago([], roomy), now=WINDOW)
    assert plan.drain == ("other",)


def test_asks_that_nobody_needs_are_taken_back_after_a_while() -> None:
    _, memory = decide([], [], {"shared": 2})
    plan, memory = decide([], [], {"shared": 2}, memory, 29_000)
    assert not plan.cancel
    plan, _ = decide([], [], {"shared": 2}, memory, 30_000)
    assert plan.cancel == {"shared": 2}


def test_the_least_number_is_asked_for_and_kept() -> None:
    classes = (replace(SHARED, min_nodes=2),)
    assert decide([], [], classes=classes)[0].ask == {"shared": 2}
    nodes = [node("a"), node("b"), node("c")]
    memory = decide([], nodes, classes=classes)[1]
    assert decide([], nodes, memory=memory, now=WINDOW, classes=classes)[0].drain == ("a",)


def test_servers_for_which_there_will_be_no_room_are_named() -> None:
    plan, _ = decide([small("ok"), Demand("huge", 100_000)], [])
    assert plan.short == {"huge"}
    assert plan.ask == {"shared": 1}


def test_a_node_that_fetches_a_build_is_on_its_way_not_missing() -> None:
    busy = node("n")
    busy = replace(busy, room=replace(busy.room, preparing=frozenset({"b"})))
    assert not decide([small("s", build_id="b")], [busy])[0].ask


def test_a_node_that_is_silent_for_long_is_not_waited_for() -> None:
    """For a moment it is: its agent may only be starting."""
    wanted = [Demand("d", 512)]
    silent = NodeState(SHARED.room("shared0"), "shared", ready=False)
    assert decide(wanted, [silent])[0].ask == {}
    assert decide(wanted, [replace(silent, away=True)])[0].ask == {"shared": 1}
