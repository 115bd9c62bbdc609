"""docker_image builds: which image a name means, who is asked for it, and what is said when there is none."""

import io
import tarfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import aiodocker
import pytest

from fleet.builds.image_names import ImageName, Registries
from fleet.builds.images import has_engine, is_local, resolve_image
from fleet.builds.registry import ImageError
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


def local(home: Path, **more: object) -> FleetSettings:
    return FleetSettings(home=home, local_images=["fleet-test-*"], **more)  # type: ignore[arg-type]


async def test_a_moved_tag_is_another_id(engine: aiodocker.Docker, tmp_path: Path) -> None:
    name, ids = f"fleet-test-{uuid.uuid4().hex[:12]}:1", []
    try:
        for content in (b"one", b"two"):
            await make_image(engine, name, content)
            ids.append((await resolve_image(name, None, local(tmp_path))).digest)
        assert len(set(ids)) == 2
        assert all(found.startswith("sha256:") for found in ids)
        assert (await resolve_image(name, {"username": "u", "password": "p"}, local(tmp_path))).digest == ids[1]
        with pytest.raises(ImageError, match="has no image"):
            await resolve_image("fleet-test-none:1", None, local(tmp_path))
    finally:
        for found in ids:
            await engine.images.delete(found, force=True)


@pytest.mark.parametrize("image", ["game:1", "fleet-build:x", "127.0.0.1:1/fleet-test-x:1", "x/fleet-test-x:1"])
def test_no_image_of_the_engine_is_everybodys_unless_the_operator_says_so(image: str) -> None:
    assert not is_local(image, [])
    assert not is_local(image, ["fleet-test-*"])


async def test_an_image_that_cannot_be_had_is_said_without_its_login(tmp_path: Path) -> None:
    settings = FleetSettings(home=tmp_path, registries=["http://127.0.0.1:1"])
    with pytest.raises(Unavailable, match="does not answer") as caught:
        await resolve_image("127.0.0.1:1/none:1", {"username": "me", "password": "hunter2-secret"}, settings)
    assert "hunter2" not in caught.value.detail


async def test_an_engine_that_is_away_is_waited_for_where_one_is_expected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(Unavailable, match="engine"):
        await resolve_image("fleet-test-x:1", None, local(tmp_path))
    for image in ("fleet-test-x:1", "registry.example.com/game:1"):
        with pytest.raises(ImageError, match="engine"):
            await resolve_image(image, None, local(tmp_path, runtime="process"))


def test_whether_an_engine_is_expected(tmp_path: Path) -> None:
    assert has_engine(FleetSettings(home=tmp_path))
    assert not has_engine(FleetSettings(home=tmp_path, runtime="process"))
    (tmp_path / "runtime.json").write_text('{"runtime":"process"}')
    assert not has_engine(FleetSettings(home=tmp_path))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("game:1", ("registry-1.docker.io", "library/game", "1")),
        ("studio/game:1", ("registry-1.docker.io", "studio/game", "1")),
        ("docker.io/studio/game:1", ("registry-1.docker.io", "studio/game", "1")),
        ("localhost/game:1", ("localhost", "game", "1")),
        ("registry.example.com:5000/a/b/c:1.4", ("registry.example.com:5000", "a/b/c", "1.4")),
        (f"ghcr.io/a/b@sha256:{'0' * 64}", ("ghcr.io", "a/b", f"sha256:{'0' * 64}")),
        (f"ghcr.io/a/b:1@sha256:{'0' * 64}", ("ghcr.io", "a/b", f"sha256:{'0' * 64}")),
    ],
)
def test_references_are_read_as_engines_read_them(text: str, name: tuple[str, str, str]) -> None:
    assert ImageName.parse(text) == ImageName(*name)


@pytest.mark.parametrize(
    ("url", "may"),
    [
        ("https://registry.example.com/v2/", True),
        ("https://registry.example.com:5000/v2/", True),
        ("http://registry.example.com/v2/", False),
        ("https://10.0.0.1/v2/", False),
        ("https://[::1]/v2/", False),
        ("https://169.254.169.254/latest", False),
        ("https://u:p@registry.example.com/", False),
        ("https://named.lan/v2/", True),
        ("http://named.lan/v2/", False),
        ("https://10.0.0.2:5000/v2/", True),
        ("https://10.0.0.2/v2/", False),
        ("http://plain.lan:5000/v2/", True),
        ("http://plain.lan:5001/v2/", False),
        ("http://plain.lan/v2/", False),
        ("ftp://named.lan/", False),
        ("https://x:99999/", False),
        ("", False),
    ],
)
def test_where_a_request_may_go(url: str, may: bool) -> None:
    named = Registries(["named.lan", "10.0.0.2:5000", "http://plain.lan:5000", "HTTPS://Other.lan/"])
    assert named.may_ask(url) == may
    assert named.may_ask("https://other.lan/v2/")
    assert named.url(ImageName.parse("plain.lan:5000/game:1")) == "http://plain.lan:5000/v2/game"
