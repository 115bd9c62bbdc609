"""The pipeline: verdicts, shared storage, links, faults, and what garbage collection keeps."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update
from sqlmodel import col

from fleet.builds import pipeline, service
from fleet.builds.artefacts import DiskStore
from fleet.builds.bundles import CONFIG_TARGET, ensure_bundle, locked, sweep_staging
from fleet.builds.collect import collect
from fleet.builds.pipeline import run_pipeline
from fleet.builds.turns import may_begin, next_builds
from fleet.errors import Unavailable
from fleet.settings import FleetSettings
from fleet.store.tables import Build, Project
from fleet.times import now_ms
from tests.games import Files, make_zip
from tests.unit.builds_kit import GAME, NOTHING, Builds, open_builds, prepare

ELF_ARM = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00" + bytes(40)


@pytest.fixture
def settings(tmp_path: Path) -> FleetSettings:
    return prepare(tmp_path)


@pytest.fixture
async def builds(settings: FleetSettings) -> AsyncIterator[Builds]:
    opened = await open_builds(settings)
    yield opened
    await opened.store.close()


def inside(folder: str, files: Files) -> Files:
    return {f"{folder}/{path}": value for path, value in files.items()}


async def test_a_good_upload_becomes_ready_and_shares_storage_with_its_like(builds: Builds) -> None:
    first, second = await builds.built(), await builds.built(name="other")
    assert (first.status, second.status) == ("ready", "ready")
    assert first.content_hash == second.content_hash
    assert first.content_hash is not None
    assert builds.stored() == {
        "uploads": [], "archives": [f"{first.content_hash}.zip"], "bundles": [first.content_hash],
    }  # fmt: skip
    tree = builds.settings.bundles / first.content_hash
    assert os.readlink(tree / "playflow.json") == CONFIG_TARGET
    sizes = {(b.packed_bytes, b.unpacked_bytes, b.bundle_root, b.executable_path) for b in (first, second)}
    assert len(sizes) == 1
    assert (first.bundle_root, first.executable_path) == ("", "Server.x86_64")


@pytest.mark.parametrize("wrapper", ["MyGame", "outer/inner"])
async def test_wrapping_folders_are_found(builds: Builds, wrapper: str) -> None:
    build = await builds.built(make_zip(inside(wrapper, GAME)))
    assert (build.status, build.bundle_root, build.executable_path) == ("ready", wrapper, "Server.x86_64")
    assert (builds.settings.bundles / str(build.content_hash) / wrapper / "playflow.json").is_symlink()


async def test_a_shipped_config_gives_way_and_the_log_says_so(builds: Builds) -> None:
    build = await builds.built(make_zip({**GAME, "playflow.json": (b"{}", 0o644)}))
    assert os.readlink(builds.settings.bundles / str(build.content_hash) / "playflow.json") == CONFIG_TARGET
    assert any("playflow.json" in line for line in await builds.words(build))


@pytest.mark.parametrize(
    ("files", "executable", "word"),
    [
        ({"Game.x86_64": (b"#!/bin/sh\n", 0o755)}, None, "Game.x86_64"),
        ({"notes.txt": (b"hello", 0o644)}, None, "Linux dedicated-server build"),
        ({"Server.x86_64": (b"MZ......", 0o755)}, None, "Windows"),
        ({"Server.x86_64": (b"\xcf\xfa\xed\xfe....", 0o755)}, None, "macOS"),
        ({"Server.x86_64": (ELF_ARM, 0o755)}, None, "aarch64"),
        ({"Server.x86_64": (b"text", 0o755)}, None, "ELF"),
        (GAME, "../Server.x86_64", "relative"),
    ],
)
async def test_a_bad_build_fails_in_clear_words_and_leaves_nothing(
    builds: Builds, files: Files, executable: str | None, word: str
) -> None:
    build = await builds.built(make_zip(files), executable=executable)
    assert build.status == "failed"
    assert word in (build.error or "")
    assert any(word in line for line in await builds.words(build))
    assert builds.stored() == NOTHING
    assert list((builds.settings.artefacts / "uploads").iterdir()) == []


async def test_many_mended_files_are_one_line_of_the_log(builds: Builds) -> None:
    tools: Files = {f"tools/t{i:03}.sh": (b"#!/bin/sh\n", 0o644) for i in range(300)}
    build = await builds.built(make_zip({**GAME, **tools}))
    lines = [line for line in await builds.words(build) if "execute permission" in line]
    assert len(lines) == 1
    assert "300" in lines[0]
    assert len(lines[0]) < 500


async def test_running_it_again_changes_nothing(builds: Builds) -> None:
    build = await builds.built()
    before, words = builds.stored(), await builds.words(build)
    await run_pipeline(build.build_id, builds.settings)
    again = await builds.service.get(builds.project, build.build_id)
    assert again.model_dump() == build.model_dump()
    assert (builds.stored(), await builds.words(build)) == (before, words)


async def test_two_runs_at_once_are_one(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "LEASE_MS", 600)
    build = await builds.upload(make_zip(GAME))
    await asyncio.gather(*(run_pipeline(build.build_id, builds.settings) for _ in range(3)))
    assert (await builds.service.get(builds.project, build.build_id)).status == "ready"
    assert sum("Ready" in line for line in await builds.words(build)) == 1


async def test_a_run_takes_over_when_the_lease_of_a_killed_one_ends(builds: Builds) -> None:
    build = await builds.upload(make_zip(GAME))
    await builds.change(build, lease_until=now_ms() + 700)
    await run_pipeline(build.build_id, builds.settings)
    assert (await builds.service.get(builds.project, build.build_id)).status == "ready"


async def test_a_fault_of_ours_is_tried_again_less_and_less_often_then_said(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an hour of outage; when it is next tried stands in the lease, for whoever recovers builds."""

    def full(*_arguments: object) -> tuple[str, ...]:
        raise OSError(28, "No space left on device")

    start = now_ms()
    monkeypatch.setattr(pipeline, "_unpack", full)
    build = await builds.upload(make_zip(GAME))
    tries = [start]
    while True:
        monkeypatch.setattr(pipeline, "now_ms", lambda: tries[-1])
        await run_pipeline(build.build_id, builds.settings)
        found = await builds.service.get(builds.project, build.build_id)
        if found.status != "processing":
            break
        assert found.lease_until is not None
        tries.append(found.lease_until + 1)
    assert found.status == "failed"
    assert "No space left" in (found.error or "")
    assert pipeline.TRY_FOR_MS <= tries[-1] - start <= pipeline.TRY_FOR_MS + pipeline.AGAIN_MOST_MS
    assert tries[1] - start <= 6_000
    assert len(tries) < 25


