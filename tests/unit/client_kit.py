"""Bad lines between the client and the real API."""

from collections.abc import AsyncIterator

import httpx

from fleet.client import AsyncFleetClient, RetryPolicy
from tests.unit.api_kit import Api

QUICK = RetryPolicy(first_s=0.01, most_s=0.05)


class BadLine(httpx.AsyncBaseTransport):
    """Loses the answers of the first `lost` requests that `only` are; breaks streams after so many chunks."""

    def __init__(
        self, inner: httpx.AsyncBaseTransport, lost: int = 0, only: str = "", break_after: int | None = None
    ) -> None:
        self.inner, self.lost, self.only, self.break_after = inner, lost, only, break_after
        self.seen: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        response = await self.inner.handle_async_request(request)
        if self.lost and self.only in f"{request.method} {request.url.path}":
            self.lost -= 1
            await response.aread()
            await response.aclose()
            raise httpx.ReadError("the line broke")
        if self.break_after is not None and isinstance(response.stream, httpx.AsyncByteStream):
            response.stream = _Breaking(response.stream, self.break_after)
        return response

    async def aclose(self) -> None:
        await self.inner.aclose()


class _Breaking(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, after: int) -> None:
        self.inner, self.after = inner, after

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self.after
        async for chunk in self.inner:
            if not left:
                raise httpx.ReadError("the line broke")
            left -= 1
            yield chunk

    async def aclose(self) -> None:
        await self.inner.aclose()


def client_of(api: Api, line: httpx.AsyncBaseTransport | None = None, retry: RetryPolicy = QUICK) -> AsyncFleetClient:
    """A client of the API in this process."""
    http = httpx.AsyncClient(transport=line or httpx.ASGITransport(api.app))
    return AsyncFleetClient("http://fleet.test", api.project.server_key, retry=retry, http=http)
