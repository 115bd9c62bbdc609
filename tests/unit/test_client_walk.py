"""nakama-playflow's walk over all servers, page by page: complete, and at an end while servers come and go."""

from typing import Any

import pytest

from fleet.store.tables import Server
from fleet.times import now_ms
from tests.clients.nakama import PAGE, walk
from tests.unit.api_kit import Api


async def add_servers(api: Api, count: int) -> list[str]:
    project_id, now = api.project.project_id, now_ms()
    rows = [
        Server(
            instance_id=f"walk-{number:04}",
            project_id=project_id,
            region="us-east",
            name=f"server {number}",
            status="running" if number % 2 else "launching",
            step="running",
            compute_size="small",
            build_id="build",
            version_tag="default",
            version=1,
            created_at=now - number,
            updated_at=now,
            launched_at=now,
            step_at=now,
        )
        for number in range(count)
    ]
    async with api.store.write() as session:
        session.add_all(rows)
    return [f"walk-{number:04}" for number in range(count)]


async def walked(api: Api, between: Any = None) -> list[str]:
    pages = walk()
    query = next(pages)
    while True:
        answer = await api.call("GET", "/api/v3/servers", params=query)
        assert answer.status_code == 200
        try:
            query = pages.send(answer.json())
        except StopIteration as end:
            return [server["instance_id"] for server in end.value]
        if between is not None:
            await between(query["offset"])


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE + 50])
async def test_every_server_is_found_once(api: Api, count: int) -> None:
    there = await add_servers(api, count)
    assert sorted(await walked(api)) == there


async def test_servers_that_stop_meanwhile_neither_break_nor_prolong_the_walk(api: Api) -> None:
    there = await add_servers(api, 3 * PAGE)

    async def stop_some(offset: int) -> None:
        await api.regions.change(there[offset - 1], "stopped", status="stopped")

    found = await walked(api, stop_some)
    assert len(found) == len(set(found))
    assert len(found) >= 3 * PAGE - 3
