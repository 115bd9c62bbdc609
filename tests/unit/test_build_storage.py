"""What a project's builds may take of the fleet's disks: counted, refused with the figures, free again when deleted."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.builds import pipeline
from fleet.builds.images import FoundImage
from fleet.builds.pipeline import run_pipeline
from fleet.errors import Forbidden
from fleet.projects.plans import Plan, check_storage
from fleet.settings import FleetSettings
from tests.games import make_zip
from tests.unit.builds_kit import GAME, Builds, open_builds, prepare

MB = 1 << 20


@pytest.fixture
def settings(tmp_path: Path) -> FleetSettings:
    settings = prepare(tmp_path)
    plans = tmp_path / "plans.yaml"
    plans.write_text("plans: {pro: {storage_mb: 2}}\n")
    return settings.model_copy(update={"plans_config": plans})


@pytest.fixture
async def builds(settings: FleetSettings) -> AsyncIterator[Builds]:
    opened = await open_builds(settings)
    yield opened
    await opened.store.close()


def zip_of(size: int) -> bytes:
    """Packs well: what counts is what it unpacks to."""
    return make_zip({**GAME, "big": (bytes(size), 0o644)})


async def test_builds_fill_the_projects_share_and_give_it_back(builds: Builds) -> None:
    first = await builds.built(zip_of(MB + MB // 2))
    assert first.status == "ready", first.error
    second = await builds.built(zip_of(MB))
    assert second.status == "failed"
    assert second.error is not None
    assert "limited to 2 MB of builds. Your builds have 1.5 MB" in second.error
    assert builds.stored()["bundles"] == [first.content_hash]  # nothing is kept of it
    await builds.service.delete(builds.project, first.build_id)
    assert (await builds.built(zip_of(MB))).status == "ready"


async def test_a_full_share_takes_no_upload_and_no_image(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = await builds.service.request_upload(builds.project, "arena", None)
    first = await builds.built()
    await builds.change(first, unpacked_bytes=2 * MB)
    with pytest.raises(Forbidden, match=r"Your builds have 2\.0 MB and this one needs"):
        await builds.service.receive_upload(*builds.link(asked), _chunks(make_zip(GAME)))
    assert builds.stored()["uploads"] == []
    for ask in (
        builds.service.request_upload(builds.project, "arena", None),
        builds.service.docker_image(builds.project, "arena", "registry.test/game:1", None, None),
    ):
        with pytest.raises(Forbidden, match="limited to 2 MB"):
            await ask
    await builds.change(first, unpacked_bytes=0)

    async def large(*_arguments: object) -> FoundImage:
        return FoundImage("sha256:x", 3 * MB)

    monkeypatch.setattr(pipeline, "resolve_image", large)
    image = await builds.service.docker_image(builds.project, "image", "registry.test/game:1", None, None)
    await run_pipeline(image.build_id, builds.settings)
    assert (await builds.service.get(builds.project, image.build_id)).status == "failed"


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


@given(st.integers(0, 100), st.integers(0, 200 * MB), st.integers(0, 200 * MB))
def test_what_is_let_in_fits(limit_mb: int, used: int, more: int) -> None:
    try:
        check_storage(Plan(name="p", storage_mb=limit_mb), used, more)
    except Forbidden:
        fits = used + max(more, 1) <= limit_mb * MB
    else:
        fits = used + more > limit_mb * MB
    assert not fits
    check_storage(Plan(name="p"), used, more)
