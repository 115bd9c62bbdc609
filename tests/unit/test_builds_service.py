"""The build service: numbering, uploads that break off or collide, resolving, expiry, recovery, deletion."""

import asyncio
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.builds.pipeline import run_pipeline
from fleet.builds.secrets import registry_credentials, sign_upload, verify_upload
from fleet.errors import BadRequest, Conflict, Forbidden, NotFound, PayloadTooLarge
from fleet.sealing import fleet_secret
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from fleet.store.tables import Build
from fleet.times import now_ms
from tests.games import make_zip
from tests.unit.builds_kit import GAME, NOTHING, Builds, open_builds, prepare, stream


@pytest.fixture
def settings(tmp_path: Path) -> FleetSettings:
    return prepare(tmp_path, max_packed_mb=8)


@pytest.fixture
async def builds(settings: FleetSettings) -> AsyncIterator[Builds]:
    opened = await open_builds(settings)
    yield opened
    await opened.store.close()


async def test_versions_count_per_name_without_gaps_however_many_ask_at_once(builds: Builds) -> None:
    asked = [builds.service.request_upload(builds.project, name, None) for name in ["a", "b"] * 10]
    rows = await asyncio.gather(*asked)
    assert sorted((r.name, r.version) for r in rows) == [(n, v) for n in "ab" for v in range(1, 11)]


def test_a_signature_holds_for_one_build_and_time() -> None:
    secret, good = b"s" * 32, sign_upload(b"s" * 32, "id", 100)
    verify_upload(secret, "id", 100, good, 100.0)
    for build_id, expires, signature in [("other", 100, good), ("id", 101, good), ("id", 100, "é"), ("id", 100, "")]:
        with pytest.raises(Forbidden, match="not valid"):
            verify_upload(secret, build_id, expires, signature, 0.0)
    with pytest.raises(Forbidden, match="expired"):
        verify_upload(secret, "id", 100, good, 100.1)


def test_the_secret_is_private_and_the_same_for_all(tmp_path: Path) -> None:
    first = fleet_secret(tmp_path)
    fleet_secret.cache_clear()
    assert fleet_secret(tmp_path) == first
    assert len(first) == 32
    assert [(p.name, stat.S_IMODE(p.stat().st_mode)) for p in tmp_path.iterdir()] == [("secret.key", 0o600)]


async def test_a_transfer_that_breaks_off_changes_nothing_and_may_be_repeated(builds: Builds) -> None:
    build = await builds.service.request_upload(builds.project, "a", None)

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 5_000_000
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await builds.service.receive_upload(*builds.link(build), broken())
    assert builds.stored() == NOTHING
    assert (await builds.service.get(builds.project, build.build_id)).status == "uploading"
    await builds.service.receive_upload(*builds.link(build), stream(b"whole"))
    assert builds.submitted == [build.build_id]
    with pytest.raises(Conflict):
        await builds.service.receive_upload(*builds.link(build), stream(b"again"))


