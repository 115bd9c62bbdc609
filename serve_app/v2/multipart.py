"""The one file of a multipart body, as it streams in: neither kept in memory nor written twice."""

from collections.abc import AsyncGenerator, AsyncIterator

from fastapi.exceptions import RequestValidationError
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from fleet.errors import BadRequest, PayloadTooLarge

FIELD = b"file"
MOST_BESIDES = 1024 * 1024  # bytes that are not the file's


class FilePart:
    """Make it, `open` it, then read `chunks` to the end."""

    def __init__(self, content_type: str, stream: AsyncIterator[bytes]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise missing_file()
        self._stream = stream
        self._field, self._value = bytearray(), bytearray()
        self._ours = self._found = self._complete = False
        self._ready: list[bytes] = []
        self._seen = self._taken = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_part_data": self._data,
                "on_part_end": self._part_end,
            },
        )

    async def open(self) -> None:
        """Read up to the file, so that a body without one is refused before anything is made for it."""
        while not self._found:
            if not await self._feed():
                raise missing_file()

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The file's bytes, and the rest of the body read; BadRequest if that ends before the file does."""
        more = True
        while more:
            ready, self._ready = self._ready, []
            for chunk in ready:
                yield chunk
            more = await self._feed()
        if not self._complete:
            raise BadRequest("The body breaks off inside the file. Upload it again.", error="Incomplete upload")

    async def _feed(self) -> bool:
        """Take what comes next; False at the end of the body."""
        async for chunk in self._stream:
            self._seen += len(chunk)
            try:
                self._parser.write(chunk)
            except MultipartParseError as error:
                raise BadRequest(f"The body is no multipart/form-data: {error}.", error="Bad multipart body") from error
            if self._seen - self._taken > MOST_BESIDES:
                raise PayloadTooLarge(f"The body holds over {MOST_BESIDES} bytes besides the file.")
            return True
        return False

    def _part_begin(self) -> None:
        self._ours = False

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition" and not self._found:
            _, options = parse_options_header(bytes(self._value))
            self._ours = self._found = options.get(b"name") == FIELD
        self._field.clear()
        self._value.clear()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._ours:
            self._taken += end - start
            self._ready.append(data[start:end])

    def _part_end(self) -> None:
        self._complete = self._complete or self._ours
        self._ours = False


def missing_file() -> RequestValidationError:
    return RequestValidationError([{"loc": ("body", "file"), "msg": "Field required", "type": "missing"}])
