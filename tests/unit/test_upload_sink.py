"""What is uploaded is on disk byte for byte, whether or not the file system can write past its cache."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.builds.artefacts import UploadSink
from fleet.errors import PayloadTooLarge

MB = 1 << 20


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on disk, or in memory, where older kernels know no direct writes."""
    if request.param == "disk":
        yield tmp_path
        return
    if not Path("/dev/shm").is_dir():
        pytest.skip("there is no /dev/shm here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.mark.parametrize("size", [1, 4096, 4 * MB, 4 * MB + 1, 9 * MB + 4096, 12 * MB - 1])
async def test_what_came_is_there_when_it_is_finished_and_not_before(folder: Path, size: int) -> None:
    body = os.urandom(size)
    sink = UploadSink(folder / "up.zip", 12 * MB)
    for begin in range(0, size, 300_001):
        await sink.write(body[begin : begin + 300_001])
    assert not (folder / "up.zip").exists()
    assert await sink.finish() == size
    assert (folder / "up.zip").read_bytes() == body
    assert [path.name for path in folder.iterdir()] == ["up.zip"]


async def test_a_broken_or_too_large_upload_leaves_nothing(folder: Path) -> None:
    sink = UploadSink(folder / "up.zip", 3 * MB)
    await sink.write(bytes(3 * MB))
    with pytest.raises(PayloadTooLarge):
        await sink.write(b"1")
    await sink.abort()
    assert list(folder.iterdir()) == []
