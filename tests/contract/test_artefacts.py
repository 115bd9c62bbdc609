"""What every ArtefactStore does, the upload sink's memory and damage, and the pipeline under kill -9."""

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from fleet.builds.artefacts import ArtefactStore, UploadLock, UploadSink, drop_upload, sha256_of
from fleet.builds.object_store import ObjectStore, open_artefacts
from fleet.builds.pipeline import run_pipeline
from fleet.errors import Conflict, NotFound, PayloadTooLarge, Unavailable
from fleet.ops.home import free_ports
from fleet.settings import FleetSettings
from tests.games import Files, make_zip
from tests.unit.builds_kit import GAME, open_builds, prepare

MB = 1 << 20


@pytest.fixture(params=["disk", "s3"])
def artefacts_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each implementation by its URL."""
    return request.getfixturevalue("s3_url") if request.param == "s3" else f"file://{tmp_path}/store"


@pytest.fixture
def store(artefacts_url: str, tmp_path: Path) -> ArtefactStore:
    return open_artefacts(FleetSettings(home=tmp_path, artefacts_url=artefacts_url))


def test_an_object_is_there_whole_after_put(store: ArtefactStore, tmp_path: Path) -> None:
    content = os.urandom(20 * MB + 1)  # several parts of an upload in parts
    (tmp_path / "file").write_bytes(content)
    store.put_file("archives/a.zip", tmp_path / "file")
    assert not (tmp_path / "file").exists()
    store.get_to("archives/a.zip", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert (store.exists("archives/a.zip"), store.size("archives/a.zip")) == (True, len(content))


def test_put_replaces_and_delete_may_be_repeated(store: ArtefactStore, tmp_path: Path) -> None:
    for content in (b"one", b"second"):
        (tmp_path / "file").write_bytes(content)
        store.put_file("archives/a.zip", tmp_path / "file")
    assert store.size("archives/a.zip") == 6
    for _ in range(2):
        store.delete("archives/a.zip")
    assert not store.exists("archives/a.zip")


def test_what_is_missing_is_not_found(store: ArtefactStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        store.size("archives/none.zip")
    with pytest.raises(NotFound):
        store.get_to("archives/none.zip", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_list_gives_the_keys_of_a_prefix(store: ArtefactStore, tmp_path: Path) -> None:
    for key in ("archives/b.zip", "archives/a.zip", "uploads/c.zip"):
        (tmp_path / "file").write_bytes(b"x")
        store.put_file(key, tmp_path / "file")
    assert sorted(store.list("archives")) == ["archives/a.zip", "archives/b.zip"]
    assert list(store.list("none")) == []


@pytest.mark.parametrize("key", ["../outside", "/outside", "archives/../../outside"])
def test_keys_stay_inside(store: ArtefactStore, tmp_path: Path, key: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(NotFound):
        store.put_file(key, tmp_path / "file")
    assert not (tmp_path / "outside").exists()


def test_a_store_that_does_not_answer_may_answer_later(tmp_path: Path) -> None:
    """Such trouble is no fault of a build, which must be processed again, not failed."""
    store = ObjectStore(f"s3://builds/x?endpoint=http://127.0.0.1:{free_ports(1)[0]}&region=us-east-1", patience_s=1)
    with pytest.raises(Unavailable):
        store.size("archives/a.zip")


def test_large_objects_pass_through_little_memory(s3_url: str, tmp_path: Path) -> None:
    """In a process of its own, whose peak can be told."""
    with (tmp_path / "file").open("wb") as file:
        for _ in range(200):
            file.write(os.urandom(MB))
    code = (
        "import resource, sys; from pathlib import Path; from fleet.builds.object_store import ObjectStore\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "store, file = ObjectStore(sys.argv[1]), Path(sys.argv[2]); store.exists('a'); before = peak()\n"
        "store.put_file('a', file); store.get_to('a', file); print(peak() - before)"
    )
    command = [sys.executable, "-c", code, s3_url, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100
    assert (tmp_path / "file").stat().st_size == 200 * MB


async def test_a_sink_keeps_little_in_memory(tmp_path: Path) -> None:
    chunk, path = os.urandom(64 << 10), tmp_path / "up.zip"
    tracemalloc.start()
    try:
        sink = UploadSink(path, 1000 * MB)
        for _ in range(1600):
            await sink.write(chunk)
        assert not path.exists()
        assert await sink.finish() == 100 * MB
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * MB
    assert sha256_of(path) == sha256_of_chunks(chunk, 1600)
    assert not path.with_name("up.zip.part").exists()


def sha256_of_chunks(chunk: bytes, count: int) -> str:
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(chunk)
    return digest.hexdigest()


async def test_a_sink_takes_its_limit_and_no_more(tmp_path: Path) -> None:
    sink = UploadSink(tmp_path / "up.zip", 1000)
    await sink.write(b"x" * 1000)
    with pytest.raises(PayloadTooLarge):
        await sink.write(b"x")
    await sink.abort()
    assert list(tmp_path.iterdir()) == []


def test_the_right_to_write_ends_with_its_holders_process(tmp_path: Path) -> None:
    path = tmp_path / "up.zip"
    code = (
        "import sys; from pathlib import Path; from fleet.builds.artefacts import UploadLock\n"
        "lock = UploadLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(Conflict):
        UploadLock(path)
    assert not drop_upload(path)
    holder.kill()
    holder.communicate(timeout=30)
    with UploadLock(path):
        path.write_bytes(b"x")
    assert drop_upload(path)
    assert list(tmp_path.iterdir()) == []


_RUN = (
    "import asyncio, sys; from pathlib import Path; from fleet.builds.pipeline import run_pipeline\n"
    "from fleet.settings import FleetSettings\n"
    "print('begun', flush=True)\n"
    "asyncio.run(run_pipeline(sys.argv[2], FleetSettings(home=Path(sys.argv[1]))))"
)


@pytest.fixture
def settings(tmp_path: Path, artefacts_url: str, monkeypatch: pytest.MonkeyPatch) -> FleetSettings:
    monkeypatch.setenv("FLEET_ARTEFACTS_URL", artefacts_url)  # for the processes that are killed
    return prepare(tmp_path, artefacts_url=artefacts_url)


async def test_a_killed_pipeline_is_finished_by_the_next_and_leaves_nothing(settings: FleetSettings) -> None:
    """Killed at random instants of its work; each next run finds whatever the one before left."""
    builds, chance = await open_builds(settings), random.Random(7)
    noise: Files = {f"data/{i}": (os.urandom(4096), 0o644) for i in range(1500)}
    build = await builds.upload(make_zip({**GAME, **noise}))
    for _ in range(4):
        command = [sys.executable, "-c", _RUN, str(settings.home), build.build_id]
        run = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert run.stdout is not None
        assert await run.stdout.readline() == b"begun\n"
        try:
            await asyncio.wait_for(run.wait(), chance.uniform(0.05, 0.6))
        except TimeoutError:
            run.send_signal(signal.SIGKILL)
            await run.wait()
        # As if the lease of the killed run had ended.
        if (await builds.service.get(builds.project, build.build_id)).status == "processing":
            await builds.change(build, lease_until=None)
    await run_pipeline(build.build_id, settings)
    done = await builds.service.get(builds.project, build.build_id)
    assert done.status == "ready"
    assert builds.stored() == {
        "uploads": [], "archives": [f"{done.content_hash}.zip"], "bundles": [done.content_hash],
    }  # fmt: skip
    tree = settings.bundles / str(done.content_hash)
    assert {p.name: p.read_bytes() for p in (tree / "data").iterdir() if p.name != "map"} == {
        path.removeprefix("data/"): content for path, (content, _) in noise.items()
    }
    await builds.store.close()


_DIE = (
    "import asyncio, functools, inspect, os, signal, sys; from pathlib import Path\n"
    "from fleet.builds import archive, artefacts, object_store, pipeline; from fleet.settings import FleetSettings\n"
    "places = {'archive': archive, 'pipeline': pipeline, 'DiskStore': artefacts.DiskStore,\n"
    "    'ObjectStore': object_store.ObjectStore}\n"
    "place, name, calls = sys.argv[3].split('.'); holder = places[place]; left = [int(calls)]\n"
    "original = getattr(holder, name)\n"
    "def count():\n"
    "    left[0] -= 1\n"
    "    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
    "@functools.wraps(original)\n"
    "def plain(*a, **k):\n"
    "    result = original(*a, **k); count(); return result\n"
    "@functools.wraps(original)\n"
    "async def awaited(*a, **k):\n"
    "    result = await original(*a, **k); count(); return result\n"
    "setattr(holder, name, awaited if inspect.iscoroutinefunction(original) else plain)\n"
    "asyncio.run(pipeline.run_pipeline(sys.argv[2], FleetSettings(home=Path(sys.argv[1]))))"
)
_STEPS = [
    "pipeline.sha256_of.1", "pipeline._record.1", "archive._write_file.1", "archive._write_file.40",
    "pipeline._unpack.1", "DiskStore.put_file.1", "pipeline.find_executable.1", "pipeline.link_configs.1",
    "pipeline._tree_bytes.1", "pipeline._finish.1",
]  # fmt: skip


@pytest.mark.parametrize(
    ("artefacts_url", "step"),
    [*[("disk", step) for step in _STEPS], ("s3", "ObjectStore.put_file.1"), ("s3", "pipeline._tree_bytes.1")],
    indirect=["artefacts_url"],
)
async def test_killed_right_after_any_step_the_next_run_ends_the_same(settings: FleetSettings, step: str) -> None:
    builds = await open_builds(settings)
    noise: Files = {f"data/{i}": (b"%d" % i, 0o644) for i in range(100)}
    build = await builds.upload(make_zip({**GAME, **noise, "playflow.json": (b"{}", 0o644)}))
    command = [sys.executable, "-c", _DIE, str(settings.home), build.build_id, step]
    run = await asyncio.create_subprocess_exec(*command)
    assert await asyncio.wait_for(run.wait(), 120) == -signal.SIGKILL
    # As if the lease of the killed run had ended; what `recover` and the collection then do.
    if (await builds.service.get(builds.project, build.build_id)).status == "processing":
        await builds.change(build, lease_until=None)
    await run_pipeline(build.build_id, settings)
    await builds.service.recover()
    done = await builds.service.get(builds.project, build.build_id)
    assert (done.status, done.executable_path, done.bundle_root) == ("ready", "Server.x86_64", "")
    assert builds.stored() == {
        "uploads": [], "archives": [f"{done.content_hash}.zip"], "bundles": [done.content_hash],
    }  # fmt: skip
    tree = settings.bundles / str(done.content_hash)
    assert len(list((tree / "data").iterdir())) == 101
    assert (tree / "playflow.json").is_symlink()
    assert sum("Ready" in line for line in await builds.words(build)) == 1
    await builds.store.close()
