"""The least that can carry an update to another client by SSE: one uvicorn, no framework, no database.

`POST /NAME` sends its body to whoever has `GET /NAME` open. Prints its URL once it listens: `python -m bench.sse_echo`.
"""

import asyncio
import socket

import uvicorn
from starlette.types import Receive, Scope, Send

_JSON = [(b"content-type", b"application/json"), (b"content-length", b"2")]
_EVENTS = [(b"content-type", b"text/event-stream")]
streams: dict[str, asyncio.Queue[bytes]] = {}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    name = scope["path"]
    if scope["method"] == "POST":
        body = (await receive())["body"]
        streams[name].put_nowait(body)
        await send({"type": "http.response.start", "status": 200, "headers": _JSON})
        await send({"type": "http.response.body", "body": b"{}"})
        return
    queue = streams[name] = asyncio.Queue()
    await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
    queue.put_nowait(b"{}")
    while True:
        data = await queue.get()
        await send({"type": "http.response.body", "body": b"event: u\ndata: " + data + b"\n\n", "more_body": True})


class _Server(uvicorn.Server):
    said = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.said, flush=True)


async def main() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        config = uvicorn.Config(
            app, log_level="critical", lifespan="off", access_log=False, timeout_graceful_shutdown=1
        )
        server = _Server(config)
        server.said = f"http://127.0.0.1:{listener.getsockname()[1]}"
        await server.serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(main())
