"""What the engine pulls from: a registry on this machine's loopback that has one image, for as long as it is pulled.

It fetches from the real one by `fleet/builds/registry.py`, with the build's login and every address looked at. So the
engine goes nowhere by a stranger's word, and needs neither logins nor settings for private registries; what it has
already it does not fetch again. Nobody finds an image here without its name, which is random.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from fleet.builds.image_manifests import blobs_of
from fleet.builds.registry import DIGEST, ImageError, Registry
from fleet.errors import FleetError
from fleet.node.listening import stop_accepting

LOOPBACK = "127.0.0.1"  # engines need no TLS there
CHUNK = 256 << 10
SHUTDOWN_S = 1.0  # for pulls that are under way when the agent ends


@dataclass
class Offer:
    """One image on offer. `problem`: the first thing that went wrong with its registry, in our words."""

    registry: Registry
    blobs: dict[str, int] = field(default_factory=dict[str, int])
    problem: FleetError | None = None
    at_work: dict[asyncio.Task[Any], web.Request] = field(default_factory=dict[asyncio.Task[Any], web.Request])


class RegistryMirror:
    """Of one agent; listens from the first offer on."""

    def __init__(self) -> None:
        self._offers: dict[str, Offer] = {}
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._port = 0
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def offer(self, registry: Registry) -> AsyncGenerator[tuple[str, Offer]]:
        """The repository under which the engine finds it meanwhile (`127.0.0.1:port/name`)."""
        async with self._opening:  # two pulls may be the first
            await self._listen()
        name, made = secrets.token_hex(16), Offer(registry)
        self._offers[name] = made
        try:
            yield f"{LOOPBACK}:{self._port}/{name}", made
        finally:
            del self._offers[name]
            for task, request in tuple(made.at_work.items()):  # nobody reads on, so nothing waits to be read
                _abort(request)
                task.cancel()
            if made.at_work:
                await asyncio.wait(made.at_work, timeout=SHUTDOWN_S)

    async def close(self) -> None:
        if self._listener is not None:
            await stop_accepting(self._listener)
            self._listener = None
        if self._runner is not None:
            for connection in self._runner.server.connections if self._runner.server else ():
                if connection.transport is not None:  # closing would wait for an engine that may read no more
                    connection.transport.abort()
            await self._runner.cleanup()
            self._runner = None

    async def _listen(self) -> None:
        if self._runner is not None:
            return
        app = web.Application()
        app.router.add_get("/v2/", _there)
        app.router.add_get("/v2/{name}/manifests/{digest}", self._answer(self._manifest))
        app.router.add_get("/v2/{name}/blobs/{digest}", self._answer(self._blob))
        self._runner = runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        assert runner.server is not None
        self._listener = await asyncio.get_running_loop().create_server(runner.server, LOOPBACK, 0)
        self._port = int(self._listener.sockets[0].getsockname()[1])

    def _answer(
        self, work: Callable[[web.Request, Offer, str], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            offer, digest = self._offers.get(request.match_info["name"]), request.match_info["digest"]
            if offer is None or not DIGEST.fullmatch(digest):
                return _refusal(404)
            task = asyncio.current_task()
            assert task is not None
            offer.at_work[task] = request
            try:
                return await work(request, offer, digest)
            except FleetError as problem:
                offer.problem = offer.problem or problem
                return _refusal(404 if isinstance(problem, ImageError) else 502)
            finally:
                offer.at_work.pop(task, None)

        return answer

    async def _manifest(self, _request: web.Request, offer: Offer, digest: str) -> web.Response:
        found = await offer.registry.manifest(digest)
        content = found.read()
        if "manifests" not in content:
            offer.blobs |= blobs_of(content)
        headers = {"Content-Type": found.media_type, "Docker-Content-Digest": digest}
        return web.Response(body=found.content, headers=headers)

    async def _blob(self, request: web.Request, offer: Offer, digest: str) -> web.StreamResponse:
        size = offer.blobs.get(digest)
        if size is None:  # no part of this image
            return _refusal(404)
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}
        if request.method == "HEAD":
            return web.Response(headers=headers | {"Content-Length": str(size)})
        answer = web.StreamResponse(headers=headers)
        try:
            async with offer.registry.blob(digest, request.headers.get("Range")) as source:
                answer.set_status(source.status)
                if "Content-Range" in source.headers:
                    answer.headers["Content-Range"] = source.headers["Content-Range"]
                await _copy(source, answer, request, size)
        except FleetError as problem:
            if not answer.prepared:
                raise
            offer.problem = offer.problem or problem
            _abort(request)  # so that the engine sees that it is not whole
        return answer


async def _copy(source: aiohttp.ClientResponse, answer: web.StreamResponse, request: web.Request, most: int) -> None:
    await answer.prepare(request)
    async for chunk in source.content.iter_chunked(CHUNK):
        most -= len(chunk)
        if most < 0:
            raise ImageError("The registry sends more than the image's manifest says.")
        await answer.write(chunk)
    await answer.write_eof()


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def _there(_request: web.Request) -> web.Response:
    return web.json_response({}, headers={"Docker-Distribution-Api-Version": "registry/2.0"})


def _refusal(status: int) -> web.Response:
    return web.json_response({"errors": [{"code": "UNKNOWN", "message": "not to be had"}]}, status=status)
