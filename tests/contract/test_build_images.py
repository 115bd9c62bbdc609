"""docker_image builds against the real engine: which image a name means, and what is said when there is none."""

import io
import tarfile
import uuid
from collections.abc import AsyncIterator

import aiodocker
import pytest

from fleet.builds.images import ImageError, resolve_image

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
    with pytest.raises(ImageError, match="could not be pulled") as caught:
        await resolve_image("127.0.0.1:1/none:1", {"username": "me", "password": "hunter2-secret"})
    assert "hunter2" not in caught.value.detail
    assert "registry_credentials" in caught.value.detail


async def test_no_engine_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(ImageError, match="engine"):
        await resolve_image("game:1", None)
