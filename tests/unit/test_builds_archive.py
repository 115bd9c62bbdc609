"""Hostile, damaged and honest ZIPs: what is refused leaves nothing outside its folder, what is taken arrives exact."""

import contextlib
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.builds.archive import ArchiveError, unpack
from fleet.settings import UploadLimits

LIMITS = UploadLimits()
LINK = 0o120777
FILE = 0o100644
CENTRAL = b"PK\x01\x02"
SIZE_AT = 24  # of the declared size within an entry of the directory


def entry(name: str, mode: int = FILE, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr, info.compress_type = 3, mode << 16, method
    return info


def pack(path: Path, *members: tuple[zipfile.ZipInfo, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in members:
            archive.writestr(info, content)
    return path


def edit(path: Path, change: Callable[[bytearray], None]) -> Path:
    raw = bytearray(path.read_bytes())
    change(raw)
    path.write_bytes(raw)
    return path


def refused(archive: Path, limits: UploadLimits = LIMITS) -> str:
    """The reason; also sees to it that nothing appeared beside the folder."""
    outer = archive.parent / "outer"
    folder = outer / "inner" / "tree"
    folder.mkdir(parents=True)
    with pytest.raises(ArchiveError) as caught:
        unpack(archive, folder, limits)
    assert [p for p in outer.rglob("*") if not p.is_relative_to(folder)] == [outer / "inner"]
    return caught.value.detail


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("../evil", "'..'"),
        ("a/../../evil", "'..'"),
        ("/etc/evil", "absolute"),
        ("C:/evil", "absolute"),
        ("a\\b", "backslash"),
        ("a\nb", "control character"),
        ("a/" * 300 + "b", "longer than"),
        ("n" * 300, "255 bytes"),
        (".", "without a name"),
    ],
)
def test_names_that_could_do_harm_are_refused(tmp_path: Path, name: str, word: str) -> None:
    archive = pack(tmp_path / "a.zip", (entry("fine"), b"x"), (entry("Q" * len(name.encode())), b"evil"))
    # Written over the raw bytes, since the writer tidies names up.
    edit(archive, lambda raw: raw.__setitem__(slice(None), raw.replace(b"Q" * len(name.encode()), name.encode())))
    assert word in refused(archive)


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ([("l", LINK, "/etc/passwd")], "outside"),
        ([("d/l", LINK, "../../x")], "outside"),
        ([("d/l", LINK, ".."), ("e", LINK, "d/l/..")], "outside"),
        ([("a", LINK, "b"), ("b", LINK, "a")], "circle"),
        ([("l", LINK, "x" * 600)], "longer than"),
        ([("l", LINK, "")], "nowhere"),
        ([("l", LINK, "d"), ("l/f", FILE, "x")], "not a folder"),
        ([("f", FILE, "x"), ("f/g", FILE, "x")], "not a folder"),
        ([("f", FILE, "x"), ("./f", FILE, "y")], "twice"),
        ([("dev", 0o020666, "")], "device"),
        ([("pipe", 0o010666, "")], "device"),
    ],
)
def test_links_and_kinds_that_could_do_harm_are_refused(
    tmp_path: Path, members: list[tuple[str, int, str]], word: str
) -> None:
    archive = pack(tmp_path / "a.zip", *[(entry(name, mode), content) for name, mode, content in members])
    assert word in refused(archive)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_cannot_be_unpacked_in_bounded_memory_are_refused(tmp_path: Path, method: int) -> None:
    assert "deflate" in refused(pack(tmp_path / "a.zip", (entry("f", method=method), os.urandom(5000))))


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", (entry("f"), b"x"))
    edit(archive, lambda raw: raw.__setitem__(raw.rfind(CENTRAL) + 8, 1))
    assert "without a password" in refused(archive)


