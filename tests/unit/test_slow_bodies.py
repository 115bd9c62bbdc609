"""A body that comes by drips: ended at the door once it has had its time."""

from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message

from serve_app import edge
from serve_app.edge import BODY_S, MAX_BODY, UPLOAD_RATE, _paced


class Drips:
    """A client that sends `size` bytes every `every_s` seconds of a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int, every_s: float, parts: int) -> None:
        self.now, self._size, self._every_s, self._left = 1000.0, size, every_s, parts
        monkeypatch.setattr(edge.time, "monotonic", lambda: self.now)

    async def receive(self) -> Message:
        self.now += self._every_s
        self._left -= 1
        return {"type": "http.request", "body": b"x" * self._size, "more_body": self._left > 0}


async def read(receive: Any) -> int:
    got = 0
    while True:
        message = await receive()
        got += len(message["body"])
        if not message["more_body"]:
            return got


async def test_a_small_body_has_its_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    drips = Drips(monkeypatch, 10, 5, 1000)
    with pytest.raises(HTTPException) as ended:
        await read(_paced(drips.receive, MAX_BODY, None))
    assert ended.value.status_code == 408
    assert drips.now - 1000 <= BODY_S + 5
    assert await read(_paced(Drips(monkeypatch, 10, 5, 11).receive, MAX_BODY, None)) == 110


async def test_an_upload_goes_on_as_long_as_it_makes_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    steady = Drips(monkeypatch, UPLOAD_RATE * 10, 9, 1000)
    assert await read(_paced(steady.receive, None, UPLOAD_RATE)) == UPLOAD_RATE * 10_000
    drips = Drips(monkeypatch, 1, 10, 10_000)
    with pytest.raises(HTTPException) as ended:
        await read(_paced(drips.receive, None, UPLOAD_RATE))
    assert ended.value.status_code == 408
    assert drips.now - 1000 <= BODY_S + 11


async def test_what_a_request_waits_for_after_its_body_has_no_such_end(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Drips(monkeypatch, 0, 1, 1)
    receive = _paced(client.receive, MAX_BODY, None)
    await receive()
    client.now += 10 * BODY_S
    assert await receive()


async def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HTTPException) as ended:
        await read(_paced(Drips(monkeypatch, 65536, 0, 100).receive, MAX_BODY, None))
    assert ended.value.status_code == 413