async def test_a_link_holds_for_its_time_though_the_clock_was_set_ahead(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = await builds.service.request_upload(builds.project, "a", None)
    ahead = time.time() + builds.settings.upload.url_ttl_s + 3600
    monkeypatch.setattr(time, "time", lambda: ahead)
    await builds.service.receive_upload(*builds.link(build), stream(b"whole"))
    assert builds.submitted == [build.build_id]


async def test_a_cancelled_transfer_leaves_nothing(builds: Builds) -> None:
    build = await builds.service.request_upload(builds.project, "a", None)
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"x"
        begun.set()
        await asyncio.Event().wait()

    transfer = asyncio.create_task(builds.service.receive_upload(*builds.link(build), endless()))
    await begun.wait()
    transfer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await transfer
    assert builds.stored() == NOTHING
    await builds.service.receive_upload(*builds.link(build), stream(b"whole"))


async def test_one_transfer_at_a_time(builds: Builds) -> None:
    build = await builds.service.request_upload(builds.project, "a", None)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"first "
        begun.set()
        await go_on.wait()
        yield b"wins"

    transfer = asyncio.create_task(builds.service.receive_upload(*builds.link(build), slow()))
    await begun.wait()
    with pytest.raises(Conflict, match="under way"):
        await builds.service.receive_upload(*builds.link(build), stream(b"second"))
    with pytest.raises(Conflict):
        await builds.service.process(builds.project, build.build_id, None)
    await builds.change(build, upload_expires_at=now_ms() - 1)
    assert await builds.service.expire_uploads() == 0
    go_on.set()
    await transfer
    assert (builds.settings.artefacts / "uploads" / f"{build.build_id}.zip").read_bytes() == b"first wins"


async def test_a_second_upload_cannot_change_what_is_being_processed(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins when the first is whole on disk and not yet committed."""
    build = await builds.service.request_upload(builds.project, "a", None)
    outcome: list[BaseException] = []
    enter = Store.write

    def write(store: Store) -> object:
        transaction = enter(store)

        class Paused:
            async def __aenter__(self) -> object:
                if not outcome:
                    try:
                        await asyncio.wait_for(
                            builds.service.receive_upload(*builds.link(build), stream(b"other")), timeout=20
                        )
                    except Conflict as error:
                        outcome.append(error)
                return await transaction.__aenter__()

            async def __aexit__(self, *raised: object) -> object:
                return await transaction.__aexit__(*raised)  # type: ignore[arg-type]

        return Paused()

    monkeypatch.setattr(Store, "write", write)
    await builds.service.receive_upload(*builds.link(build), stream(b"mine"))
    assert len(outcome) == 1
    assert (builds.settings.artefacts / "uploads" / f"{build.build_id}.zip").read_bytes() == b"mine"


async def test_a_build_deleted_during_its_upload_leaves_nothing(builds: Builds) -> None:
    build = await builds.service.request_upload(builds.project, "a", None)

    async def overtaken() -> AsyncIterator[bytes]:
        yield b"x"
        await builds.service.delete(builds.project, build.build_id)
        await run_pipeline(build.build_id, builds.settings)

    with pytest.raises(NotFound):
        await builds.service.receive_upload(*builds.link(build), overtaken())
    assert builds.stored() == NOTHING


@pytest.mark.parametrize(("content", "error"), [(b"x" * (9 << 20), PayloadTooLarge), (b"", BadRequest)])
async def test_too_much_or_nothing_is_refused(builds: Builds, content: bytes, error: type[Exception]) -> None:
    build = await builds.service.request_upload(builds.project, "a", None)
    with pytest.raises(error):
        await builds.service.receive_upload(*builds.link(build), stream(content))
    assert builds.stored() == NOTHING


async def test_losing_the_pipelines_start_does_not_fail_the_upload(builds: Builds) -> None:
    def unreachable(_build_id: str) -> None:
        raise ConnectionError("no cluster")

    builds.service._submit = unreachable
    build = await builds.upload(b"zip")
    assert (await builds.service.get(builds.project, build.build_id)).status == "processing"


async def test_process_is_idempotent_and_says_what_is_missing(builds: Builds) -> None:
    build = await builds.service.request_upload(builds.project, "a", None)
    with pytest.raises(Conflict, match="PUT the ZIP"):
        await builds.service.process(builds.project, build.build_id, "a")
    with pytest.raises(BadRequest, match="named 'a'"):
        await builds.service.process(builds.project, build.build_id, "b")
    with pytest.raises(NotFound):
        await builds.service.process("other project", build.build_id, None)
    ready = await builds.built()
    assert (await builds.service.process(builds.project, ready.build_id, "arena")).status == "ready"
    failed = await builds.built(b"no zip")
    with pytest.raises(Conflict, match="upload it again"):
        await builds.service.process(builds.project, failed.build_id, None)


async def test_resolve_gives_the_newest_ready_build_or_the_pinned_one(builds: Builds) -> None:
    first, second = await builds.built(), await builds.built()
    third = await builds.service.request_upload(builds.project, "arena", None)
    service, project = builds.service, builds.project
    assert (await service.resolve(project, "arena", None)).build_id == second.build_id
    assert (await service.resolve(project, "arena", 1)).build_id == first.build_id
    with pytest.raises(Conflict, match="'uploading'"):
        await service.resolve(project, "arena", third.version)
    await service.delete(project, second.build_id)
    assert (await service.resolve(project, "arena", None)).build_id == first.build_id
    for scope, name, version in [(project, "arena", 2), (project, "none", None), ("other", "arena", 1)]:
        with pytest.raises(NotFound, match="no ready build"):
            await service.resolve(scope, name, version)


async def test_an_upload_that_never_came_fails_and_leaves_nothing(builds: Builds) -> None:
    gone = await builds.service.request_upload(builds.project, "a", None)
    waiting = await builds.service.request_upload(builds.project, "b", None)
    uploads = builds.settings.artefacts / "uploads"
    uploads.mkdir(parents=True)
    (uploads / f"{gone.build_id}.zip.part").write_bytes(b"of a killed replica")
    await builds.change(gone, upload_expires_at=now_ms() - 1)
    assert await builds.service.expire_uploads() == 1
    assert await builds.service.expire_uploads() == 0
    found = await builds.service.get(builds.project, gone.build_id)
    assert (found.status, "upload" in (found.error or "")) == ("failed", True)
    assert (await builds.service.get(builds.project, waiting.build_id)).status == "uploading"
    assert builds.stored() == NOTHING


async def test_recover_submits_only_what_nobody_holds(builds: Builds) -> None:
    lost, held, fresh = [await builds.upload(make_zip(GAME)) for _ in range(3)]
    await builds.change(lost, lease_until=now_ms() - 1)
    await builds.change(held, lease_until=now_ms() + 60_000)
    builds.submitted.clear()
    assert await builds.service.recover() == 2
    assert sorted(builds.submitted) == sorted([lost.build_id, fresh.build_id])


@pytest.mark.parametrize("image", ["game", "localhost:5000/game", "game:", "game:t ag", "../x:1", "a@sha256:12", ""])
async def test_an_image_needs_a_tag_or_digest(builds: Builds, image: str) -> None:
    with pytest.raises(BadRequest, match="tag or digest"):
        await builds.service.docker_image(builds.project, "a", image, None, None)


async def test_registry_logins_are_hidden_at_rest(builds: Builds) -> None:
    login = {"username": "me", "password": "hunter2-secret"}
    build = await builds.service.docker_image(builds.project, "a", "localhost:5000/game:1", None, login)
    assert builds.submitted == [build.build_id]
    assert registry_credentials(build, builds.settings) == login
    for file in builds.settings.home.glob("fleet.db*"):
        assert b"hunter2-secret" not in file.read_bytes()


async def test_lists_and_logs_are_paged_and_scoped(builds: Builds) -> None:
    rows = [await builds.service.request_upload(builds.project, name, None) for name in "aab"]
    await builds.service.delete(builds.project, rows[0].build_id)
    page, total = await builds.service.list(builds.project, None, 1, 1)
    assert (len(page), total) == (1, 2)
    assert [b.build_id for b in (await builds.service.list(builds.project, "a", 9, 0))[0]] == [rows[1].build_id]
    assert await builds.service.list("other", None, 9, 0) == ([], 0)
    with pytest.raises(NotFound):
        await builds.service.logs("other", rows[1].build_id, 9, 0)
    with pytest.raises(NotFound):
        await builds.service.delete(builds.project, rows[0].build_id)


async def test_no_error_ends_in_a_row_of_its_own(builds: Builds) -> None:
    """A refused request adds nothing."""
    with pytest.raises(BadRequest):
        await builds.service.docker_image(builds.project, "a", "untagged", None, None)
    assert (await builds.service.list(builds.project, None, 9, 0)) == ([], 0)
    assert isinstance(await builds.service.request_upload(builds.project, "a", None), Build)
