"""Every route of every document, called by everybody with real ids: who may does, who may not is told so, and nobody
sees or changes what is another project's.

What is expected comes from the tables `MAY_CALL` beside the routes (`serve_app/policy.py`).
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from fleet.projects.scope import owned
from fleet.store.commit import row_values
from serve_app.policy import Caller
from tests.contract.route_world import VIC, Operation, World, operations, token
from tests.contract.test_tenants_machine import TENANT_TABLES
from tests.unit.api_kit import open_api

ALL = operations()
# A good call that finds nothing to do in this world, and what it is told.
NOTHING_TO_DO = {
    "get_pool": 404,  # no manager runs here
    "export_of_project": 404,  # it has not ended
    "confirm_match": 409,
    "decline_match": 409,
    "cancel_matchmaking": 409,
    "end_match": 409,
    "resume_project": 409,
    "join_lobby": 409,
    "legacy_create_lobby": 400,
    "legacy_create_ticket": 400,
    "legacy_join_lobby": 400,
    "legacy_join_by_code": 400,
    "claim_server": 409,
}
# As v2's documents have it: a bad request for an unknown code, and `found: false` of an unknown build. Whoever sets a
# secret names one of their own.
STRANGERS_HEAR = {"legacy_join_by_code": 400, "legacy_get_build": 200, "put_secret": 200}


@dataclass(frozen=True)
class Who:
    """A caller: the header that its key is sent in (in both), and the proof of a player."""

    name: str
    key: str | None
    proof: str | None = None

    def headers(self) -> dict[str, str]:
        sent = {} if self.key is None else {"api-key": self.key, "admin-key": self.key}
        return sent | ({} if self.proof is None else {"x-player-token": self.proof})


def everybody(world: World) -> list[Who]:
    project, other = world.api.project, world.api.other
    return [
        Who("no key", None),
        Who("unknown key", "pf_" + "x" * 43),
        *(Who(name, key) for name, key in world.old_keys.items()),
        Who("client key", project.client_key),
        Who("client key, another player's token", project.client_key, token("eve")),
        Who("client key, the player's token", project.client_key, token(VIC)),
        Who("server key", project.server_key),
        Who("another project's client key", other.client_key, token(VIC)),
        Who("another project's server key", other.server_key),
        Who("admin key", world.admin_key),
    ]


def refused(operation: Operation, who: str) -> set[int] | None:
    """The statuses that the caller must get; None if it may make this call."""
    caller = operation.caller
    if caller is Caller.ANYONE:
        return None
    if caller is Caller.SIGNED:
        return {401, 403}
    if caller is Caller.ADMIN:
        return None if who == "admin key" else {401}
    if who in ("no key", "unknown key", "admin key") or who.startswith(("rotated", "expired")):
        return {401}
    if caller is Caller.SERVER and "client key" in who:
        return {403}
    if caller is Caller.PLAYER and who == "client key":
        return {401}
    if caller is Caller.PLAYER and who == "client key, another player's token":
        return {403}
    if who.startswith("another project") and operation.takes_ids:
        return {STRANGERS_HEAR.get(operation.name, 404)}
    return None


async def call(world: World, operation: Operation, who: Who, *, third: bool = False) -> httpx.Response:
    """It must not be a fault, and a stranger must not read anything of the owner's that they did not send."""
    said = world.said(operation)
    sent = json.dumps([said, world.path(operation, third=third)], default=repr)
    said["headers"] = said["headers"] | who.headers()
    answer = await world.api.client.request(operation.method, world.path(operation, third=third), **said)
    assert answer.status_code < 500, f"{operation.path} by {who.name}: {answer.text}"
    if who.name.startswith("another project"):
        shown = [mine for mine in world.secrets_of_mine() if mine in answer.text and mine not in sent]
        assert not shown, f"{operation.path} shows {who.name}: {answer.text[:300]}"
    return answer


async def rows(world: World) -> dict[str, Any]:
    """Everything of the owner's, but for what time does by itself."""
    found: dict[str, Any] = {}
    async with world.api.store.read() as session:
        for table in TENANT_TABLES:
            mine = (await session.exec(owned(table, world.api.project.project_id))).all()
            found[table.__name__] = sorted(json.dumps(row_values(row), default=str, sort_keys=True) for row in mine)
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    api = await open_api(Path(tmp_path_factory.mktemp("matrix")))
    yield await World.make(api)
    await api.close()


def test_the_documents_name_many_operations_of_each_kind() -> None:
    assert len(ALL) > 90
    assert {operation.caller for operation in ALL} == set(Caller) - {Caller.OPERATOR}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("operation", ALL, ids=lambda one: f"{one.method} {one.path}")
async def test_who_may_not_is_refused_and_changes_nothing(world: World, operation: Operation) -> None:
    before = await rows(world)
    for who in everybody(world):
        expected = refused(operation, who.name)
        if expected is None and not who.name.startswith("another project"):
            continue
        answer = await call(world, operation, who)
        told = f"{operation.method} {operation.path} by {who.name}: {answer.status_code} {answer.text[:300]}"
        if expected is not None:
            assert answer.status_code in expected, told
        else:
            assert answer.status_code not in (401, 403), told
    assert await rows(world) == before


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("operation", ALL, ids=lambda one: f"{one.method} {one.path}")
async def test_who_may_is_served(world: World, operation: Operation) -> None:
    for who in everybody(world):
        if refused(operation, who.name) is not None or who.name.startswith("another project"):
            continue
        if operation.method != "GET":
            await world.restock(operation)
        answer = await call(world, operation, who, third=True)
        told = f"{operation.method} {operation.path} by {who.name}: {answer.status_code} {answer.text[:300]}"
        nothing = answer.status_code == NOTHING_TO_DO.get(operation.name)
        assert nothing or answer.status_code < 300, told


def test_the_exceptions_name_nothing_that_is_gone() -> None:
    names = {operation.name for operation in ALL}
    assert NOTHING_TO_DO.keys() | STRANGERS_HEAR.keys() <= names
