"""The file of a multipart body streams through: whatever its pieces, in constant memory, or it is refused."""

import tracemalloc
from collections.abc import AsyncIterator

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import BadRequest, PayloadTooLarge
from serve_app.v2.multipart import MOST_BESIDES, FilePart
from tests.unit.api_kit import Api

BOUNDARY = "b-0"
TYPE = f'multipart/form-data; boundary="{BOUNDARY}"'


def part(name: str, content: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="x.zip"\r\n'
    return head.encode() + b"Content-Type: application/zip\r\n\r\n" + content + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


async def pieces(whole: bytes, sizes: list[int]) -> AsyncIterator[bytes]:
    at = 0
    for size in [*sizes, len(whole)]:
        yield whole[at : at + size]
        at += size
        if at >= len(whole):
            return


async def taken(whole: bytes, sizes: list[int]) -> bytes:
    file = FilePart(TYPE, pieces(whole, sizes))
    await file.open()
    return b"".join([chunk async for chunk in file.chunks()])


# Much of what looks like a boundary, and is none.
contents = st.lists(st.sampled_from([b"\r\n", b"--", BOUNDARY.encode(), b"\r\n--b-", b"PK\x03\x04", b"\0", b"x"])).map(
    b"".join
)
sizes = st.lists(st.integers(1, 40), max_size=30)


def whole_inside(content: bytes) -> bool:
    return f"\r\n--{BOUNDARY}".encode() not in b"\r\n" + content


@given(contents.filter(whole_inside), sizes, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
async def test_the_file_arrives_as_it_was_however_it_is_cut(
    content: bytes, cuts: list[int], before: bool, after: bool
) -> None:
    other = part("comment", b"not the file")
    whole = body(*([other] * before), part("file", content), *([other] * after))
    assert await taken(whole, cuts) == content


@given(contents.filter(whole_inside), sizes, st.data())
@settings(deadline=None, max_examples=60)
async def test_a_body_that_breaks_off_is_never_taken_for_whole(
    content: bytes, cuts: list[int], data: st.DataObject
) -> None:
    whole = body(part("file", content))
    end = data.draw(st.integers(0, len(whole) - len(f"--{BOUNDARY}--\r\n") - 1))
    with pytest.raises((BadRequest, RequestValidationError)):
        await taken(whole[:end], cuts)


async def test_what_is_no_form_with_a_file_is_refused_before_anything_is_made() -> None:
    for kind in ("", "application/json", "multipart/form-data", "multipart/mixed; boundary=b-0"):
        with pytest.raises(RequestValidationError):
            FilePart(kind, pieces(b"", []))
    for whole in (b"", body(), body(part("files", b"PK"))):
        with pytest.raises((BadRequest, RequestValidationError)):
            await FilePart(TYPE, pieces(whole, [])).open()


async def test_endless_other_parts_are_refused() -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield part("comment", b"")[:-2]
        while True:
            yield b"x" * 65_536

    with pytest.raises(PayloadTooLarge, match=str(MOST_BESIDES)):
        await FilePart(TYPE, endless()).open()


async def test_an_upload_takes_no_more_memory_than_a_few_pieces(api: Api) -> None:
    size = 64 << 20

    async def stream() -> AsyncIterator[bytes]:
        yield part("file", b"")[:-2]
        for _ in range(size // 65_536):
            yield bytes(65_536)
        yield b"\r\n" + body()

    tracemalloc.start()
    try:
        answer = await api.call("POST", "/v2/builds/builds/upload", content=stream(), headers={"content-type": TYPE})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (answer.status_code, answer.json()["file_size"]) == (202, size)
    assert peak < 8 << 20
    stored = api.settings.artefacts / "uploads" / f"{answer.json()['build_id']}.zip"
    assert stored.stat().st_size == size
