"""The build pipeline: from an uploaded ZIP, or an image's name, to a build that nodes can run.

It may be killed at any instant and run again, by Ray or by `BuildService.recover`: each step finds what the one before
left, under the content's hash. A lease in the build's row keeps two runs of one build apart; it is short and renewed,
so a killed run is taken over within seconds.

What goes wrong without being the build's fault (a full disk, an engine, a registry or a bucket that is away) is tried
again, less and less often (`again_ms`), until `TRY_FOR_MS` after the first time; the lease says when next.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray
import structlog
from sqlalchemy import update
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from fleet.actors.tasks import SupervisedTasks
from fleet.builds.archive import Manifest
from fleet.builds.artefacts import drop_upload, sha256_of
from fleet.builds.bundles import (
    archive_key,
    ensure_bundle,
    game_folders,
    link_configs,
    locked,
    sweep_staging,
    unpack_bundle,
)
from fleet.builds.collect import collect
from fleet.builds.executable import find_executable
from fleet.builds.images import resolve_image
from fleet.builds.object_store import open_artefacts
from fleet.builds.secrets import registry_credentials
from fleet.builds.storage import check_room
from fleet.builds.turns import LEASE_MS, may_begin, next_builds
from fleet.errors import FleetError, Unavailable
from fleet.events.journal import build_event
from fleet.region.names import HEAD
from fleet.region.tell import tell_regions
from fleet.settings import FleetSettings, get_settings
from fleet.store.engine import Store
from fleet.store.tables import Build, BuildLog
from fleet.telemetry.logs import setup_logging
from fleet.times import now_ms

log = structlog.get_logger(__name__)
Found = TypeVar("Found")

STEP_S = 6 * 3600.0  # one step on files or the artefact store; a copy without progress ends much sooner
AGAIN_FIRST_MS, AGAIN_MOST_MS = 5_000, 300_000
TRY_FOR_MS = 3_600_000
_FAULT = "A fault of the fleet interrupted the processing"
BEGUN_AGAIN = "Processing begins again."
_SHOWN = 5


def note(session: AsyncSession, build_id: str, level: str, message: str) -> None:
    """A line of the build's log."""
    session.add(BuildLog(build_id=build_id, at=now_ms(), level=level, message=message))


async def run_pipeline(build_id: str, settings: FleetSettings) -> None:
    """Bring one build to `ready` or `failed`; for a deleted one, collect what nothing needs any more."""
    store = Store(settings.database)
    try:
        async with _lease(store, settings, build_id) as mine:
            # Read under the lease: the run before this one may have written until it ended.
            async with store.read() as session:
                build = await session.get(Build, build_id)
            if mine and build is not None:
                await _process(store, settings, build)
        if build is None or build.status == "deleted":
            await collect(store, settings)
    finally:
        await store.close()


@asynccontextmanager
async def _lease(store: Store, settings: FleetSettings, build_id: str) -> AsyncGenerator[bool]:
    """True while this run owns the build, renewed in the background."""
    if not (await _take_lease(store, settings, build_id) or await _take_over(store, settings, build_id)):
        yield False
        return

    async def renew() -> None:
        await _take_lease(store, None, build_id)

    # A renewal that fails is tried again soon, and a lost lease only lets another run repeat this one.
    tasks = SupervisedTasks("pipeline", build_id=build_id)
    tasks.every("renew_lease", renew, LEASE_MS / 3000, limit_s=LEASE_MS / 1000)
    try:
        yield True
    finally:
        await tasks.close()


async def _take_over(store: Store, settings: FleetSettings, build_id: str) -> bool:
    """Wait for the end of another run's lease, once: if it was killed, nobody has renewed it by then. Not where the
    next attempt is due later (`_fault`): `BuildService.recover` begins it."""
    async with store.read() as session:
        build = await session.get(Build, build_id)
    if build is None or build.status != "processing" or build.lease_until is None:
        return False
    left_ms = build.lease_until - now_ms()
    if left_ms > LEASE_MS:
        return False
    await asyncio.sleep(max(0, left_ms + 1) / 1000)
    return await _take_lease(store, settings, build_id)