def test_limits_are_checked_before_unpacking(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", *[(entry(f"f{i}"), b"\0" * (5 << 20)) for i in range(5)])
    cases = [({"max_files": 4}, "files"), ({"max_unpacked_mb": 24}, "Unpacked"), ({"max_ratio": 10.0}, "bomb")]
    for values, word in cases:
        folder = tmp_path / word
        folder.mkdir()
        with pytest.raises(ArchiveError, match=word):
            unpack(archive, folder, LIMITS.model_copy(update=values))
        assert list(folder.iterdir()) == []


def test_a_packed_size_over_the_limit_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", (entry("f", method=zipfile.ZIP_STORED), os.urandom(2 << 20)))
    assert "larger than 1 MB" in refused(archive, LIMITS.model_copy(update={"max_packed_mb": 1}))


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", (entry("a"), b"x" * 1000), (entry("b"), b"x" * 1000))

    def point_both_to_the_first(raw: bytearray) -> None:
        at = raw.rfind(CENTRAL)
        raw[at + 42 : at + 46] = bytes(4)

    assert "overlap" in refused(edit(archive, point_both_to_the_first))


def test_a_declared_size_is_the_most_that_is_written(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", (entry("f"), b"x" * 100_000))

    def declare_ten(raw: bytearray) -> None:
        at = raw.rfind(CENTRAL) + SIZE_AT
        raw[at : at + 4] = struct.pack("<I", 10)

    assert "not a whole ZIP" in refused(edit(archive, declare_ten))
    written = [p.stat().st_size for p in tmp_path.rglob("tree/f")]
    assert written
    assert max(written) <= 10


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_archive_or_empty_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    detail = refused(tmp_path / "a.zip")
    assert "not a whole ZIP" in detail or "empty" in detail


def _sample(folder: Path) -> bytes:
    members = [(entry("Server.x86_64", 0o100755), b"\x7fELF" + os.urandom(3000)), (entry("data/map"), b"m" * 9000)]
    members += [(entry("link", LINK), b"data/map"), (entry("stored", method=zipfile.ZIP_STORED), os.urandom(500))]
    return pack(folder / "sample.zip", *members).read_bytes()


with tempfile.TemporaryDirectory() as _folder:
    _SAMPLE = _sample(Path(_folder))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(_SAMPLE) - 1))
def test_a_truncated_archive_is_refused_in_clear_words(length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "a.zip")
        archive.write_bytes(_SAMPLE[:length])
        assert "not a whole ZIP" in refused(archive)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(_SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_bytes_are_refused_or_harmless(damage: list[tuple[int, int]]) -> None:
    raw = bytearray(_SAMPLE)
    for at, value in damage:
        raw[at] = value
    with tempfile.TemporaryDirectory() as name:
        archive, tree = Path(name, "a.zip"), Path(name, "outer", "tree")
        archive.write_bytes(raw)
        tree.mkdir(parents=True)
        with contextlib.suppress(ArchiveError):
            unpack(archive, tree, LIMITS)
        assert sorted(os.listdir(name)) == ["a.zip", "outer"]
        assert os.listdir(Path(name, "outer")) == ["tree"]
        for found in tree.rglob("*"):
            assert found.resolve().is_relative_to(tree.resolve())


_PART = st.sampled_from(["a", "b", "..", ".", "c.so"])
_TARGETS = st.lists(_PART, min_size=1, max_size=4).map("/".join)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "x/a", "x/b", "x/y/a"]), _TARGETS, min_size=1))
def test_links_that_are_taken_stay_inside_as_the_kernel_sees_it(links: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        archive, tree = Path(name, "a.zip"), Path(name, "tree")
        pack(archive, *[(entry(path, LINK), target) for path, target in links.items()])
        tree.mkdir()
        try:
            unpack(archive, tree, LIMITS)
        except ArchiveError:
            return
        for path in links:
            assert (tree / path).resolve().is_relative_to(tree.resolve())


_NAME = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0:", exclude_categories=("Cc", "Cs")), min_size=1)
_HONEST = st.dictionaries(_NAME.filter(lambda n: n not in (".", "..") and len(n.encode()) < 200), st.binary())


@settings(max_examples=30, deadline=None)
@given(_HONEST.filter(bool))
def test_what_is_packed_arrives_exact(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        archive, tree = Path(name, "a.zip"), Path(name, "tree")
        pack(archive, *[(entry(f"dir/{path}"), content) for path, content in files.items()])
        tree.mkdir()
        manifest = unpack(archive, tree, LIMITS)
        assert {p.name: p.read_bytes() for p in (tree / "dir").iterdir()} == files
        assert (manifest.files, manifest.unpacked_bytes) == (len(files), sum(map(len, files.values())))


def test_modes_are_read_only_and_execute_bits_are_kept_or_mended(tmp_path: Path) -> None:
    members = [("kept", 0o100700, b"data"), ("elf", FILE, b"\x7fELF...."), ("script", FILE, b"#!/bin/sh\n")]
    members += [("sub/plain", 0o104666, b"data")]
    archive = pack(tmp_path / "a.zip", *[(entry(name, mode), content) for name, mode, content in members])
    tree = tmp_path / "tree"
    before = os.umask(0o077)
    try:
        tree.mkdir()
        manifest = unpack(archive, tree, LIMITS)
    finally:
        os.umask(before)
    modes = {str(p.relative_to(tree)): p.stat().st_mode & 0o7777 for p in [tree, *tree.rglob("*")]}
    assert modes == {".": 0o755, "sub": 0o755, "kept": 0o555, "elf": 0o555, "script": 0o555, "sub/plain": 0o444}
    assert manifest.mended == ("elf", "script")
