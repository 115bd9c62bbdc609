"""Images of a real registry: who may read one proves it himself, and nobody makes the fleet call places inside."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from fleet.builds.image_names import ImageName, Registries
from fleet.builds.images import resolve_image
from fleet.builds.registry import ImageError, Registry
from fleet.errors import Unavailable
from fleet.node.docker import DockerRuntime
from fleet.node.engine import Engine, EngineError
from fleet.node.image_cache import image_key, pulled_name
from fleet.node.registry_mirror import RegistryMirror
from fleet.node.runtime import BuildRef, EngineUnavailable, LaunchFailed, RuntimePlace
from fleet.settings import FleetSettings, ImageLimits
from tests.contract.runtime_stage import engine_problem
from tests.registry import LOGIN, RealRegistry, real_registry

WRONG = {"username": "studio", "password": "wrong"}
BODY = "SECRET-of-the-inner-service"


# A real registry, a real engine -----------------------------------------------------------------------------------


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    if problem := await asyncio.to_thread(engine_problem):
        pytest.skip(f"no container engine: {problem}")
    engine = Engine()
    yield engine
    await engine.close()


@pytest.fixture
async def image(engine: Engine) -> AsyncIterator[str]:
    """Of nobody else, so that nothing of it is in the engine but by this test."""
    tag = next(
        tag
        for entry in await engine.call("GET", "/images/json")
        for tag in entry["RepoTags"] or []
        if tag.startswith("fleet-base:")
    )
    name, run = f"test-registry-{secrets.token_hex(4)}", f"head -c 300000 /dev/urandom > /srv/{secrets.token_hex(4)}"
    body = {"Image": tag, "User": "0", "Cmd": ["sh", "-c", f"mkdir -p /srv; {run}"]}
    created = await engine.call("POST", "/containers/create", json=body)
    await engine.call("POST", f"/containers/{created['Id']}/start")
    await engine.call("POST", f"/containers/{created['Id']}/wait")
    config = {"Entrypoint": ["sleep"], "Cmd": ["60"]}
    await engine.call("POST", "/commit", params={"container": created["Id"], "repo": name, "tag": "1"}, json=config)
    await engine.call("DELETE", f"/containers/{created['Id']}", params={"force": "1"})
    yield f"{name}:1"
    await forget(engine, f"{name}:1")


async def forget(engine: Engine, name: str) -> None:
    with suppress(EngineError):
        await engine.call("DELETE", f"/images/{name}", params={"force": "1"})


@pytest.fixture
async def private(tmp_path: Path, engine: Engine, image: str) -> AsyncIterator[tuple[RealRegistry, str]]:
    """A registry with a login that has the image, which the engine itself has no more; and the image's name there."""
    async with real_registry(tmp_path / "registry", login=True) as registry:
        name = await registry.push(engine, image, f"studio/game-{secrets.token_hex(4)}")
        await forget(engine, image)
        yield registry, name


def settings_of(folder: Path, *registries: str, **more: Any) -> FleetSettings:
    return FleetSettings(home=folder, registries=list(registries), **more)


@asynccontextmanager
async def runtime_of(settings: FleetSettings) -> AsyncIterator[DockerRuntime]:
    place = RuntimePlace(
        f"t{secrets.token_hex(4)}",
        "us-east",
        settings.home / "servers",
        settings.home / "bundles",
        registries=tuple(settings.registries),
        image_limits=settings.image_limits,
    )
    runtime = DockerRuntime(place)
    await runtime.start()
    try:
        yield runtime
    finally:
        await runtime.close()


def build_of(image: str, digest: str, packed: int, credentials: dict[str, str] | None) -> BuildRef:
    build_id = f"b{secrets.token_hex(6)}"
    return BuildRef(build_id, "image", digest, image=image, credentials=credentials, packed_bytes=packed)


async def remove_build(engine: Engine, build: BuildRef) -> None:
    key = image_key(build.image or "", build.content_hash or "")
    for name in (f"fleet-build:{build.build_id}", pulled_name(key)):
        await forget(engine, name)


async def has(engine: Engine, name: str) -> bool:
    try:
        await engine.call("GET", f"/images/{name}/json")
    except EngineError:
        return False
    return True