async def test_an_outage_that_passes_is_not_the_builds_failure(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever recovers builds finds it when its time has come, and it becomes ready."""
    with monkeypatch.context() as broken:

        def away(*_arguments: object) -> None:
            raise Unavailable("The artefact store does not serve 'archives/x': connection refused")

        broken.setattr(DiskStore, "put_file", away)
        build = await builds.built()
        assert build.status == "processing"
        assert await builds.service.recover() == 0, "its next attempt is not due yet"
    later = now_ms() + 10_000
    monkeypatch.setattr(pipeline, "now_ms", lambda: later)
    monkeypatch.setattr(service, "now_ms", lambda: later)
    assert await builds.service.recover() == 1
    await run_pipeline(build.build_id, builds.settings)
    assert (await builds.service.get(builds.project, build.build_id)).status == "ready"
    assert any("It is tried again in 5 s" in line for line in await builds.words(build))


async def test_a_build_that_is_begun_again_has_all_its_attempts(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_arguments: object, **_named: object) -> str:
        raise Unavailable("The engine does not answer.")

    monkeypatch.setattr(pipeline, "resolve_image", away)
    build = await builds.service.docker_image(builds.project, "arena", "registry.test/game:1", None, None)
    await run_pipeline(build.build_id, builds.settings)
    late = now_ms() + pipeline.TRY_FOR_MS + 60_000
    monkeypatch.setattr(pipeline, "now_ms", lambda: late)
    await run_pipeline(build.build_id, builds.settings)
    assert (await builds.service.get(builds.project, build.build_id)).status == "failed"
    await builds.service.process(builds.project, build.build_id, None)
    await run_pipeline(build.build_id, builds.settings)
    assert (await builds.service.get(builds.project, build.build_id)).status == "processing"


@given(before=st.integers(0, 1000), passed=st.integers(0, 10**10))
def test_attempts_end_and_are_never_far_apart(before: int, passed: int) -> None:
    wait = pipeline.again_ms(before, passed)
    assert (wait is None) == (before > 0 and passed >= pipeline.TRY_FOR_MS)
    assert wait is None or pipeline.AGAIN_FIRST_MS <= wait <= pipeline.AGAIN_MOST_MS


async def test_a_build_deleted_while_it_is_processed_leaves_nothing(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = await builds.upload(make_zip(GAME))
    finish = pipeline._finish

    async def overtaken(*arguments: object, **values: object) -> bool:
        await builds.service.delete(builds.project, build.build_id)
        await run_pipeline(build.build_id, builds.settings)
        return await finish(*arguments, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "_finish", overtaken)
    await run_pipeline(build.build_id, builds.settings)
    assert builds.stored() == NOTHING


async def test_storage_lives_as_long_as_a_build_or_a_server_needs_it(builds: Builds) -> None:
    first, second = await builds.built(), await builds.built()
    kept = builds.stored()
    server = await builds.add_server(second)
    for build in (first, second):
        await builds.service.delete(builds.project, build.build_id)
        await run_pipeline(build.build_id, builds.settings)
        assert builds.stored() == kept
    await builds.stop_server(server)
    await builds.service.recover()  # no event tells builds of a server's end
    assert builds.stored() == NOTHING


async def test_collections_at_once_do_not_block_each_other(builds: Builds) -> None:
    for i in range(3):
        build = await builds.built(make_zip({**GAME, "n": (b"%d" % i, 0o644)}))
        await builds.service.delete(builds.project, build.build_id)
    runs = [collect(builds.store, builds.settings) for _ in range(4)]
    removed = await asyncio.wait_for(asyncio.gather(*runs), timeout=60)
    assert sum(map(len, removed)) >= 3
    assert builds.stored() == NOTHING


async def test_a_node_fetches_and_links_what_it_lacks(builds: Builds, tmp_path: Path) -> None:
    build = await builds.built(make_zip(inside("a", GAME)))
    bundles, store = tmp_path / "node", DiskStore(builds.settings.artefacts)
    arguments = (store, str(build.content_hash), ("a",), bundles, builds.settings.upload)
    folders = await asyncio.gather(*(asyncio.to_thread(ensure_bundle, *arguments) for _ in range(4)))
    assert set(folders) == {bundles / str(build.content_hash)}
    assert (folders[0] / "a" / "playflow.json").is_symlink()
    assert sorted(p.name for p in bundles.iterdir()) == [".locks", str(build.content_hash)]


def test_only_staging_of_the_dead_is_swept(tmp_path: Path) -> None:
    dead, living = tmp_path / f".staging-{'a' * 64}-1", tmp_path / f".staging-{'b' * 64}-1"
    for folder in (dead, living):
        (folder / "half").mkdir(parents=True)
    with locked(tmp_path, "b" * 64):
        assert sweep_staging(tmp_path) == 1
        assert (dead.exists(), living.exists()) == (False, True)
    assert sweep_staging(tmp_path) == 1


async def test_builds_of_one_project_wait_for_a_place_and_leave_room_for_others(builds: Builds) -> None:
    """A project has two places of four, and one is for whoever has none; what waits is begun in turns."""
    async with builds.store.write() as session:
        for name in ("flood", "busy", "new"):
            session.add(Project(id=name, name=name, plan="pro", created_at=1, updated_at=1))
            await session.flush()
            for number in range(4):
                made = {"build_id": f"{name}-{number}", "project_id": name, "name": "b", "version": number + 1}
                about = {"status": "processing", "build_type": "zip", "created_at": number}
                session.add(Build(**made, **about))
    settings, now = builds.settings.pipeline, now_ms()

    async def turns() -> list[str]:
        async with builds.store.read() as session:
            return await next_builds(session, settings, now)

    async def hold(build_id: str, until: int | None) -> None:
        async with builds.store.write() as session:
            await session.exec(update(Build).where(col(Build.build_id) == build_id).values(lease_until=until))

    assert await turns() == ["busy-0", "flood-0", "new-0"]
    for number in range(2):
        await hold(f"flood-{number}", now + 10_000)
    assert await turns() == ["busy-0", "new-0"]
    await hold("busy-0", now + 10_000)
    assert await turns() == ["new-0"]
    async with builds.store.write() as session:
        assert not await may_begin(session, settings, "flood-2", now)
        assert not await may_begin(session, settings, "busy-1", now)
        assert await may_begin(session, settings, "new-0", now)
    # A run that is submitted out of turn ends without having touched the build.
    await run_pipeline("flood-2", builds.settings)
    assert (await builds.service.get("flood", "flood-2")).status == "processing"
    await hold("flood-0", now + 200_000)  # its next attempt is due later, so it holds no place
    assert await turns() == ["new-0"]
