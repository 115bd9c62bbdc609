"""The name that a ZIP's entry was meant to have. Pure.

The format (APPNOTE.TXT 6.3.10, 4.4.4) knows UTF-8, marked by a flag, and code page 437 without it. Packers do
otherwise: macOS writes UTF-8 without the flag, Windows the code page of its language, Info-ZIP and WinRAR the right
name in an extra field beside it (4.6.9).
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator

_UTF8_FLAG = 0x800
_UNICODE_PATH = 0x7075


def name_of(info: zipfile.ZipInfo) -> tuple[str, bool]:
    """(the name with its `/`, whether it is a guess: nothing says which code page it is of)."""
    if info.flag_bits & _UTF8_FLAG:
        return info.orig_filename, False
    raw = info.orig_filename.encode("cp437")  # as zipfile has read it
    told = _unicode_path(info.extra, raw)
    if told is not None:
        return told, False
    try:
        return raw.decode(), False
    except UnicodeDecodeError:
        return info.orig_filename, True


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """The field's name, if it is about the name that the entry has: tools that rename entries may forget it."""
    for kind, body in _fields(extra):
        if kind == _UNICODE_PATH and len(body) > 5 and body[0] == 1:
            if struct.unpack("<I", body[1:5])[0] != zlib.crc32(raw):
                return None
            try:
                return body[5:].decode()
            except UnicodeDecodeError:
                return None
    return None


def _fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        yield kind, extra[4 : 4 + length]
        extra = extra[4 + length :]
