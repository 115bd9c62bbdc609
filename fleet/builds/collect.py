"""Garbage collection: storage that no build and no unfinished server needs."""

import asyncio
import contextlib
from pathlib import Path

import structlog
from sqlmodel import col, select

from fleet.builds.artefacts import ArtefactStore, drop_upload
from fleet.builds.bundles import HASH, archive_key, locked, remove_bundle
from fleet.builds.object_store import open_artefacts
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from fleet.store.tables import Build, Server, live

log = structlog.get_logger(__name__)

_KEEPS = ("uploading", "processing", "ready")


async def needed_hashes(store: Store) -> set[str]:
    """Content hashes of builds that may start servers, or that a server runs now, deleted or not."""
    wanted = select(Build.content_hash).where(col(Build.content_hash).is_not(None))
    running = select(Server.build_id).where(live())
    async with store.read() as session:
        kept = await session.exec(wanted.where(col(Build.status).in_(_KEEPS) | col(Build.build_id).in_(running)))
        return {found for found in kept.all() if found}


async def collect(store: Store, settings: FleetSettings) -> list[str]:
    """Remove archives and bundles that nothing needs; their hashes.

    Looked at once more under each bundle's lock, so that a build of the same content that is being processed keeps it:
    the pipeline writes its hash before it takes the lock.
    """
    artefacts = open_artefacts(settings)
    archives = await asyncio.to_thread(_archives, artefacts)
    bundles = {f.name for f in settings.bundles.glob("*") if HASH.fullmatch(f.name)}
    removed: list[str] = []
    for content_hash in sorted((archives | bundles) - await needed_hashes(store)):
        with contextlib.ExitStack() as held:
            # In a thread: another holder may need this very event loop to come to its end.
            await asyncio.to_thread(held.enter_context, locked(settings.bundles, content_hash))
            if content_hash in await needed_hashes(store):
                continue
            await asyncio.to_thread(remove_bundle, settings.bundles, content_hash)
            await asyncio.to_thread(artefacts.delete, archive_key(content_hash))
            removed.append(content_hash)
    await _drop_uploads(store, settings.artefacts / "uploads")
    if removed:
        log.info("storage collected", hashes=removed)
    return removed


def _archives(artefacts: ArtefactStore) -> set[str]:
    return {Path(key).stem for key in artefacts.list("archives")}


async def _drop_uploads(store: Store, uploads: Path) -> None:
    """Uploads whose build is gone or finished."""
    files = await asyncio.to_thread(lambda: list(uploads.glob("*")))
    for build_id in {file.name.partition(".")[0] for file in files}:
        async with store.read() as session:
            build = await session.get(Build, build_id)
        if build is None or build.status not in ("uploading", "processing"):
            drop_upload(uploads / f"{build_id}.zip")
