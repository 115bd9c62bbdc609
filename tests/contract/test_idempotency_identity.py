"""An Idempotency-Key is answered to whoever proves to be the one it was answered to, and to nobody else."""

import asyncio
import time
from typing import Any

import httpx
import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import col, func, select

from fleet.store.tables import Idempotency
from serve_app.idempotency import _ask  # pyright: ignore[reportPrivateUsage]
from serve_app.identity import Owner
from tests.unit.api_kit import Api

SECRET = "a-secret-of-the-studio-that-is-long-enough"
LOBBIES, OLD_LOBBIES = "/api/v3/lobbies/x", "/api/v2/lobbies?name=x"
MINE = {"name": "Mine", "isPrivate": True}
OLD_MINE = {
    "name": "Mine", "maxPlayers": 2, "isPrivate": True, "useInviteCode": True, "allowLateJoin": True,
    "region": "us-east", "settings": {}, "host": "vic",
}  # fmt: skip


def token(player: str, *, good_s: int = 600) -> str:
    return jwt.encode({"sub": player, "exp": int(time.time()) + good_s}, SECRET, "HS256")


@pytest.fixture(autouse=True)
async def proving(api: Api) -> None:
    """Players of this project prove who they are."""
    auth = {"provider": "custom_jwt", "secret": SECRET}
    answer = await api.call("POST", "/api/v3/projects/settings", json={"auth_config": auth})
    assert answer.status_code == 200, answer.text


async def call(
    api: Api,
    method: str,
    path: str,
    said: Any,
    key: str,
    player: str,
    proof: str | None,
    header: str = "x-player-token",
) -> httpx.Response:
    headers = {"x-player-id": player, "idempotency-key": key} | ({} if proof is None else {header: proof})
    return await api.call(method, path, key=api.project.client_key, json=said, headers=headers)


async def rows(api: Api) -> int:
    async with api.store.read() as session:
        return (await session.exec(select(func.count()).select_from(Idempotency))).one()


@pytest.mark.parametrize(("path", "said"), [(LOBBIES, MINE), (OLD_LOBBIES, OLD_MINE)])
async def test_nobody_gets_anothers_answer_by_its_key(api: Api, path: str, said: dict[str, Any]) -> None:
    made = await call(api, "POST", path, said, "create-1", "vic", token("vic"))
    assert made.status_code == 201, made.text
    for proof, status in ((None, 401), ("guess", 401), (token("vic", good_s=-600), 401), (token("eve"), 403)):
        for body in (said, {**said, "name": "other"}):  # nor does it hear whether the key was used
            answer = await call(api, "POST", path, body, "create-1", "vic", proof)
            assert answer.status_code == status, answer.text
            assert "idempotency-replayed" not in answer.headers
            assert made.json()["id"] not in answer.text
    again = await call(api, "POST", path, said, "create-1", "vic", token("vic", good_s=900))
    assert (again.status_code, again.content) == (201, made.content)
    assert again.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(
    ("path", "said"),
    [(f"{LOBBIES}/me/heartbeat", {}), ("/api/v2/lobbies/vic/heartbeat?name=x", {"playerId": "vic"})],
)
async def test_a_refusal_of_who_it_is_does_not_outlive_it(api: Api, path: str, said: dict[str, Any]) -> None:
    before = await rows(api)
    for proof in (token("vic", good_s=-600), None, token("eve")):
        answer = await call(api, "POST", path, said, "beat-1", "vic", proof)
        assert answer.status_code in (401, 403)
    assert await rows(api) == before
    answer = await call(api, "POST", path, said, "beat-1", "vic", token("vic"))
    assert answer.status_code == 404, answer.text  # vic is in no lobby
    assert "idempotency-replayed" not in answer.headers


async def test_a_403_is_asked_again(api: Api) -> None:
    """What a plan or a host does not allow now may be allowed the next time."""
    headers = {"idempotency-key": "k"}
    for _ in range(2):
        answer = await api.call("DELETE", "/api/v3/servers/any", key=api.project.client_key, headers=headers)
        assert answer.status_code == 403
        assert "idempotency-replayed" not in answer.headers


async def test_the_old_header_of_v2_is_a_proof_too(api: Api) -> None:
    made = await call(api, "POST", OLD_LOBBIES, OLD_MINE, "k", "vic", token("vic"), "client-auth-token")
    again = await call(api, "POST", OLD_LOBBIES, OLD_MINE, "k", "vic", token("vic"))
    assert (made.status_code, again.content) == (201, made.content)


async def test_a_token_that_expires_while_the_first_is_served_gets_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first only if it has proven who it is before."""
    entered, may_go = asyncio.Event(), asyncio.Event()
    lobbies = api.app.state.context.lobbies
    create = lobbies.create

    async def slow(*args: Any) -> Any:
        entered.set()
        await may_go.wait()
        return await create(*args)

    monkeypatch.setattr(lobbies, "create", slow)
    first = asyncio.create_task(call(api, "POST", LOBBIES, MINE, "k", "vic", token("vic")))
    await entered.wait()
    stranger = await asyncio.wait_for(call(api, "POST", LOBBIES, MINE, "k", "vic", None), 10)
    assert stranger.status_code == 401
    may_go.set()
    assert (await first).status_code == 201


async def test_keys_that_are_released_are_forgotten_beyond_the_bound(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.idempotency.service.MAX_ROWS", 3)

    async def broken(*_args: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(api.app.state.context.servers, "start", broken)
    for number in range(8):
        headers = {"idempotency-key": f"k{number}"}
        answer = await api.call("POST", "/api/v3/servers/start", headers=headers, json=api.start_body)
        assert answer.status_code == 500
    await api.app.state.context.idempotency.expire()
    async with api.store.read() as session:
        left = (await session.exec(select(Idempotency).where(col(Idempotency.status).is_(None)))).all()
    assert len(left) <= 3


_WORD = st.text("ab:", min_size=1, max_size=4)


@given(one=st.tuples(_WORD, _WORD), other=st.tuples(_WORD, _WORD))
def test_no_id_and_key_are_anothers_id_and_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    scope = {"method": "POST", "path": "/", "query_string": b""}
    hashes = {
        _ask(scope, b"", Owner("p", ("client", "player", who)), key.encode()).key_hash for who, key in (one, other)
    }
    assert len(hashes) == len({one, other})
