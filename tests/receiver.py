"""A studio's back end that hears of events, on 127.0.0.1."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

WAIT_S = 30


@dataclass
class Receiver:
    """A studio's back end on 127.0.0.1. `answers`: statuses to give, then 204; `hold` blocks it."""

    url: str = ""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    hold: asyncio.Event | None = None
    more: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.got.append((dict(request.headers), body))
        async with self.more:
            self.more.notify_all()
        if self.hold is not None:
            await self.hold.wait()
        status = self.answers.pop(0) if self.answers else 204
        headers = {"location": self.url} if status == 302 else {}
        return web.Response(status=status, headers=headers)

    async def has(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S), self.more:
            await self.more.wait_for(lambda: len(self.got) >= count)

    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.got]


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    found = Receiver()
    app = web.Application()
    app.router.add_post("/hook", found.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield found
    finally:
        if found.hold is not None:
            found.hold.set()
        await runner.cleanup()
