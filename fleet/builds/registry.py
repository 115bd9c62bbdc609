"""A registry's API, asked by ourselves with one build's login: what may be read, where it leads, how large it is.

The engine never speaks with a registry: it would go wherever a stranger's registry sends it. Every address that is
connected to is looked at when the socket is made, that of the registry, of its token service and of each redirect
(`fleet/events/targets.py`). What peers say is never repeated: errors are ours, by kind.
"""

import base64
import hashlib
import re
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode, urljoin

import aiohttp
import orjson

from fleet.builds.image_names import ImageName, Registries, authority
from fleet.errors import FleetError, Unavailable
from fleet.events.targets import ForbiddenTarget, guarded_socket

CONNECT_S = 10.0
SILENCE_S = 30.0  # between two parts of an answer
LONGEST_MANIFEST, LONGEST_TOKEN = 4 << 20, 1 << 20
MOST_REDIRECTS = 5
_ACCEPT = ", ".join(
    [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ]
)
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CERTIFICATES = Path("/etc/docker/certs.d")  # where engines have those of private registries


class ImageError(FleetError):
    status = 422
    error = "Image not available"


@dataclass(frozen=True, slots=True)
class Manifest:
    """As the registry sent it; `digest` is that of `content`."""

    content: bytes
    media_type: str
    digest: str

    def read(self) -> dict[str, Any]:
        """Its JSON object."""
        try:
            found = orjson.loads(self.content)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise ImageError("The registry's answer is no image manifest.")
        return cast(dict[str, Any], found)


class Registry:
    """One image's repository, asked with one login. An async context manager.

    `ImageError`: what asking again cannot mend. `Unavailable`: what may pass.
    """

    def __init__(
        self,
        name: ImageName,
        credentials: dict[str, str] | None,
        registries: Registries,
        *,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._name, self._credentials, self._registries = name, credentials, registries
        self._base = registries.url(name)
        self._silence_s = silence_s
        self._authorization: dict[str, str] = {}
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> "Registry":
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def manifest(self, reference: str) -> Manifest:
        """That of a tag or digest. If it can be had, this login may read the image."""
        async with self._ask(f"manifests/{reference}", {"Accept": _ACCEPT}) as answer:
            content = await _bounded(answer, LONGEST_MANIFEST)
            media_type = answer.content_type
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if DIGEST.fullmatch(reference) and reference != digest:
            raise ImageError("The registry sent something else than what the digest names.")
        return Manifest(content, media_type, digest)

    @asynccontextmanager
    async def blob(self, digest: str, part: str | None = None) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Its bytes; `part` is a Range header."""
        async with self._ask(f"blobs/{digest}", {"Range": part} if part else {}) as answer:
            yield answer

    @asynccontextmanager
    async def _ask(self, path: str, headers: dict[str, str]) -> AsyncGenerator[aiohttp.ClientResponse]:
        with _our_words(self._name.host):
            answer = await self._open(f"{self._base}/{path}", headers)
            if answer.status == 401:
                challenge = answer.headers.get("www-authenticate", "")
                answer.close()
                await self._log_in(challenge)
                answer = await self._open(f"{self._base}/{path}", headers)
            try:
                self._check(answer.status)
                yield answer
            finally:
                answer.close()

    async def _open(self, url: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """The answer at the end of all redirects."""
        home = authority(url)
        for _ in range(MOST_REDIRECTS + 1):
            if not self._registries.may_ask(url):
                raise _forbidden()
            login = self._authorization if authority(url) == home else {}
            session = self._session(self._registries.is_named(url))
            answer = await session.get(url, headers=headers | login, allow_redirects=False, ssl=_trust(url))
            if answer.status not in (301, 302, 303, 307, 308):
                return answer
            answer.close()
            url = urljoin(url, answer.headers.get("location", ""))
        raise ImageError("The registry redirects without end.")

    def _session(self, named: bool) -> aiohttp.ClientSession:
        if named not in self._sessions:
            connector = aiohttp.TCPConnector(limit=8, socket_factory=None if named else guarded_socket(()))
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self._silence_s)
            self._sessions[named] = aiohttp.ClientSession(
                connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        return self._sessions[named]

    async def _log_in(self, challenge: str) -> None:
        kind, _, rest = challenge.partition(" ")
        parameters = dict(_PARAMETER.findall(rest))
        if kind.lower() == "basic" and self._credentials:
            self._authorization = self._basic()
            return
        if kind.lower() != "bearer" or "realm" not in parameters:
            raise _denied(self._name.host)
        query = {"scope": f"repository:{self._name.repository}:pull"}
        if "service" in parameters:
            query["service"] = parameters["service"]
        realm = parameters["realm"]
        self._authorization = self._basic() if self._credentials else {}
        answer = await self._open(f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}", {})
        try:
            self._check(answer.status)
            told: Any = orjson.loads(await _bounded(answer, LONGEST_TOKEN))
        finally:
            answer.close()
        fields = cast(dict[str, Any], told) if isinstance(told, dict) else {}
        token = fields.get("token") or fields.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise _denied(self._name.host)
        self._authorization = {"Authorization": f"Bearer {token}"}

    def _basic(self) -> dict[str, str]:
        login = self._credentials or {}
        text = f"{login.get('username', '')}:{login.get('password', '')}"
        return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}

    def _check(self, status: int) -> None:
        if status in (401, 403):
            raise _denied(self._name.host)
        if status == 404:
            raise ImageError(f"The registry {self._name.host} has no such image. Check its name and tag.")
        if status == 429 or status >= 500:
            raise Unavailable(f"The registry {self._name.host} is busy or has a fault.")
        if status not in (200, 206):
            raise ImageError(f"{self._name.host} does not answer as a registry does.")


class _our_words:
    """Whatever goes wrong on the way, said without a word of the peer's."""

    def __init__(self, host: str) -> None:
        self._host = host

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None or isinstance(error, FleetError):
            return
        inner = getattr(error, "os_error", error)
        if isinstance(inner, ForbiddenTarget):
            raise _forbidden() from error
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            raise ImageError(f"The certificate of the registry {self._host} is not valid.") from error
        if isinstance(error, aiohttp.InvalidURL | orjson.JSONDecodeError):
            raise ImageError(f"{self._host} does not answer as a registry does.") from error
        if isinstance(error, aiohttp.ClientError | TimeoutError | OSError):
            raise Unavailable(f"The registry {self._host} does not answer.") from error


async def _bounded(answer: aiohttp.ClientResponse, most: int) -> bytes:
    content = bytearray()
    async for chunk in answer.content.iter_any():
        content += chunk
        if len(content) > most:
            raise ImageError("The registry's answer is too long.")
    return bytes(content)


def _trust(url: str) -> ssl.SSLContext | bool:
    """Also the certificates that this machine's engine trusts for that registry."""
    folder = _CERTIFICATES / authority(url)
    files = sorted(folder.glob("*.crt")) if folder.is_dir() else []
    if not files:
        return True
    context = ssl.create_default_context()
    for file in files:
        context.load_verify_locations(file)
    return context


def _denied(host: str) -> ImageError:
    return ImageError(
        f"The registry {host} does not let this build read the image: check its name and registry_credentials. "
        "An image that others have on this fleet's machines needs the login all the same."
    )


def _forbidden() -> ImageError:
    return ImageError(
        "The registry leads to an address that is not public, or does not use TLS. The operator of the fleet can name "
        "private registries in FLEET_REGISTRIES."
    )
