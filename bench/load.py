"""A load generator: keep-alive connections, one request under way on each, for a bounded time.

Run as a process of its own, so that it does not share an interpreter with what it measures:
`python bench/load.py HOST PORT PATH KEY CONNECTIONS SECONDS` prints one JSON object.
"""

import asyncio
import json
import sys
import time

MAX_SAMPLES = 1_000_000


class Connection(asyncio.Protocol):
    """Sends the same request again as soon as its answer is complete."""

    def __init__(self, request: bytes, until: float, samples: list[float], ended: asyncio.Future[None]) -> None:
        self._request = request
        self._until = until
        self._samples = samples
        self._ended = ended
        self._buffer = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        if len(self._buffer) < end + 4 + _length(head):
            return
        if not head.startswith(b"http/1.1 200"):
            self._fail(RuntimeError(f"answer: {self._buffer[:300]!r}"))
            return
        self._buffer = b""
        now = time.perf_counter()
        if len(self._samples) < MAX_SAMPLES:
            self._samples.append(now - self._sent)
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None or time.perf_counter() < self._until:
            self._fail(error or ConnectionError("closed by the server"))
        elif not self._ended.done():
            self._ended.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._transport.close()
        if not self._ended.done():
            self._ended.set_exception(error)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    raise RuntimeError("an answer without content-length cannot be measured")


async def load(host: str, port: int, path: str, key: str, connections: int, seconds: float) -> dict[str, float]:
    """Requests per second and latencies in milliseconds."""
    request = f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\napi-key: {key}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    samples: list[float] = []
    began = time.perf_counter()
    ends: list[asyncio.Future[None]] = []
    for _ in range(connections):
        ended = loop.create_future()
        ends.append(ended)
        await loop.create_connection(lambda e=ended: Connection(request, began + seconds, samples, e), host, port)
    async with asyncio.timeout(seconds + 30):
        await asyncio.gather(*ends)
    took = time.perf_counter() - began
    samples.sort()
    return {
        "requests_per_s": round(len(samples) / took, 1),
        "p50_ms": round(samples[len(samples) // 2] * 1000, 3),
        "p99_ms": round(samples[int(len(samples) * 0.99)] * 1000, 3),
        "requests": len(samples),
    }


if __name__ == "__main__":
    host, port, path, key, connections, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(load(host, int(port), path, key, int(connections), float(seconds)))))
