"""Ids that follow from the write they belong to."""

import asyncio
import uuid

from fleet.operation import new_id, operation


def test_without_an_operation_every_id_is_new() -> None:
    assert len({new_id() for _ in range(100)}) == 100


def test_a_repeated_operation_makes_the_same_ids_in_the_same_order() -> None:
    op_id = str(uuid.uuid4())
    with operation(op_id):
        first = [new_id(), new_id()]
    with operation(op_id):
        again = [new_id(), new_id()]
    assert first == again
    assert len(set(first)) == 2


async def test_operations_side_by_side_do_not_mix() -> None:
    async def make(op_id: str) -> list[str]:
        made: list[str] = []
        with operation(op_id):
            for _ in range(5):
                made.append(new_id())
                await asyncio.sleep(0)
        return made

    ids = [str(uuid.uuid4()) for _ in range(10)]
    together = await asyncio.gather(*map(make, ids))
    alone = [await make(op_id) for op_id in ids]
    assert together == alone
