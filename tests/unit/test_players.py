"""Who a player is: tokens of each kind, checked against stand-ins of the providers on this machine."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.utils import base64url_encode

from fleet.errors import FleetError, Forbidden, Unauthorized, Unavailable
from fleet.players.custom_jwt import CustomJwt
from fleet.players.jwks import FRESH_S, RETRY_S, STALE_S, KeySet
from fleet.players.model import is_player_id
from fleet.players.outside import Outside
from fleet.players.playfab import PlayFab
from fleet.players.service import PlayerService
from fleet.players.steam import Steam
from fleet.projects.model import KeyKind, Principal
from fleet.projects.settings import sealed
from fleet.sealing import Sealer, Variables
from fleet.servers.limits import Unprocessable

SECRET = "a-secret-of-the-studio-that-is-long-enough"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
STEAM_ID, STEAM_TICKET = "76561197960287930", "14000000A1B2C3D4"
PLAYFAB_ID, PLAYFAB_TICKET = "1A2B3C4D5E6F7A8B", "1A2B3C4D5E6F7A8B-AAAA-BBBB-TITLE-8D9-x=="


@dataclass
class Elsewhere:
    """Steam, PlayFab and a JWKS endpoint, answering in their shapes. `asked` counts the questions."""

    url: str = ""
    keys: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    broken: bool = False

    async def jwks(self, request: web.Request) -> web.Response:
        self.asked.append("jwks")
        return web.json_response({"keys": self.keys}, status=503 if self.broken else 200)

    async def steam(self, request: web.Request) -> web.Response:
        self.asked.append("steam")
        query = request.query
        if query["key"] != "publisher" or query["appid"] != "480":
            return web.Response(status=403, text="<html>Forbidden</html>", content_type="text/html")
        if query["ticket"] == "BA":
            params = {"result": "OK", "steamid": STEAM_ID, "publisherbanned": True}
            return web.json_response({"response": {"params": params}})
        if query["ticket"] != STEAM_TICKET:
            return web.json_response({"response": {"error": {"errorcode": 101, "errordesc": "Invalid ticket"}}})
        params = {"result": "OK", "steamid": STEAM_ID, "ownersteamid": STEAM_ID, "vacbanned": False}
        return web.json_response({"response": {"params": {**params, "publisherbanned": False}}})

    async def playfab_server(self, request: web.Request) -> web.Response:
        self.asked.append("playfab")
        body = await request.json()
        assert request.headers["X-SecretKey"] == "title-secret"
        if body["SessionTicket"] == "broken":
            return _playfab_error("InvalidSessionTicket")
        user = {"PlayFabId": PLAYFAB_ID, "TitleInfo": {"TitlePlayerAccount": {"Id": "E1", "Type": "title_player"}}}
        data = {"UserInfo": user, "IsSessionTicketExpired": body["SessionTicket"] == "old"}
        return web.json_response({"code": 200, "status": "OK", "data": data})

    async def playfab_client(self, request: web.Request) -> web.Response:
        if request.headers["X-Authorization"] != PLAYFAB_TICKET:
            return _playfab_error("NotAuthenticated")
        return web.json_response({"code": 200, "status": "OK", "data": {"AccountInfo": {"PlayFabId": PLAYFAB_ID}}})

    async def redirect(self, request: web.Request) -> web.Response:
        raise web.HTTPFound("/jwks")

    async def huge(self, request: web.Request) -> web.Response:
        return web.Response(body=b'{"keys":[' + b" " * 2_000_000)


def _playfab_error(what: str) -> web.Response:
    return web.json_response({"code": 401, "status": "Unauthorized", "errorMessage": what}, status=401)


@pytest.fixture
async def elsewhere() -> AsyncIterator[Elsewhere]:
    there = Elsewhere()
    app = web.Application()
    app.router.add_get("/jwks", there.jwks)
    app.router.add_get("/redirect", there.redirect)
    app.router.add_get("/huge", there.huge)
    app.router.add_get("/ISteamUserAuth/AuthenticateUserTicket/v1/", there.steam)
    app.router.add_post("/Server/AuthenticateSessionTicket", there.playfab_server)
    app.router.add_post("/Client/GetAccountInfo", there.playfab_client)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    there.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield there
    await runner.cleanup()


@pytest.fixture
async def outside() -> AsyncIterator[Outside]:
    opened = Outside()
    yield opened
    await opened.close()


def public(key: Any, algorithm: Any, kid: str, **more: Any) -> dict[str, Any]:
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, **more}


def claims(**more: Any) -> dict[str, Any]:
    return {"sub": "anna", "exp": int(time.time()) + 600, **more}


# Shared secrets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_a_token_signed_with_the_secret_proves_its_subject(outside: Outside, algorithm: str) -> None:
    secret = SECRET * 2
    provider = CustomJwt({"secret": secret}, outside)
    proof = await provider.proof(jwt.encode(claims(), secret, algorithm))
    assert proof.ids == ("anna",)
    assert proof.until == claims()["exp"]


BAD = {
    "expired": claims(exp=int(time.time()) - 60),
    "without end": {"sub": "anna"},
    "of nobody": {"exp": int(time.time()) + 600},
    "not yet valid": claims(nbf=int(time.time()) + 600),
    "of another issuer": claims(iss="other", aud="game"),
    "for another audience": claims(iss="studio", aud="shop"),
    "subject true": claims(sub=True, iss="studio", aud="game"),
}


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_token_is_refused(outside: Outside, what: str) -> None:
    strict = CustomJwt({"secret": SECRET, "issuer": "studio", "audience": ["game"]}, outside)
    good = {"iss": "studio", "aud": "game"}
    given = BAD[what] if "iss" in BAD[what] else BAD[what] | good
    with pytest.raises(Unauthorized, match="player token"):
        await strict.proof(jwt.encode(given, SECRET, "HS256"))
    assert (await strict.proof(jwt.encode(claims(**good), SECRET, "HS256"))).ids == ("anna",)


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "é.é.é", "....", "e30.e30.", "eyJhbGciOiJub25lIn0.e30."])
async def test_what_is_no_token_is_refused(outside: Outside, token: str) -> None:
    with pytest.raises(Unauthorized):
        await CustomJwt({"secret": SECRET}, outside).proof(token)


async def test_another_claim_may_name_the_player(outside: Outside) -> None:
    provider = CustomJwt({"secret": SECRET, "subject_claim": "uid"}, outside)
    assert (await provider.proof(jwt.encode(claims(uid=42), SECRET, "HS256"))).ids == ("42",)


# Public keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "kind", "algorithm"),
    [
        (RSA_KEY, RSAAlgorithm, "RS256"),
        (RSA_KEY, RSAAlgorithm, "PS384"),
        (EC_KEY, ECAlgorithm, "ES256"),
        (ED_KEY, OKPAlgorithm, "EdDSA"),
    ],
)
async def test_a_token_signed_with_a_published_key(
    elsewhere: Elsewhere, outside: Outside, key: Any, kind: Any, algorithm: str
) -> None:
    elsewhere.keys = [{"kty": "new"}, public(key, kind, "k1"), public(RSA_KEY, RSAAlgorithm, "k2", use="enc")]
    provider = CustomJwt({"jwks_url": f"{elsewhere.url}/jwks"}, outside)
    for _ in range(3):
        proof = await provider.proof(jwt.encode(claims(), key, algorithm, headers={"kid": "k1"}))
        assert proof.ids == ("anna",)
    assert (await provider.proof(jwt.encode(claims(), key, algorithm))).ids == ("anna",)  # the only one there is
    assert elsewhere.asked == ["jwks"]
    with pytest.raises(Unauthorized):
        await provider.proof(jwt.encode(claims(), key, algorithm, headers={"kid": "k2"}))


async def test_the_token_does_not_choose_the_algorithm(elsewhere: Elsewhere, outside: Outside) -> None:
    pem = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    symmetric = {"kty": "oct", "kid": "sym", "k": "c2VjcmV0LXRoYXQtZXZlcnlib2R5LWtub3dzLW5vdw"}
    elsewhere.keys = [public(RSA_KEY, RSAAlgorithm, "k1", alg="RS256"), symmetric]
    only_public = CustomJwt({"jwks_url": f"{elsewhere.url}/jwks"}, outside)
    forged = _hmac_with(pem, {"kid": "k1"})
    with_symmetric = jwt.encode(claims(), "secret-that-everybody-knows-by-now", "HS256", headers={"kid": "sym"})
    for token in (forged, with_symmetric, jwt.encode(claims(), None, "none", headers={"kid": "k1"})):
        with pytest.raises(Unauthorized):
            await only_public.proof(token)
    with pytest.raises(Unauthorized):  # the key is published for RS256
        await only_public.proof(jwt.encode(claims(), RSA_KEY, "RS512", headers={"kid": "k1"}))
    only_secret = CustomJwt({"secret": SECRET}, outside)
    with pytest.raises(Unauthorized):
        await only_secret.proof(jwt.encode(claims(), RSA_KEY, "RS256", headers={"kid": "k1"}))
    both = CustomJwt({"secret": SECRET, "jwks_url": f"{elsewhere.url}/jwks"}, outside)
    with pytest.raises(Unauthorized):
        await both.proof(forged)
    assert (await both.proof(jwt.encode(claims(), SECRET, "HS256"))).ids == ("anna",)


def _hmac_with(key: bytes, header: dict[str, str]) -> str:
    """What no library makes any more: signed by HMAC with the text of a public key."""
    parts = [jwt.api_jws.json.dumps(one).encode() for one in ({"alg": "HS256", **header}, claims())]
    signed = b".".join(base64url_encode(part) for part in parts)
    return (signed + b"." + base64url_encode(hmac.new(key, signed, hashlib.sha256).digest())).decode()


async def test_keys_are_looked_for_again_seldom_and_kept_while_their_source_is_gone(
    elsewhere: Elsewhere, outside: Outside
) -> None:
    now = 1e6
    keys = KeySet(f"{elsewhere.url}/jwks", outside, lambda: now)
    elsewhere.keys = [public(RSA_KEY, RSAAlgorithm, "old")]
    assert await keys.find("old") is not None
    elsewhere.keys = [public(EC_KEY, ECAlgorithm, "new")]
    for _ in range(5):
        assert await keys.find("new") is None  # asked a moment ago
    now += RETRY_S + 1
    assert await keys.find("new") is not None
    assert elsewhere.asked == ["jwks"] * 2
    elsewhere.broken = True
    for seconds in (FRESH_S, RETRY_S, RETRY_S):
        now += seconds + 1
        assert await keys.find("new") is not None
        assert await keys.find("unheard-of") is None
    now += STALE_S
    with pytest.raises(Unavailable):
        await keys.find("new")
    elsewhere.broken = False
    assert await keys.find("new") is not None


@pytest.mark.parametrize("path", ["/redirect", "/huge", "/nothing"])
async def test_no_keys_are_taken_from_what_is_no_key_set(elsewhere: Elsewhere, outside: Outside, path: str) -> None:
    with pytest.raises(Unavailable):
        await KeySet(elsewhere.url + path, outside).find("k1")


async def test_a_provider_that_is_gone_is_no_fault_of_the_player(outside: Outside) -> None:
    provider = Steam({"web_api_key": "publisher", "app_id": 480}, outside, "http://127.0.0.1:1")
    with pytest.raises(Unavailable) as caught:
        await provider.proof(STEAM_TICKET)
    assert "publisher" not in caught.value.detail


# Steam and PlayFab ------------------------------------------------------------------------------------------------


async def test_steam(elsewhere: Elsewhere, outside: Outside) -> None:
    provider = Steam({"web_api_key": "publisher", "app_id": 480}, outside, elsewhere.url)
    assert (await provider.proof(STEAM_TICKET)).ids == (STEAM_ID,)
    for ticket in ("AABB", "BA", "no hex", ""):
        with pytest.raises(Unauthorized):
            await provider.proof(ticket)
    with pytest.raises(Unauthorized):
        await Steam({"web_api_key": "wrong", "app_id": 480}, outside, elsewhere.url).proof(STEAM_TICKET)


async def test_playfab(elsewhere: Elsewhere, outside: Outside) -> None:
    server = PlayFab({"title_id": "AB12", "secret_key": "title-secret"}, outside, elsewhere.url)
    assert (await server.proof(PLAYFAB_TICKET)).ids == (PLAYFAB_ID, "E1")
    for ticket in ("broken", "old", "line\nbreak", "é"):
        with pytest.raises(Unauthorized):
            await server.proof(ticket)
    player = PlayFab({"title_id": "AB12"}, outside, elsewhere.url)
    assert (await player.proof(PLAYFAB_TICKET)).ids == (PLAYFAB_ID,)
    with pytest.raises(Unauthorized):
        await player.proof("guess")
    with pytest.raises(Unprocessable):
        PlayFab({"title_id": "evil.example/"}, outside)


# The service ------------------------------------------------------------------------------------------------------


def caller(auth: dict[str, Any] | None, kind: KeyKind = "client") -> Principal:
    return Principal("p", kind, "pro", 0.0, {"auth_config": auth})


@pytest.fixture
async def service(tmp_path: Path, elsewhere: Elsewhere) -> AsyncIterator[PlayerService]:
    def steam(auth: dict[str, Any], outside: Outside) -> Steam:
        return Steam(auth, outside, elsewhere.url)

    made = PlayerService(Sealer(tmp_path, "auth"), providers={"steam": steam, "custom_jwt": CustomJwt})
    yield made
    await made.close()


async def test_a_player_cannot_act_as_another(tmp_path: Path, service: PlayerService) -> None:
    stored = sealed(
        {"auth_config": {"provider": "custom_jwt", "secret": SECRET}}, Sealer(tmp_path, "auth"), Variables(tmp_path)
    )
    game = caller(stored["auth_config"])
    token = jwt.encode(claims(), SECRET, "HS256")
    await service.check(game, "anna", token)
    with pytest.raises(Forbidden, match="not of player 'berta'"):
        await service.check(game, "berta", token)
    for nothing in (None, ""):
        with pytest.raises(Unauthorized, match="x-player-token"):
            await service.check(game, "anna", nothing)
    with pytest.raises(Unauthorized, match="8192"):
        await service.check(game, "anna", "x" * 10_000)
    await service.check(caller(stored["auth_config"], "server"), "berta", None)


async def test_without_a_provider_players_are_believed(service: PlayerService) -> None:
    for auth in (None, {}, {"provider": "none"}):
        await service.check(caller(auth), "anna", None)
        await service.check(caller(auth), "anna", "anything")
    with pytest.raises(Unavailable):
        await service.check(caller({"provider": "unheard-of"}), "anna", "x")


async def test_a_provider_is_asked_once_for_many_calls(elsewhere: Elsewhere, service: PlayerService) -> None:
    game = caller({"provider": "steam", "web_api_key": "publisher", "app_id": 480})
    await asyncio.gather(*(service.check(game, STEAM_ID, STEAM_TICKET) for _ in range(20)))
    for _ in range(20):
        await service.check(game, STEAM_ID, STEAM_TICKET)
        with pytest.raises(FleetError):
            await service.check(game, STEAM_ID, "BA")
    assert elsewhere.asked == ["steam"] * 2
    changed = caller({"provider": "steam", "web_api_key": "wrong", "app_id": 480})
    with pytest.raises(Unauthorized):  # what the former settings accepted says nothing
        await service.check(changed, STEAM_ID, STEAM_TICKET)


def test_ids_of_players() -> None:
    good = ("a", STEAM_ID, "auth0|5f7c8ec7c33c6c004bbafe82", "a@b.example", "Player 1", "x" * 128, "/", "%")
    bad = ("", " a", "a ", "a\n", "\x00", "é", "x" * 129, "a\tb")
    assert all(map(is_player_id, good))
    assert not any(map(is_player_id, bad))
