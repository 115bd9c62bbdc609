"""Hostile ZIPs under a memory limit that the kernel enforces: refused, whatever they declare."""

import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.test_builds_archive import CENTRAL, LINK, SIZE_AT, edit, entry, pack


def _lying_link(path: Path) -> None:
    """A link of ten declared bytes that inflates to 400 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(400)) + packer.flush()
    pack(path, (entry("l", LINK, zipfile.ZIP_STORED), packed))

    def call_it_deflated(raw: bytearray) -> None:
        at = raw.rfind(CENTRAL)
        raw[8:10] = raw[at + 10 : at + 12] = struct.pack("<H", zipfile.ZIP_DEFLATED)
        raw[at + SIZE_AT : at + SIZE_AT + 4] = struct.pack("<I", 10)

    edit(path, call_it_deflated)


def _huge_directory(path: Path) -> None:
    """400 MB of directory in 7,000 entries."""
    record = CENTRAL + bytes(24) + struct.pack("<HHH", 8, 60000, 0) + bytes(12) + b"nameless"
    record += b"\x99\x99" + struct.pack("<H", 59996) + bytes(59996)
    with path.open("wb") as file:
        for _ in range(7000):
            file.write(record)
        file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 7000, 7000, 7000 * len(record), 0, 0))


def _many_entries(path: Path) -> None:
    """1.2 million entries without names."""
    count = 1_200_000
    with path.open("wb") as file:
        file.write((CENTRAL + bytes(42)) * count)
        file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, 46 * count, 0, 0))


@pytest.mark.parametrize("craft", [_lying_link, _huge_directory, _many_entries])
def test_no_archive_takes_much_memory(tmp_path: Path, craft: Callable[[Path], None]) -> None:
    craft(tmp_path / "a.zip")
    (tmp_path / "tree").mkdir()
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from fleet.builds.archive import ArchiveError, unpack; from fleet.settings import UploadLimits\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (192 << 20),) * 2)\n"
        "try: unpack(Path(sys.argv[1]), Path(sys.argv[2]), UploadLimits())\n"
        "except ArchiveError as error: print('refused:', error.detail)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "a.zip"), str(tmp_path / "tree")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("refused:"), done.stderr[-500:]
