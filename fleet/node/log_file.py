"""One line of a log file on disk: `<1|2> <token> <message>`, stream number first. Written by the shim and the archive.

Messages hold no newline, since a newline is what ended them.
"""

from collections.abc import Iterable, Iterator

from fleet.node.runtime import LogLine


def encode(line: LogLine) -> bytes:
    return f"{2 if line.stream == 'stderr' else 1} {line.token} {line.message}\n".encode("utf-8", "replace")


def decode(rows: Iterable[bytes]) -> Iterator[LogLine]:
    """Lines of complete rows; a row cut off by a crash ends the reading."""
    for row in rows:
        if not row.endswith(b"\n"):
            return
        stream, token, message = row[:-1].decode("utf-8", "replace").split(" ", 2)
        at = token.partition("~")[0]
        yield LogLine(at, message, "stderr" if stream == "2" else "stdout", token)
