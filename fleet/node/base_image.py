"""The image that ZIP builds run in: found, made from the distribution's own packages, or pulled.

Made without any registry: `apt-get download`, unpack, import. It holds what Linux exports of Unity, Unreal and Godot
link against, plus a shell, busybox tools and perl. Its tag is a hash of the recipe, so a change makes a new image.
"""

import asyncio
import hashlib
import os
import platform
import shutil
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import structlog

from fleet.node.engine import Engine, EngineError, json_lines
from fleet.node.file_lock import awaited
from fleet.node.runtime import EngineUnavailable

log = structlog.get_logger(__name__)

# Each entry: names by which distributions know the same thing, the first available one is taken.
PACKAGES: tuple[tuple[str, ...], ...] = (
    ("base-files",), ("netbase",), ("tzdata",), ("ca-certificates",),
    ("libc6",), ("libc-bin",), ("libgcc-s1",), ("libstdc++6",), ("zlib1g",), ("libcrypt1",), ("libatomic1",),
    ("libssl3t64", "libssl3", "libssl1.1"), ("libuuid1",), ("libtinfo6",),
    ("dash",), ("bash",), ("perl-base",), ("busybox-static", "busybox"),
)  # fmt: skip
BUSYBOX_TOOLS = (
    "[ awk basename cat chmod chown clear cmp cp cut date dd df diff dirname du echo env expr false find free fuser "
    "getopt grep gunzip gzip head hostname id ip kill killall less ln ls md5sum mkdir mkfifo mktemp more mv nc netstat "
    "nice nohup nproc nslookup od pgrep pidof ping pkill printf ps pwd readlink realpath rm rmdir sed seq sha256sum "
    "sleep sort split stat strings stty sync tail tar tee test timeout top touch tr true truncate tty uname uniq unzip "
    "uptime vi watch wc wget which whoami xargs yes zcat"
)
PULLED = "debian:stable-slim"
_VERSION = "1"
_CHANGES = ("ENV PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 DOTNET_SYSTEM_GLOBALIZATION_INVARIANT=1", 'CMD ["sh"]')
LOOK_S = 0.5  # between two looks during a pull
_STEP_TIMEOUT_S = 600
_LOCK_S = 3 * _STEP_TIMEOUT_S  # while another agent makes it


def recipe_tag() -> str:
    """`fleet-base:<hash>`: changes with the recipe, the distribution's release and the machine."""
    release = Path("/etc/os-release")
    system = release.read_text() if release.exists() else ""
    recipe = repr((_VERSION, PACKAGES, BUSYBOX_TOOLS, _CHANGES, platform.machine(), system))
    return "fleet-base:" + hashlib.sha256(recipe.encode()).hexdigest()[:12]


async def ensure_base_image(engine: Engine, wanted: str, state_dir: Path, no_progress_s: float = 120.0) -> str:
    """Reference of a base image that is present. `wanted`: "auto", or an image reference that is pulled if missing.

    Raises EngineUnavailable if it can neither be found, made nor pulled.
    """
    if wanted != "auto":
        await _ensure_pulled(engine, wanted, no_progress_s)
        return wanted
    tag = recipe_tag()
    if await image_exists(engine, tag):
        return tag
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        log.warning("base_image_pulled", image=PULLED, reason="no apt-get on this machine")
        await _ensure_pulled(engine, PULLED, no_progress_s)
        return PULLED
    async with awaited(state_dir / "base-image.lock", _LOCK_S):  # two agents of one machine make it once
        if not await image_exists(engine, tag):
            await _make(engine, tag)
    return tag


async def image_exists(engine: Engine, reference: str) -> bool:
    try:
        await engine.call("GET", f"/images/{reference}/json")
    except EngineError as error:
        if error.status == 404:
            return False
        raise EngineUnavailable(error.message) from error
    return True


async def pull_image(
    engine: Engine, reference: str, no_progress_s: float, *, look: Callable[[], None] = lambda: None
) -> None:
    """Pull; EngineError (status 404 or the registry's words) if it cannot be had, EngineUnavailable if it stands still
    for so many seconds. `look` is called now and then, and ends the pull by raising."""
    name, tag = split_reference(reference)
    params = {"fromImage": name} | ({"tag": tag} if tag else {})
    looked = 0.0
    async with engine.stream("POST", "/images/create", params, silence_s=no_progress_s) as answer:
        async for report in json_lines(answer):
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                await asyncio.to_thread(look)
            if "error" in report:
                raise EngineError(404, str(report["error"]))