async def _take_lease(store: Store, settings: FleetSettings | None, build_id: str) -> bool:
    """False if another run holds the build, it is not in processing any more, or others have all places (`turns.py`).
    Without `settings`: renew it."""
    now = now_ms()
    query = update(Build).where(col(Build.build_id) == build_id, col(Build.status) == "processing")
    if settings is not None:
        query = query.where(col(Build.lease_until).is_(None) | (col(Build.lease_until) < now))
    async with store.write() as session:
        if settings is not None and not await may_begin(session, settings.pipeline, build_id, now):
            return False
        result = await session.exec(query.values(lease_until=now + LEASE_MS))
        return bool(result.rowcount)


async def _process(store: Store, settings: FleetSettings, build: Build) -> None:
    try:
        if build.build_type == "zip":
            await _process_zip(store, settings, build)
        else:
            await _process_image(store, settings, build)
    except Exception as error:
        if isinstance(error, FleetError) and not isinstance(error, Unavailable):
            await _fail(store, settings, build, error.detail)
            return
        log.warning("build_interrupted", build_id=build.build_id, error=repr(error), exc_info=error)
        await _fault(store, settings, build, f"{_FAULT} ({said(error)}).")
        return
    drop_upload(_upload_file(settings, build.build_id))


async def _fail(store: Store, settings: FleetSettings, build: Build, detail: str) -> None:
    await _finish(store, build, "failed", "error", detail, error=detail)
    drop_upload(_upload_file(settings, build.build_id))
    await collect(store, settings)


async def _fault(store: Store, settings: FleetSettings, build: Build, message: str) -> None:
    """Something that is not the build's fault, so it is tried again, but not for ever."""
    async with store.read() as session:
        faults = await _faults(session, build.build_id)
    now = now_ms()
    wait_ms = again_ms(len(faults), now - faults[0] if faults else 0)
    if wait_ms is None:
        await _fail(store, settings, build, f"{message} It was tried for {TRY_FOR_MS // 60_000} minutes.")
        return
    async with store.write() as session:
        mine = (col(Build.build_id) == build.build_id, col(Build.status) == "processing")
        await session.exec(update(Build).where(*mine).values(lease_until=now + wait_ms))
        note(session, build.build_id, "warning", f"{message} It is tried again in {wait_ms / 1000:.0f} s.")


async def _faults(session: AsyncSession, build_id: str) -> list[int]:
    """When this processing was interrupted, since it was last begun by somebody."""
    mine = col(BuildLog.build_id) == build_id
    begun = select(func.max(BuildLog.id)).where(mine, col(BuildLog.message) == BEGUN_AGAIN)
    last = (await session.exec(begun)).one() or 0
    found = select(BuildLog.at).where(mine, col(BuildLog.message).startswith(_FAULT), col(BuildLog.id) > last)
    return list((await session.exec(found.order_by(col(BuildLog.id)))).all())


def again_ms(before: int, passed_ms: int) -> int | None:
    """When to try again after so many interruptions before this one, the first so long ago. None: no more."""
    if before and passed_ms >= TRY_FOR_MS:
        return None
    return min(AGAIN_FIRST_MS * 2 ** min(before, 16), AGAIN_MOST_MS)


def said(error: Exception) -> str:
    """In one short line, for the build's log."""
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


async def _step(work: Callable[..., Found], *arguments: Any) -> Found:
    """A part of the work in another thread, with an end."""
    async with asyncio.timeout(STEP_S):
        return await asyncio.to_thread(work, *arguments)


async def _process_zip(store: Store, settings: FleetSettings, build: Build) -> None:
    artefacts = open_artefacts(settings)
    upload = _upload_file(settings, build.build_id)
    if upload.exists():
        content_hash = await _step(sha256_of, upload)
        await _record(store, build, content_hash=content_hash)
        unpacked = await _step(_unpack, settings, upload, content_hash)
        if unpacked is not None and (mended := unpacked.mended):
            text = f"{len(mended)} programs got the execute permission they lacked: {_some(mended)}"
            await _say(store, build, "info", text)
        if unpacked is not None and (guessed := unpacked.guessed):
            text = f"{len(guessed)} names are not UTF-8 and were read as code page 437; the game may not find them"
            await _say(store, build, "warning", f"{text}: {_some(guessed)}. Pack with UTF-8 names.")
        await _step(artefacts.put_file, archive_key(content_hash), upload)
    elif build.content_hash is None or not await _step(artefacts.exists, archive_key(build.content_hash)):
        raise FleetError("The uploaded ZIP is gone. Upload it again.")
    content_hash = build.content_hash or ""
    tree = settings.bundles / content_hash
    if not tree.is_dir():
        await _step(ensure_bundle, artefacts, content_hash, (), settings.bundles, settings.upload)
    root, executable = await _step(find_executable, tree, build.executable_path)
    folders = game_folders(root, executable)
    if await _step(link_configs, settings.bundles, content_hash, folders):
        await _say(store, build, "warning", "The ZIP's own playflow.json is replaced by each server's at run time.")
    size = await _step(_tree_bytes, tree)
    packed = await _step(artefacts.size, archive_key(content_hash))
    await _check_room(store, settings, build, packed + size)
    where = f"'{executable}'" + (f" in '{root}'" if root else "")
    kept = await _finish(
        store,
        build,
        "ready",
        "info",
        f"Ready: executable {where}, {size} bytes unpacked.",
        bundle_root=root,
        executable_path=executable,
        packed_bytes=packed,
        unpacked_bytes=size,
    )
    if not kept:
        await collect(store, settings)


