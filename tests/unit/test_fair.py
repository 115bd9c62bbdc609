"""Places that tenants share: nobody fills them, nobody waits behind somebody else's line, nothing is lost."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import TooMany
from fleet.limits.fair import FairGate, FairQueue, Places, next_turns

OWNERS = st.sampled_from("abcde")
places = st.builds(
    lambda every, each, spare: Places(every, each, min(spare, every - 1)),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 10),
)


@given(places, st.dictionaries(OWNERS, st.integers(0, 8)), st.dictionaries(OWNERS, st.integers(0, 20)))
def test_turns_are_fair_within_the_bounds(held: Places, under_way: dict[str, int], waiting: dict[str, int]) -> None:
    turns = Counter(next_turns(held, under_way, waiting))
    free = held.all - sum(under_way.values())
    assert sum(turns.values()) <= max(0, free)
    for name, count in turns.items():
        assert count <= waiting[name]
        assert under_way.get(name, 0) + count <= held.each
    left = free - sum(turns.values())
    for name, count in waiting.items():
        mine = under_way.get(name, 0) + turns[name]
        if turns[name] < count:  # it wanted more: it may have none, and nobody was preferred who has more
            assert not held.may(mine, left)
            if mine < held.each:
                assert all(under_way.get(other, 0) + n <= mine + 1 for other, n in turns.items() if other != name)


@given(st.integers(2, 20), st.integers(1, 19), st.integers(1, 200))
def test_busy_tenants_leave_room_for_one_who_comes_anew(every: int, spare: int, many: int) -> None:
    """However many want however much, one who holds nothing finds a place."""
    shared = Places(every, every, min(spare, every - 1))
    under_way = Counter(next_turns(shared, {}, {"flood": many}))
    assert next_turns(shared, under_way, {"flood": many, "new": 3})[:1] == ["new"]


@given(st.lists(OWNERS, max_size=60))
def test_a_queue_goes_round_and_keeps_each_owners_order(owners: list[str]) -> None:
    queue = FairQueue[tuple[str, int]]()
    for number, owner in enumerate(owners):
        queue.put(owner, (owner, number))
    taken = [queue.take() for _ in range(len(queue))]
    assert sorted(taken) == sorted((owner, number) for number, owner in enumerate(owners))
    for owner in set(owners):
        mine = [number for who, number in taken if who == owner]
        assert mine == sorted(mine)
    before = Counter[str]()
    left = Counter(owners)
    for owner, _ in taken:  # nobody is served again while another, who waits, was served less often
        assert all(before[owner] <= before[other] for other, count in left.items() if count)
        before[owner] += 1
        left[owner] -= 1
    with pytest.raises(IndexError):
        queue.take()


@given(st.lists(OWNERS, max_size=60), st.integers(1, 20), st.integers(1, 5))
def test_a_batch_holds_no_more_of_one_than_its_share(owners: list[str], most: int, of_one: int) -> None:
    queue = FairQueue[str]()
    for owner in owners:
        queue.put(owner, owner)
    while len(queue):
        waiting = Counter({owner: queue.waiting(owner) for owner in set(owners)})
        batch = Counter(queue.take_some(most, of_one))
        assert 1 <= batch.total() <= most
        if len(+waiting) > 1:
            assert max(batch.values()) <= of_one
        else:
            assert batch.total() == min(most, waiting.total())


@given(st.integers(1, 6), st.integers(1, 6), st.lists(st.tuples(OWNERS, st.booleans()), max_size=40))
def test_a_gate_gives_each_place_back_whatever_becomes_of_who_waits(
    every: int, each: int, steps: list[tuple[str, bool]]
) -> None:
    """Callers come; some of them, inside or waiting, go away in the middle."""

    async def run() -> None:
        gate = FairGate("calls", Places(every, each), queue=100, wait_s=None)
        inside, most, open_ = Counter[str](), Counter[str](), asyncio.Event()

        async def call(owner: str) -> None:
            async with gate.place(owner):
                inside[owner] += 1
                most[owner] = max(most[owner], inside[owner])
                assert inside.total() <= every
                try:
                    await open_.wait()
                finally:
                    inside[owner] -= 1

        tasks: list[asyncio.Task[None]] = []
        for owner, goes in steps:
            tasks.append(asyncio.create_task(call(owner)))
            await asyncio.sleep(0)
            if goes:
                tasks[len(tasks) // 2].cancel()
        open_.set()
        async with asyncio.timeout(5):
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(one is None or isinstance(one, asyncio.CancelledError) for one in ended)
        assert gate.free == every
        assert all(count <= each for count in most.values())
        assert all(gate.held(owner) == 0 for owner in "abcde")

    asyncio.run(run())


async def test_a_line_is_bounded_and_a_wait_ends() -> None:
    gate = FairGate("starts", Places(2, 1), queue=1, wait_s=0.05)
    async with gate.place("a"):
        waits = asyncio.create_task(_enter(gate, "a"))
        await asyncio.sleep(0)
        with pytest.raises(TooMany):
            await _enter(gate, "a")
        async with gate.place("b"):  # another tenant has its place
            with pytest.raises(TooMany):
                await waits
    await _enter(gate, "a")


async def _enter(gate: FairGate, owner: str) -> None:
    async with gate.place(owner):
        pass
