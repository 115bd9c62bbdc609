"""Names in ZIPs of all kinds of packers become what their users saw."""

import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.builds.archive import ArchiveError, unpack
from fleet.builds.executable import find_executable
from fleet.builds.zip_names import name_of
from tests.unit.test_builds_archive import FILE, LIMITS, edit, entry, pack

CYRILLIC = "Карты.pak"
ELF = b"#!/bin/sh\n"


def unicode_path(of: bytes, name: str) -> bytes:
    body = struct.pack("<BI", 1, zlib.crc32(of)) + name.encode()
    return struct.pack("<HH", 0x7075, len(body)) + body


def packed(path: Path, raw: bytes, extra: bytes = b"") -> Path:
    """A ZIP of one file whose name is these bytes, without the flag of UTF-8."""
    stand_in = b"Q" * len(raw)
    info = entry(stand_in.decode())
    info.extra = extra
    return edit(pack(path, (info, b"level")), lambda all: all.__setitem__(slice(None), all.replace(stand_in, raw)))


@pytest.mark.parametrize(
    ("raw", "extra", "name", "guessed"),
    [
        ("Data/Überraschung.pak".encode(), b"", "Data/Überraschung.pak", False),
        (CYRILLIC.encode("cp866"), unicode_path(CYRILLIC.encode("cp866"), CYRILLIC), CYRILLIC, False),
        (CYRILLIC.encode("cp866"), b"", CYRILLIC.encode("cp866").decode("cp437"), True),
        # Of a name that the entry no longer has.
        (b"plain.pak", unicode_path(b"other.pak", CYRILLIC), "plain.pak", False),
        ("ä.pak".encode("cp437"), b"", "ä.pak", True),
    ],
    ids=["macOS", "Unicode Path", "another code page", "renamed", "code page 437"],
)
def test_a_name_is_what_its_packer_meant(tmp_path: Path, raw: bytes, extra: bytes, name: str, guessed: bool) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    manifest = unpack(packed(tmp_path / "a.zip", raw, extra), tree, LIMITS)
    assert (tree / name).read_bytes() == b"level"
    assert manifest.guessed == ((name,) if guessed else ())


def test_a_name_in_the_field_beside_is_as_little_trusted(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.zip", b"fine", unicode_path(b"fine", "../evil"))
    (tmp_path / "tree").mkdir()
    with pytest.raises(ArchiveError, match=r"'\.\.'"):
        unpack(archive, tmp_path / "tree", LIMITS)


@given(st.text(min_size=1), st.binary(max_size=40))
def test_any_field_gives_a_name(name: str, extra: bytes) -> None:
    info = zipfile.ZipInfo()
    info.orig_filename, info.extra = name.encode(errors="replace").decode("cp437"), extra
    assert name_of(info)[0]


@pytest.mark.parametrize("top", ["./", "././"])
def test_the_folder_itself_may_be_an_entry(tmp_path: Path, top: str) -> None:
    archive = pack(tmp_path / "a.zip", (entry(top, 0o040755), b""), (entry("./Server.x86_64"), ELF))
    (tmp_path / "tree").mkdir()
    unpack(archive, tmp_path / "tree", LIMITS)
    assert find_executable(tmp_path / "tree", None) == ("", "Server.x86_64")


@pytest.mark.parametrize("stray", [".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/._Build", "._Build"])
def test_what_file_managers_leave_does_not_hide_the_one_folder(tmp_path: Path, stray: str) -> None:
    (tmp_path / "tree").mkdir()
    unpack(
        pack(tmp_path / "a.zip", (entry("Build/Server.x86_64"), ELF), (entry(stray), b"x")), tmp_path / "tree", LIMITS
    )
    assert find_executable(tmp_path / "tree", None) == ("Build", "Server.x86_64")


def test_truncated_and_damaged_are_told_apart(tmp_path: Path) -> None:
    whole = pack(tmp_path / "a.zip", (entry("f", FILE, zipfile.ZIP_STORED), b"x" * 1000)).read_bytes()
    (tmp_path / "tree").mkdir()
    for content, word in ((whole[:-30], "truncated"), (whole.replace(b"x" * 9, b"y" * 9), "damaged")):
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(ArchiveError, match=word):
            unpack(tmp_path / "a.zip", tmp_path / "tree", LIMITS)


def test_the_explorers_way_of_packing_much_is_named(tmp_path: Path) -> None:
    def deflate64(raw: bytearray) -> None:
        at = raw.rfind(b"PK\x01\x02") + 10
        raw[at : at + 2] = struct.pack("<H", 9)

    (tmp_path / "tree").mkdir()
    with pytest.raises(ArchiveError, match="Explorer does with more than 2 GB"):
        unpack(edit(pack(tmp_path / "a.zip", (entry("f"), b"x")), deflate64), tmp_path / "tree", LIMITS)