async def test_an_image_that_is_on_the_node_needs_the_login_all_the_same(
    tmp_path: Path, engine: Engine, private: tuple[RealRegistry, str]
) -> None:
    registry, name = private
    settings = settings_of(tmp_path, f"http://{registry.host}")
    found = await resolve_image(name, LOGIN, settings)
    assert found.packed_bytes > 300_000
    build = build_of(name, found.digest, found.packed_bytes, LOGIN)
    async with runtime_of(settings) as runtime:
        await runtime.prepare(build)
        assert await has(engine, pulled_name(image_key(name, found.digest)))
        for stranger in (None, WRONG):
            with pytest.raises(ImageError, match="registry_credentials"):
                await resolve_image(name, stranger, settings)
        # Nor by another name for it: who knows the digest has not read the image.
        other = build_of(name.replace("studio/", "other/"), found.digest, found.packed_bytes, WRONG)
        with pytest.raises(LaunchFailed, match="registry_credentials"):
            await runtime.prepare(other)
        again = build_of(name, found.digest, found.packed_bytes, LOGIN)
        await runtime.prepare(again)  # who may read it shares it
    await remove_build(engine, build)
    await remove_build(engine, again)
    mentioned = json.dumps(await engine.call("GET", "/images/json"))
    assert registry.host not in mentioned  # the engine knows no registry,
    assert "127.0.0.1:" not in mentioned  # and nothing of ours under a name that is gone


async def test_a_tag_that_moves_changes_no_build(
    tmp_path: Path, engine: Engine, private: tuple[RealRegistry, str]
) -> None:
    registry, name = private
    settings = settings_of(tmp_path, f"http://{registry.host}")
    first = await resolve_image(name, LOGIN, settings)
    base = next(t for i in await engine.call("GET", "/images/json") for t in i["RepoTags"] or [] if "fleet-base" in t)
    await registry.push(engine, base, name.partition("/")[2].rpartition(":")[0])
    second = await resolve_image(name, LOGIN, settings)
    assert first.digest != second.digest
    assert (await resolve_image(f"{name.rpartition(':')[0]}@{first.digest}", LOGIN, settings)) == first


async def test_a_registry_without_login_is_asked_by_name_only_if_the_operator_names_it(
    tmp_path: Path, engine: Engine, image: str
) -> None:
    async with real_registry(tmp_path / "registry", login=False) as registry:
        name = await registry.push(engine, image, "game")
        found = await resolve_image(name, None, settings_of(tmp_path, f"http://{registry.host}"))
        assert found.digest.startswith("sha256:")
        for host in (registry.host, registry.host.replace("127.0.0.1", "localhost")):
            with pytest.raises(ImageError, match="FLEET_REGISTRIES"):
                await resolve_image(f"{host}/game:1", None, settings_of(tmp_path))
        with pytest.raises(ImageError, match="no such image"):
            await resolve_image(f"{registry.host}/none:1", None, settings_of(tmp_path, f"http://{registry.host}"))
        # One that is named with TLS is never spoken to without.
        with pytest.raises(Unavailable, match="does not answer"):
            await resolve_image(name, LOGIN, settings_of(tmp_path, registry.host))