def split_reference(reference: str) -> tuple[str, str]:
    """(name, tag) of an image reference; tag `latest` where none is named, "" for digests."""
    if "@" in reference:
        return reference, ""
    name, colon, tag = reference.rpartition(":")
    if colon and "/" not in tag:
        return name, tag
    return reference, "latest"


async def _ensure_pulled(engine: Engine, reference: str, no_progress_s: float) -> None:
    if await image_exists(engine, reference):
        return
    try:
        await pull_image(engine, reference, no_progress_s)
    except EngineError as error:
        raise EngineUnavailable(f"base image {reference} cannot be pulled: {error.message}") from error


async def _make(engine: Engine, tag: str) -> None:
    log.info("base_image_making", image=tag)
    with _work_folder() as work:
        await _download(work)
        root = work / "root"
        await asyncio.to_thread(_prepare_root, root)
        for package in sorted(work.glob("*.deb")):
            unpack = 'dpkg-deb --fsys-tarfile "$0" | tar -x -p -C "$1" --keep-directory-symlink -f -'
            await _run(["sh", "-c", unpack, str(package), str(root)], work)
        await asyncio.to_thread(_finish_root, root)
        await asyncio.to_thread(_pack, root, work / "root.tar")
        await _import(engine, tag, work / "root.tar")
    log.info("base_image_made", image=tag)


@contextmanager
def _work_folder() -> Generator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fleet-base-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _download(work: Path) -> None:
    known = await _available()
    if not all(known.intersection(names) for names in PACKAGES):
        await _run(["apt-get", "update"], work)
        known = await _available()
    missing = [names[0] for names in PACKAGES if not known.intersection(names)]
    if missing:
        raise EngineUnavailable(f"base image: apt has no {', '.join(missing)}; set FLEET_BASE_IMAGE to an image")
    chosen = [next(name for name in names if name in known) for names in PACKAGES]
    try:
        await _run(["apt-get", "download", *chosen], work)
    except EngineUnavailable:  # lists older than the archive: the files they name are gone
        await _run(["apt-get", "update"], work)
        await _run(["apt-get", "download", *chosen], work)


async def _available() -> set[str]:
    """Names of our packages that apt could download."""
    names = [name for alternatives in PACKAGES for name in alternatives]
    known: set[str] = set()
    current = ""
    for line in (await _run(["apt-cache", "policy", *names], Path("/"))).splitlines():
        if not line.startswith(" "):
            current = line.rstrip(":")
        elif line.startswith("  Candidate:") and "(none)" not in line:
            known.add(current)
    return known


async def _run(command: list[str], folder: Path) -> str:
    """Run a step; its output. EngineUnavailable with the last words of a step that failed."""
    environment = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _STEP_TIMEOUT_S)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    text = output.decode(errors="replace")
    if process.returncode:
        raise EngineUnavailable(f"base image: '{' '.join(command[:2])}' failed: {text[-500:]}")
    return text


def _prepare_root(root: Path) -> None:
    """Merged /usr, made before unpacking, so that old and new package layouts land in the same place."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")


def _finish_root(root: Path) -> None:
    etc = root / "etc"
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\ngame:x:1000:1000:game:/tmp:/bin/sh\n")
    (etc / "group").write_text("root:x:0:\ngame:x:1000:\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    (etc / "ssl/certs").mkdir(parents=True, exist_ok=True)
    (etc / "ssl/certs/ca-certificates.crt").write_text("\n".join(path.read_text() for path in certificates))
    for folder in ("game", "bundle", "playflow"):
        (root / folder).mkdir()
    _busybox_links(root / "usr/bin")
    for unneeded in ("usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / unneeded, ignore_errors=True)


def _busybox_links(folder: Path) -> None:
    if not (folder / "sh").exists():
        (folder / "sh").symlink_to("dash")
    for name in BUSYBOX_TOOLS.split():
        if not (folder / name).exists() and not (folder / name).is_symlink():
            (folder / name).symlink_to("busybox")


def _pack(root: Path, target: Path) -> None:
    def owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mode &= ~0o6000  # nothing in a game's container gains rights
        return member

    with tarfile.open(target, "w") as archive:
        archive.add(root, arcname=".", filter=owned_by_root)


async def _import(engine: Engine, tag: str, archive: Path) -> None:
    name, version = split_reference(tag)
    params = [("fromSrc", "-"), ("repo", name), ("tag", version), *[("changes", change) for change in _CHANGES]]
    await engine.call(
        "POST", "/images/create", params=params, data=_chunks(archive), timeout_s=_STEP_TIMEOUT_S, decode=False
    )
    if not await image_exists(engine, tag):
        raise EngineUnavailable("base image: the engine did not take the import")


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, 1 << 20):
            yield chunk
