"""docker_image builds against the real engine: which image a name means, and what is said when there is none."""

import asyncio
import gc
import io
import tarfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import aiodocker
import pytest
from aiohttp import web

from fleet.builds import images
from fleet.builds.images import ImageError, has_engine, is_final, resolve_image
from fleet.errors import Unavailable
from fleet.settings import FleetSettings

pytestmark = pytest.mark.docker


@pytest.fixture
async def engine() -> AsyncIterator[aiodocker.Docker]:
    try:
        docker = aiodocker.Docker()
        await docker.version()
    except (ValueError, OSError, aiodocker.DockerError):
        pytest.skip("no container engine answers here")
    async with docker:
        yield docker


async def make_image(docker: aiodocker.Docker, name: str, content: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        file = tarfile.TarInfo("content")
        file.size = len(content)
        archive.addfile(file, io.BytesIO(content))
    repo, _, tag = name.rpartition(":")
    params = {"fromSrc": "-", "repo": repo, "tag": tag}
    async with docker._query("images/create", "POST", params=params, data=buffer.getvalue()) as answer:
        await answer.read()


async def test_a_moved_tag_is_another_id(engine: aiodocker.Docker) -> None:
    name, ids = f"fleet-test-{uuid.uuid4().hex[:12]}:1", []
    try:
        for content in (b"one", b"two"):
            await make_image(engine, name, content)
            ids.append(await resolve_image(name, None))
        assert len(set(ids)) == 2
        assert all(found.startswith("sha256:") for found in ids)
        assert await resolve_image(name, {"username": "u", "password": "p"}) == ids[1]
    finally:
        for found in ids:
            await engine.images.delete(found, force=True)


@pytest.mark.usefixtures("engine")
async def test_an_image_that_cannot_be_had_is_said_without_its_login() -> None:
    with pytest.raises(Unavailable, match="could not be pulled") as caught:
        await resolve_image("127.0.0.1:1/none:1", {"username": "me", "password": "hunter2-secret"})
    assert "hunter2" not in caught.value.detail
    assert "registry_credentials" in caught.value.detail


async def test_an_engine_that_is_away_is_waited_for_where_one_is_expected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(Unavailable, match="engine"):
        await resolve_image("game:1", None)
    with pytest.raises(ImageError, match="engine"):
        await resolve_image("game:1", None, engine_expected=False)


def test_whether_an_engine_is_expected(tmp_path: Path) -> None:
    assert has_engine(FleetSettings(home=tmp_path))
    assert not has_engine(FleetSettings(home=tmp_path, runtime="process"))
    (tmp_path / "runtime.json").write_text('{"runtime":"process"}')
    assert not has_engine(FleetSettings(home=tmp_path))


@pytest.mark.parametrize(
    ("status", "message", "final"),
    [
        (404, "manifest for game:9 not found: manifest unknown", True),
        (500, "pull access denied for game, repository does not exist or may require 'docker login'", True),
        (500, "no matching manifest for linux/amd64 in the manifest list entries", True),
        (500, "Get https://registry.test/v2/: net/http: TLS handshake timeout", False),
        (500, "dial tcp 192.0.2.1:443: connect: connection refused", False),
        (429, "toomanyrequests: rate limit exceeded", False),
        (503, "received unexpected HTTP status: 503 Service Unavailable", False),
    ],
)
def test_what_a_registry_refuses_is_told_from_trouble_on_the_way(status: int, message: str, final: bool) -> None:
    assert is_final(status, message) == final


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # aiodocker drops its connection
async def test_a_pull_without_progress_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of an engine that takes the order and says nothing more; one that goes on saying something is let go on."""
    said = 0

    async def about(_request: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.44"})

    async def inspect(_request: web.Request) -> web.Response:
        return web.json_response({"message": "no such image"}, status=404)

    async def pull(request: web.Request) -> web.StreamResponse:
        nonlocal said
        answer = web.StreamResponse()
        await answer.prepare(request)
        for said in range(1, 6):  # noqa: B007
            await answer.write(b'{"status":"Downloading"}\n')
            await asyncio.sleep(0.1)
        await asyncio.sleep(3600)
        return answer

    app = web.Application()
    app.router.add_get("/version", about)
    app.router.add_get("/{version}/images/{name}/json", inspect)
    app.router.add_post("/{version}/images/create", pull)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "engine.sock")).start()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine.sock")
    monkeypatch.setattr(images, "NO_PROGRESS_S", 0.3)
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable, match="no progress"):
            await resolve_image("registry.test/game:1", None)
    await runner.cleanup()
    gc.collect()
    assert said == 5
