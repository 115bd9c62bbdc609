"""A project's public keys, through the API: none is taken for a shared secret, and none is fetched from inside."""

import asyncio
import hashlib
import hmac
import json
import socket
import time
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from jwt.utils import base64url_encode

from fleet.players.outside import Outside
from tests.unit.api_kit import Api

SECRET = "a-secret-of-the-studio-that-is-long-enough" * 2
URL = "https://keys.example/jwks"
LOBBIES = "/api/v3/lobbies/default"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_JWK = RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True)
JWKS = {"keys": [RSA_JWK | {"kid": "rsa"}, ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True) | {"kid": "ec"}]}


def forms(key: Any) -> list[bytes]:
    """A public key as somebody might feed it into HMAC."""
    text = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    found = [text, text.strip(), key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)]
    found += [json.dumps(one).encode() for one in JWKS["keys"]]
    found += [json.dumps(one, separators=(",", ":")).encode() for one in JWKS["keys"]]
    return [*found, b"", str(RSA_JWK["n"]).encode()]


def forged(key: bytes, algorithm: str, kid: str) -> str:
    digest = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[algorithm]
    parts = [{"alg": algorithm, "kid": kid, "typ": "JWT"}, {"sub": "vic", "exp": int(time.time()) + 600}]
    signed = b".".join(base64url_encode(json.dumps(one).encode()) for one in parts)
    return (signed + b"." + base64url_encode(hmac.new(key, signed, digest).digest())).decode()


async def configure(api: Api, status: int = 200, **auth: Any) -> httpx.Response:
    body = {"auth_config": {"provider": "custom_jwt", **auth}}
    answer = await api.call("POST", "/api/v3/projects/settings", json=body)
    assert answer.status_code == status, answer.text
    return answer


async def acts(api: Api, token: str) -> int:
    headers = {"x-player-id": "vic", "x-player-token": token}
    return (await api.call("POST", f"{LOBBIES}/me/events-token", api.project.client_key, headers=headers)).status_code


@pytest.mark.parametrize("more", [{}, {"secret": SECRET}])
async def test_a_public_key_is_no_shared_secret_in_any_form(
    api: Api, monkeypatch: pytest.MonkeyPatch, more: dict[str, str]
) -> None:
    async def answered(_outside: Outside, _who: str, _method: str, url: str, **_: Any) -> tuple[int, Any]:
        assert url == URL
        return 200, JWKS

    monkeypatch.setattr(Outside, "ask", answered)
    await configure(api, jwks_url=URL, **more)
    claims = {"sub": "vic", "exp": int(time.time()) + 600}
    assert await acts(api, jwt.encode(claims, RSA_KEY, "RS256", headers={"kid": "rsa"})) == 200
    assert await acts(api, jwt.encode(claims, EC_KEY, "ES256", headers={"kid": "ec"})) == 200
    for public in (RSA_KEY.public_key(), EC_KEY.public_key()):
        for form in forms(public):
            for kid in ("rsa", "ec"):
                for algorithm in ("HS256", "HS384", "HS512"):
                    assert await acts(api, forged(form, algorithm, kid)) == 401
    assert await acts(api, jwt.encode(claims, EC_KEY, "ES256", headers={"kid": "rsa"})) == 401
    assert await acts(api, jwt.encode(claims, None, "none", headers={"kid": "rsa"})) == 401
    assert await acts(api, jwt.encode(claims, SECRET, "HS256")) == (200 if more else 401)


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "[::1]", "127.1", "10.0.0.1", "169.254.169.254", "a.localhost"]
)
async def test_keys_are_not_to_be_fetched_from_inside(api: Api, host: str) -> None:
    refused = await configure(api, 400, jwks_url=f"https://{host}:8443/jwks")
    assert refused.json()["error"] == "Bad URL"
    shown = await api.call("GET", "/api/v3/projects/settings")
    assert shown.json()["auth_config"] == {"provider": "none"}


async def test_a_name_that_turns_to_the_loopback_is_not_connected_to(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing arrives at the port behind it, and the player hears that the provider is away."""
    arrived: list[object] = []

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append(writer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await configure(api, jwks_url=f"https://rebound.example:{port}/jwks")
    look_up = socket.getaddrinfo

    def found(host: Any, *rest: Any, **named: Any) -> Any:
        return look_up("127.0.0.1" if host == "rebound.example" else host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    token = jwt.encode({"sub": "vic", "exp": int(time.time()) + 600}, RSA_KEY, "RS256", headers={"kid": "rsa"})
    assert await acts(api, token) == 503
    server.close()
    await server.wait_closed()
    assert arrived == []
