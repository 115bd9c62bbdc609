"""Uploaded ZIPs: checked as a whole before a byte is unpacked, then unpacked in constant memory.

What could do harm is refused with a word a game developer understands, never quietly mended: names that leave the
folder, links out of it, devices, encryption, bombs. What is merely missing, an execute bit, is mended.
"""

import io
import os
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fleet.builds.zip_names import name_of
from fleet.errors import FleetError
from fleet.settings import UploadLimits

_MB = 1 << 20
_CHUNK = 1 << 20
# Below this size a high ratio is harmless: a file of zeros packs very well.
_RATIO_FREE_BYTES = 16 * _MB
# zipfile inflates in bounded steps; of bzip2 and LZMA it takes whatever a block yields into memory at once.
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_DEFLATE64 = 9
_LOCAL_HEADER = b"PK\x03\x04"
_MAX_LINKS = 10_000
_MAX_LINK_BYTES = 512
_MAX_LINK_HOPS = 8
# Of one entry in the ZIP's directory beside its path: the fixed part and the usual extra fields.
_ENTRY_BYTES = 46 + 64


class ArchiveError(FleetError):
    """The ZIP cannot be a build; the detail says why and what to do."""

    status = 422
    error = "Bad build archive"


@dataclass(frozen=True, slots=True)
class Entry:
    """One checked member. `kind`: file, folder or link (to `target`); `path` is relative, without `.` and `..`.
    `guessed`: the ZIP does not tell the code page of its name."""

    info: zipfile.ZipInfo
    path: PurePosixPath
    kind: str
    target: str = ""
    guessed: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was unpacked; sizes in bytes. `mended`: files that got an execute bit; `guessed`: doubtful names."""

    files: int
    packed_bytes: int
    unpacked_bytes: int
    mended: tuple[str, ...]
    guessed: tuple[str, ...]


class _GuardedFile(io.FileIO):
    """Lets zipfile load a directory of a permitted size only: it takes all of it into memory to begin with."""

    def __init__(self, path: Path, limits: UploadLimits) -> None:
        super().__init__(path)
        self._max_files = limits.max_files
        self._max_bytes = max(_MB, limits.max_files * (_ENTRY_BYTES + limits.max_path_length))
        self.loading = True

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.loading:
            return super().read(-1 if size is None else size) or b""
        data = super().read(self._max_bytes + 1 if size is None or size < 0 else min(size, self._max_bytes + 1)) or b""
        if len(data) > self._max_bytes or data.count(b"PK\x01\x02") > self._max_files:
            raise ArchiveError(f"The ZIP holds too many files; at most {self._max_files} are taken.")
        return data


def unpack(archive: Path, folder: Path, limits: UploadLimits) -> Manifest:
    """Unpack a checked ZIP into an empty folder. ArchiveError says what is wrong with it.

    Files end up read-only (0444, or 0555 if executable), folders 0755. Nothing outside `folder` is written.
    """
    packed = archive.stat().st_size
    if packed > limits.max_packed_mb * _MB:
        raise ArchiveError(f"The ZIP is larger than {limits.max_packed_mb} MB, the most that is taken here.")
    try:
        with _GuardedFile(archive, limits) as file, zipfile.ZipFile(file) as opened:
            file.loading = False
            entries = check(opened, packed, limits)
            return _unpack_all(opened, entries, folder, packed)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, struct.error, ValueError) as error:
        raise ArchiveError(_not_whole(archive, error)) from error
    except (NotImplementedError, RuntimeError) as error:
        raise ArchiveError(f"The ZIP uses something that is not supported ({error}). Pack it plainly.") from error


def _not_whole(archive: Path, error: Exception) -> str:
    with archive.open("rb") as file:
        begins = file.read(len(_LOCAL_HEADER)) == _LOCAL_HEADER
    if begins and not zipfile.is_zipfile(archive):
        return "The file is not a whole ZIP archive: it is truncated, its end is missing. Upload it again."
    if begins:
        return f"The file is not a whole ZIP archive: it is damaged ({error}). Pack it again, and upload it again."
    return f"The file is not a whole ZIP archive ({error}). Upload the ZIP of your server build's folder."


def check(opened: zipfile.ZipFile, packed: int, limits: UploadLimits) -> list[Entry]:
    """Every member against the limits and rules, before anything is unpacked."""
    infos = opened.infolist()
    if not infos:
        raise ArchiveError("The ZIP is empty. Pack your server build's folder.")
    if len(infos) > limits.max_files:
        raise ArchiveError(f"The ZIP holds {len(infos)} files; at most {limits.max_files} are taken.")
    total = sum(info.file_size for info in infos)
    if total > limits.max_unpacked_mb * _MB:
        raise ArchiveError(f"Unpacked it would take {total // _MB} MB; at most {limits.max_unpacked_mb} MB are taken.")
    if total > _RATIO_FREE_BYTES and total > packed * limits.max_ratio:
        raise ArchiveError(f"It would unpack to over {limits.max_ratio:g} times its size, as only a ZIP bomb does.")
    # Archivers of tar's family begin with an entry for the folder itself, "./".
    entries = [_entry(opened, info, limits) for info in infos if not _is_top(info)]
    _check_overlap(infos)
    _check_names(entries)
    _check_links(entries)
    return entries


def _is_top(info: zipfile.ZipInfo) -> bool:
    return info.orig_filename.endswith("./") and not PurePosixPath(info.orig_filename).parts


def _entry(opened: zipfile.ZipFile, info: zipfile.ZipInfo, limits: UploadLimits) -> Entry:
    name, guessed = name_of(info)
    path = _safe_path(name, limits)
    if info.flag_bits & 0x1:
        raise ArchiveError(f"'{info.filename}' is encrypted. Pack the build without a password.")
    if info.compress_type == _DEFLATE64:
        raise ArchiveError(
            f"'{info.filename}' is packed by Deflate64, as Windows Explorer does with more than 2 GB. "
            "Use another program, such as 7-Zip with the method Deflate."
        )
    if info.compress_type not in _METHODS:
        raise ArchiveError(f"'{info.filename}' is packed by a method not taken here. Use ordinary ZIP (deflate).")
    if info.file_size > _RATIO_FREE_BYTES and info.file_size > max(1, info.compress_size) * limits.max_ratio:
        raise ArchiveError(f"'{info.filename}' unpacks to more than {limits.max_ratio:g} times its size.")
    mode = info.external_attr >> 16 if info.create_system == 3 else 0
    kind = stat.S_IFMT(mode)
    if info.is_dir() or kind == stat.S_IFDIR:
        return Entry(info, path, "folder", guessed=guessed)
    if kind == stat.S_IFLNK:
        return Entry(info, path, "link", _link_target(opened, info), guessed)
    if kind not in (0, stat.S_IFREG):
        raise ArchiveError(f"'{info.filename}' is a device, pipe or socket. Pack files, folders and links only.")
    return Entry(info, path, "file", guessed=guessed)


def _safe_path(name: str, limits: UploadLimits) -> PurePosixPath:
    shown = name[:100]
    if len(name.encode(errors="surrogatepass")) > limits.max_path_length:
        raise ArchiveError(f"The path '{shown}…' is longer than {limits.max_path_length} bytes.")
    if "\0" in name or "\\" in name or any(ord(c) < 32 for c in name):
        raise ArchiveError(f"The path {shown!r} has a backslash or control character. Pack with forward slashes.")
    parts = PurePosixPath(name).parts
    if name.startswith("/") or (parts and len(parts[0]) == 2 and parts[0][1] == ":"):
        raise ArchiveError(f"The path '{shown}' is absolute. Pack paths relative to the build's folder.")
    if ".." in parts:
        raise ArchiveError(f"The path '{shown}' leaves the build's folder ('..'). Pack the folder itself.")
    if not parts:
        raise ArchiveError("The ZIP has an entry without a name. Pack it again.")
    if any(len(part.encode(errors="surrogatepass")) > 255 for part in parts):
        raise ArchiveError(f"The path '{shown}' has a name of over 255 bytes.")
    return PurePosixPath(*parts)


def _link_target(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    # Never ZipFile.read: it inflates all that the member holds, however little it declares.
    with opened.open(info) as source:
        target = source.read(_MAX_LINK_BYTES + 1)
    if info.file_size > _MAX_LINK_BYTES or len(target) > _MAX_LINK_BYTES:
        raise ArchiveError(f"The link '{info.filename}' is longer than {_MAX_LINK_BYTES} bytes.")
    if not target or b"\0" in target:
        raise ArchiveError(f"The link '{info.filename}' points nowhere. Pack the file itself.")
    return os.fsdecode(target)


def _check_links(entries: list[Entry]) -> None:
    """Follow each link through the others: two that are harmless by themselves may leave the folder together."""
    links = {entry.path.parts: entry.target for entry in entries if entry.kind == "link"}
    if len(links) > _MAX_LINKS:
        raise ArchiveError(f"The ZIP holds {len(links)} links; at most {_MAX_LINKS} are taken.")
    for path, target in links.items():
        if not _stays_inside(path[:-1], target, links):
            name = "/".join(path)
            raise ArchiveError(f"The link '{name}' points outside the build's folder or in a circle. Pack the file.")


def _stays_inside(folder: tuple[str, ...], target: str, links: dict[tuple[str, ...], str]) -> bool:
    place, hops = list(folder), 0
    ahead = list(reversed(PurePosixPath(target).parts))
    while ahead:
        part = ahead.pop()
        if part.startswith("/") or (part == ".." and not place):
            return False
        if part == "..":
            place.pop()
            continue
        inner = links.get((*place, part))
        if inner is None:
            place.append(part)
            continue
        hops += 1
        if hops > _MAX_LINK_HOPS:
            return False
        ahead.extend(reversed(PurePosixPath(inner).parts))
    return True


def _check_overlap(infos: list[zipfile.ZipInfo]) -> None:
    """Members that share packed bytes are how a small bomb claims much; honest archives have none."""
    end = -1
    for info in sorted(infos, key=lambda i: i.header_offset):
        if info.header_offset < end:
            raise ArchiveError("Entries of the ZIP overlap, as only a ZIP bomb's do. Pack it again.")
        end = info.header_offset + 30 + info.compress_size


def _check_names(entries: list[Entry]) -> None:
    kinds: dict[PurePosixPath, str] = {}
    for entry in entries:
        known = kinds.get(entry.path)
        if known is not None and not (known == entry.kind == "folder"):
            raise ArchiveError(f"'{entry.path}' is in the ZIP twice. Pack it again.")
        kinds[entry.path] = entry.kind
    for entry in entries:
        for parent in entry.path.parents:
            if kinds.get(parent, "folder") != "folder":
                raise ArchiveError(f"'{entry.path}' lies inside '{parent}', which is not a folder. Pack it again.")


def _unpack_all(opened: zipfile.ZipFile, entries: list[Entry], folder: Path, packed: int) -> Manifest:
    mended: list[str] = []
    total = files = 0
    for entry in entries:
        target = folder / entry.path
        if entry.kind == "folder":
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if entry.kind == "link":
            os.symlink(entry.target, target)
            continue
        files += 1
        total += entry.info.file_size
        if _write_file(opened, entry, target):
            mended.append(str(entry.path))
    for place, _, _ in os.walk(folder):
        os.chmod(place, 0o755)  # whatever the umask: games run as another user
    guessed = tuple(str(entry.path) for entry in entries if entry.guessed)
    return Manifest(files, packed, total, tuple(mended), guessed)


def _write_file(opened: zipfile.ZipFile, entry: Entry, target: Path) -> bool:
    """Write one member; True if its execute bit was missing and has been mended. zipfile checks the CRC."""
    with opened.open(entry.info) as source, target.open("xb") as sink:
        head = source.read(4)
        sink.write(head)
        while chunk := source.read(_CHUNK):
            sink.write(chunk)
    marked = entry.info.create_system == 3 and bool((entry.info.external_attr >> 16) & 0o111)
    program = head[:2] == b"#!" or head == b"\x7fELF"
    target.chmod(0o555 if marked or program else 0o444)
    return program and not marked
