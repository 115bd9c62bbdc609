"""A load generator for POSTs: keep-alive connections, each request of a list sent once, one under way on each.

A process of its own, so that it does not share an interpreter with what it measures. Reads one JSON object from
standard input: `{"host", "port", "path", "key", "connections", "bodies"}`; prints one with the figures and, for each
answer, status, instance_id and start_kind.
"""

import asyncio
import json
import sys
import time
from typing import Any


class Connection(asyncio.Protocol):
    """Takes the next request as soon as its answer is complete."""

    def __init__(self, requests: list[bytes], answers: list[tuple[float, bytes]], ended: asyncio.Future[None]) -> None:
        self._requests = requests
        self._answers = answers
        self._ended = ended
        self._buffer = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def go_on(self) -> None:
        if not self._requests:
            self._transport.close()
            if not self._ended.done():
                self._ended.set_result(None)
            return
        self._sent = time.perf_counter()
        self._transport.write(self._requests.pop())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or len(self._buffer) < end + 4 + _length(self._buffer[:end].lower()):
            return
        self._answers.append((time.perf_counter() - self._sent, self._buffer))
        self._buffer = b""
        self.go_on()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_exception(error or ConnectionError("closed by the server"))


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    raise RuntimeError("an answer without content-length cannot be measured")


async def load(job: dict[str, Any]) -> dict[str, Any]:
    head = f"POST {job['path']} HTTP/1.1\r\nhost: {job['host']}:{job['port']}\r\napi-key: {job['key']}\r\n"
    head += "content-type: application/json\r\n"
    requests = [
        f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        for body in (json.dumps(body).encode() for body in job["bodies"])
    ]
    answers: list[tuple[float, bytes]] = []
    loop = asyncio.get_running_loop()
    ends: list[asyncio.Future[None]] = []
    connections: list[Connection] = []
    for _ in range(job["connections"]):
        ended: asyncio.Future[None] = loop.create_future()
        ends.append(ended)
        _, protocol = await loop.create_connection(
            lambda e=ended: Connection(requests, answers, e), job["host"], job["port"]
        )
        connections.append(protocol)
    began = time.perf_counter()
    for connection in connections:
        connection.go_on()
    async with asyncio.timeout(300):
        await asyncio.gather(*ends)
    return figures(answers, time.perf_counter() - began)


def figures(answers: list[tuple[float, bytes]], took: float) -> dict[str, Any]:
    samples = sorted(seconds for seconds, _ in answers)
    return {
        "requests": len(answers),
        "seconds": round(took, 3),
        "requests_per_s": round(len(answers) / took, 1),
        "p50_ms": round(samples[len(samples) // 2] * 1000, 3),
        "p99_ms": round(samples[int(len(samples) * 0.99)] * 1000, 3),
        "answers": [_essence(raw) for _, raw in answers],
    }


def _essence(raw: bytes) -> tuple[int, str | None, str | None]:
    head, _, body = raw.partition(b"\r\n\r\n")
    found = json.loads(body)
    return int(head.split(b" ", 2)[1]), found.get("instance_id"), found.get("start_kind")


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(json.load(sys.stdin)))))
