"""Many keys that ask at a steady pace, one of them perhaps far too often; a process of its own.

`python -m bench.crowd URL PATH SECONDS PACE NOISE < keys` prints latencies of all keys but the first as JSON. Open
loop:
a request is sent when it is due, whether or not earlier ones have been answered.
"""

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit


class _Line(asyncio.Protocol):
    """One connection; answers come in the order of the requests."""

    def __init__(self) -> None:
        self._sent: list[float] = []
        self._buffer = b""
        self.seconds: list[float] = []
        self.statuses: dict[int, int] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # pyright: ignore[reportAttributeAccessIssue]

    def ask(self, request: bytes) -> None:
        self._sent.append(time.perf_counter())
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            size = end + 4 + int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            if len(self._buffer) < size:
                return
            self._buffer = self._buffer[size:]
            status = int(head[9:12])
            self.statuses[status] = self.statuses.get(status, 0) + 1
            self.seconds.append(time.perf_counter() - self._sent.pop(0))


async def pace(line: _Line, request: bytes, every_s: float, until: float, first: float) -> None:
    due = first
    while due < until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        line.ask(request)
        due += every_s


async def main(url: str, path: str, seconds: float, per_s: float, noise: float, keys: list[str]) -> None:
    at, loop = urlsplit(url), asyncio.get_running_loop()
    lines = [(await loop.create_connection(_Line, at.hostname, at.port))[1] for _ in keys]
    began = time.perf_counter()
    work = []
    for number, (line, key) in enumerate(zip(lines, keys, strict=True)):
        request = f"GET {path} HTTP/1.1\r\nhost: fleet\r\napi-key: {key}\r\n\r\n".encode()
        rate = noise if number == 0 else per_s
        if rate:
            work.append(pace(line, request, 1 / rate, began + seconds, began + number / len(keys) / per_s))
    await asyncio.gather(*work)
    await asyncio.sleep(1.0)
    others = sorted(second for line in lines[1:] for second in line.seconds)
    statuses: dict[int, int] = {}
    for line in lines[1:]:
        for status, count in line.statuses.items():
            statuses[status] = statuses.get(status, 0) + count
    for line in lines:
        line.transport.close()
    figures = {
        "p50_ms": others[len(others) // 2] * 1000,
        "p99_ms": others[int(len(others) * 0.99)] * 1000,
        "answers": len(others),
        "others": statuses,
        "noisy": lines[0].statuses,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    url, path, seconds, per_s, noise = sys.argv[1:]
    asyncio.run(main(url, path, float(seconds), float(per_s), float(noise), sys.stdin.read().split()))
