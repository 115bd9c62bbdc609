"""Pack a game's folder into a ZIP as the API takes it: paths inside the folder, execute bits kept."""

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fleet.errors import BadRequest

Progress = Callable[[int, int], None]  # bytes that have gone out, of how many
LEFT_OUT = frozenset({".git", ".svn", "__pycache__", ".DS_Store"})
# ZIP knows no dates before this; build tools like to set 1970.
OLDEST = (1980, 1, 1, 0, 0, 0)


def as_archive(source: Path, folder: Path) -> tuple[Path, int]:
    """The ZIP that `source` is, or that is made of it in `folder`; and its size."""
    archive = source
    if source.is_dir():
        archive = folder / "build.zip"
        pack(source, archive)
    return archive, archive.stat().st_size


def pack(folder: Path, archive: Path) -> None:
    """Write the ZIP of all files below `folder`. BadRequest if there are none or a link leads out of it."""
    count = 0
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as out:
        for path in _files(folder):
            if not path.resolve().is_relative_to(folder.resolve()):
                raise BadRequest(f"{path} is a link that leads out of {folder}. Copy the file into the folder.")
            info = zipfile.ZipInfo.from_file(path, path.relative_to(folder).as_posix(), strict_timestamps=False)
            info.date_time = max(info.date_time, OLDEST)
            info.compress_type = zipfile.ZIP_DEFLATED
            with path.open("rb") as source, out.open(info, "w", force_zip64=True) as target:
                while chunk := source.read(1 << 20):
                    target.write(chunk)
            count += 1
    if count == 0:
        raise BadRequest(f"{folder} has no files in it.")


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT)
        yield from (Path(root) / name for name in sorted(names) if name not in LEFT_OUT)