def _some(files: Sequence[str]) -> str:
    return ", ".join(file[:60] for file in files[:_SHOWN]) + (", …" if len(files) > _SHOWN else "")


def _unpack(settings: FleetSettings, upload: Path, content_hash: str) -> Manifest | None:
    """Make the bundle of this ZIP; None if it is there."""
    sweep_staging(settings.bundles)
    with locked(settings.bundles, content_hash):
        if (settings.bundles / content_hash).is_dir():
            return None
        return unpack_bundle(upload, content_hash, settings.bundles, settings.upload)


async def _process_image(store: Store, settings: FleetSettings, build: Build) -> None:
    image = build.image_url or ""
    await _say(store, build, "info", f"Looking for image {image}.")
    found = await resolve_image(image, registry_credentials(build, settings), settings)
    await _check_room(store, settings, build, found.packed_bytes)
    values = {"content_hash": found.digest, "packed_bytes": found.packed_bytes or None}
    await _finish(store, build, "ready", "info", f"Ready: {found.digest}.", **values)


async def _check_room(store: Store, settings: FleetSettings, build: Build, size: int) -> None:
    async with store.read() as session:
        await check_room(session, settings, build, size)


async def _record(store: Store, build: Build, **values: object) -> None:
    for name, value in values.items():
        setattr(build, name, value)
    async with store.write() as session:
        await session.exec(update(Build).where(col(Build.build_id) == build.build_id).values(values))


async def _say(store: Store, build: Build, level: str, message: str) -> None:
    async with store.write() as session:
        note(session, build.build_id, level, message)


async def _finish(store: Store, build: Build, status: str, level: str, message: str, **values: object) -> bool:
    """The end; False, and nothing written, if the build was deleted (or another run ended it) meanwhile."""
    values |= {"status": status, "updated_at": now_ms(), "lease_until": None}
    async with store.write() as session:
        mine = (col(Build.build_id) == build.build_id, col(Build.status) == "processing")
        result = await session.exec(update(Build).where(*mine).values(values))
        if result.rowcount:
            note(session, build.build_id, level, message)
            for name, value in values.items():
                setattr(build, name, value)
            session.add(build_event(build, status))
    log.info("build processed", build_id=build.build_id, status=status, message=message, kept=bool(result.rowcount))
    return bool(result.rowcount)


def _upload_file(settings: FleetSettings, build_id: str) -> Path:
    return settings.artefacts / "uploads" / f"{build_id}.zip"


def _tree_bytes(tree: Path) -> int:
    return sum(file.lstat().st_size for file in tree.rglob("*") if not file.is_dir())


# On the head, where the upload was received.
@ray.remote(num_cpus=0, max_retries=5, resources={HEAD: 0.001})
def process_build(build_id: str) -> None:
    """The Ray task; Ray runs it again when its worker dies."""
    settings = get_settings()
    setup_logging("pipeline", settings.home)
    asyncio.run(run_pipeline(build_id, settings))
    for waiting in asyncio.run(_next(settings)):
        submit(waiting)
    tell_regions("builds_changed", build_id)  # pools of this build begin to take it at once


async def _next(settings: FleetSettings) -> list[str]:
    """Builds whose turn it is now that this run has ended."""
    store = Store(settings.database)
    try:
        async with store.read() as session:
            return await next_builds(session, settings.pipeline, now_ms())
    finally:
        await store.close()


def submit(build_id: str) -> None:
    """Begin the pipeline somewhere in the cluster. Nobody waits for it: the build's row tells the result. May block
    while Ray's head does not answer."""
    process_build.remote(build_id)