async def test_images_that_no_build_needs_go_when_the_disk_is_needed(
    tmp_path: Path, engine: Engine, private: tuple[RealRegistry, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, name = private
    limits = ImageLimits(max_gb=0.000001, min_free_percent=0)
    settings = settings_of(tmp_path, f"http://{registry.host}", image_limits=limits)
    found = await resolve_image(name, LOGIN, settings)
    build = build_of(name, found.digest, found.packed_bytes, LOGIN)
    async with runtime_of(settings) as runtime:
        await runtime.prepare(build)
        cache = runtime._images.cache
        assert await cache.make_room() == []  # it has just come
        monkeypatch.setattr("fleet.node.image_cache.FRESH_S", -1.0)
        monkeypatch.setattr("fleet.builds.bundle_cache.FRESH_S", -1.0)
        body = {"Image": f"fleet-build:{build.build_id}"}
        container = await engine.call("POST", "/containers/create", json=body)
        assert await cache.make_room() == []  # a server has it
        await engine.call("DELETE", f"/containers/{container['Id']}")
        key = image_key(name, found.digest)
        assert await cache.make_room() == [key]
        assert not await has(engine, pulled_name(key))
        assert not await has(engine, f"fleet-build:{build.build_id}")
        monkeypatch.undo()
        runtime._images.forget(build)
        await runtime.prepare(build)  # and it comes again when it is wanted
    await remove_build(engine, build)


async def test_an_image_that_is_too_large_is_not_kept(
    tmp_path: Path, engine: Engine, private: tuple[RealRegistry, str]
) -> None:
    registry, name = private
    settings = settings_of(tmp_path, f"http://{registry.host}")
    found = await resolve_image(name, LOGIN, settings)
    build = build_of(name, found.digest, found.packed_bytes, LOGIN)
    small = settings_of(tmp_path, f"http://{registry.host}", image_limits=ImageLimits(max_image_gb=0.001))
    with pytest.raises(ImageError, match="MB unpacked are allowed"):
        await resolve_image(name, LOGIN, small)
    async with runtime_of(small) as runtime:
        with pytest.raises(LaunchFailed, match="MB unpacked"):
            await runtime.prepare(build)
    assert not await has(engine, pulled_name(image_key(name, found.digest)))


async def test_a_pull_ends_when_the_disk_runs_out(
    tmp_path: Path, private: tuple[RealRegistry, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, name = private
    settings = settings_of(tmp_path, f"http://{registry.host}")
    found = await resolve_image(name, LOGIN, settings)
    build = build_of(name, found.digest, found.packed_bytes, LOGIN)
    async with runtime_of(settings) as runtime:
        monkeypatch.setattr(runtime._images.cache, "short", lambda: 1)
        with pytest.raises(EngineUnavailable, match="no room for the image"):
            await runtime.prepare(build)


# Registries that mean harm ----------------------------------------------------------------------------------------


@dataclass
class Peer:
    """Something that speaks HTTP on the loopback, and what it was asked."""

    host: str = ""
    asked: list[str] = field(default_factory=list[str])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])


@asynccontextmanager
async def peer(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[Peer]:
    seen = Peer()

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.asked.append(request.path)
        seen.headers.append(dict(request.headers))
        return await answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    seen.host = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield seen
    finally:
        await runner.cleanup()


async def secret(_request: web.Request) -> web.Response:
    return web.json_response({"token": BODY, "errors": [{"message": BODY}]})


async def test_neither_redirects_nor_token_services_lead_inside(tmp_path: Path) -> None:
    """Of a registry that the operator trusts, or that has a public address: where it sends us is looked at again."""
    async with peer(secret) as inside:
        places = [f"http://{inside.host}/x", f"https://{inside.host}/x", "http://169.254.169.254/latest/meta-data/"]
        places += [f"https://localhost:{inside.host.partition(':')[2]}/x", "file:///etc/passwd", "gopher://x", ""]
        for place in places:

            async def redirect(_request: web.Request, place: str = place) -> web.Response:
                return web.Response(status=307, headers={"Location": place})

            async def realm(_request: web.Request, place: str = place) -> web.Response:
                challenge = f'Bearer realm="{place}",service="x",scope="y"'
                return web.Response(status=401, headers={"WWW-Authenticate": challenge})

            for answer in (redirect, realm):
                async with peer(answer) as registry:
                    settings = settings_of(tmp_path, f"http://{registry.host}")
                    with pytest.raises(ImageError):
                        await resolve_image(f"{registry.host}/game:1", LOGIN, settings)
        assert inside.asked == []


async def test_a_login_is_told_to_nobody_else(tmp_path: Path) -> None:
    """A registry with basic logins redirects to another host that the operator has named too."""
    async with peer(secret) as other:

        async def answer(request: web.Request) -> web.Response:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
            return web.Response(status=302, headers={"Location": f"http://{other.host}/blob"})

        async with peer(answer) as registry:
            settings = settings_of(tmp_path, f"http://{registry.host}", f"http://{other.host}")
            with pytest.raises(ImageError):
                await resolve_image(f"{registry.host}/game:1", LOGIN, settings)
        assert other.asked == ["/blob"]
        assert "Authorization" not in other.headers[0]


@pytest.mark.parametrize("status", [200, 204, 400, 401, 403, 404, 418, 429, 500, 503])
async def test_what_a_peer_says_is_in_no_error(tmp_path: Path, status: int) -> None:
    async def answer(_request: web.Request) -> web.Response:
        headers = {"WWW-Authenticate": f'Digest realm="{BODY}"', "X-Secret": BODY}
        return web.Response(status=status, text=BODY if status != 204 else None, headers=headers, reason=BODY)

    async with peer(answer) as registry:
        with pytest.raises((ImageError, Unavailable)) as caught:
            await resolve_image(f"{registry.host}/game:1", LOGIN, settings_of(tmp_path, f"http://{registry.host}"))
    assert "SECRET" not in caught.value.detail
    assert isinstance(caught.value, Unavailable) == (status in (429, 500, 503))


def manifest(**changes: Any) -> dict[str, Any]:
    layer = {"digest": f"sha256:{'a' * 64}", "size": 10}
    return {"schemaVersion": 2, "config": {"digest": f"sha256:{'b' * 64}", "size": 5}, "layers": [layer]} | changes


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (manifest(layers=[{"digest": f"sha256:{'a' * 64}", "size": 10, "urls": ["http://a.test/"]}]), "elsewhere"),
        (manifest(layers=[{"digest": "sha256:../../x", "size": 10}]), "no image manifest"),
        (manifest(layers=[{"digest": f"sha256:{'a' * 64}", "size": -1}]), "elsewhere"),
        (manifest(layers="x"), "no image manifest"),
        (manifest(layers=[{"digest": f"sha256:{'a' * 64}", "size": 1 << 50}]), "unpacked are allowed"),
        ({"schemaVersion": 1, "fsLayers": []}, "too old"),
        ({"manifests": [{"platform": {"os": "windows", "architecture": "amd64"}}]}, "nothing for linux"),
        ({"manifests": [7]}, "no image manifest"),
        ([], "no image manifest"),
        ("x" * (5 << 20), "too long"),
    ],
)  # fmt: skip
async def test_manifests_that_are_refused(tmp_path: Path, content: Any, why: str) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response(content)

    async with peer(answer) as registry:
        with pytest.raises(ImageError, match=why):
            await resolve_image(f"{registry.host}/game:1", None, settings_of(tmp_path, f"http://{registry.host}"))


async def test_a_layer_without_end_is_cut_off(tmp_path: Path, engine: Engine) -> None:
    """What a manifest says of sizes holds: the engine gets no byte more."""
    sent = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        if "/manifests/" in request.path:
            return web.Response(
                body=json.dumps(manifest(mediaType="application/vnd.docker.distribution.manifest.v2+json")).encode(),
                content_type="application/vnd.docker.distribution.manifest.v2+json",
            )
        stream = web.StreamResponse()
        await stream.prepare(request)
        with suppress(ConnectionError):
            while sent < 200 << 20:
                await stream.write(b"x" * (1 << 20))
                sent += 1 << 20
        return stream

    async with peer(answer) as registry:
        settings = settings_of(tmp_path, f"http://{registry.host}")
        name = f"{registry.host}/game:1"
        found = await resolve_image(name, None, settings)
        async with runtime_of(settings) as runtime:
            with pytest.raises(LaunchFailed, match=r"more than the image's manifest says|not what its manifest says"):
                await runtime.prepare(build_of(name, found.digest, found.packed_bytes, None))
    assert sent < 200 << 20


async def test_a_mirror_has_only_what_is_on_offer(tmp_path: Path) -> None:
    """And only while it is: its names are random, and end with the pull."""
    digest, mirror = f"sha256:{'a' * 64}", RegistryMirror()

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 10) if "/blobs/" in request.path else web.json_response(manifest())

    async with peer(answer) as source, aiohttp.ClientSession() as http:

        async def ask(base: str, path: str) -> int:
            async with http.get(f"http://{base.replace('/', '/v2/', 1)}/{path}") as seen:
                await seen.read()
                return seen.status

        registries = Registries([f"http://{source.host}"])
        async with Registry(ImageName.parse(f"{source.host}/game:1"), None, registries) as registry:
            async with mirror.offer(registry) as (base, offer):
                assert await ask(base, f"blobs/{digest}") == 404  # nobody has said yet that it is part of the image
                offer.blobs[digest] = 10
                assert await ask(base, f"blobs/{digest}") == 200
                assert await ask(base, "manifests/latest") == 404
                assert await ask(f"{base[:-32]}{'0' * 32}", f"blobs/{digest}") == 404
            assert await ask(base, f"blobs/{digest}") == 404
    await mirror.close()
