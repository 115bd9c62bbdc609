"""One request of the API: repeated while that helps, its refusals as errors, its answer as a model."""

import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from httpx_sse import ServerSentEvent, SSEError, aconnect_sse
from pydantic import BaseModel
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, stop_before_delay

from fleet.client.errors import ApiError, Unreachable, error_of
from fleet.client.retry import RetryPolicy, passes, wait_s
from fleet.client.waiting import sleep_async

M = TypeVar("M", bound=BaseModel)
CONNECT_S = 10.0
STREAM_SILENCE_S = 75.0  # the API says something every half minute at least
_READS = frozenset({"GET", "HEAD"})


class AsyncTransport:
    """Speaks for one key of one fleet."""

    def __init__(
        self, url: str, headers: dict[str, str], policy: RetryPolicy, timeout_s: float, http: httpx.AsyncClient
    ) -> None:
        self.url = url
        self.policy = policy
        self.http = http
        self._headers = headers
        self._timeout_s = timeout_s

    def asking_as(self, headers: dict[str, str]) -> Self:
        """The same, with more headers."""
        return type(self)(self.url, self._headers | headers, self.policy, self._timeout_s, self.http)

    async def get(self, model: type[M], path: str, *, within: float = 0.0, **params: Any) -> M:
        """`within`: for so many seconds the API may hold the answer back."""
        return model.model_validate_json((await self.send("GET", path, params=params, within=within)).content)

    async def write(
        self,
        model: type[M],
        method: str,
        path: str,
        *,
        body: Any = None,
        key: str | None = None,
        within: float = 0.0,
        **params: Any,
    ) -> M:
        """`key`: the Idempotency-Key; else a new one, which every repetition carries."""
        answer = await self.send(method, path, params=params, body=body, key=key, within=within)
        return model.model_validate_json(answer.content)

    async def send(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        body: Any = None,
        key: str | None = None,
        within: float = 0.0,
    ) -> httpx.Response:
        """A good answer, or an `ApiError` or `Unreachable`."""
        headers = dict(self._headers)
        if method not in _READS:
            headers["idempotency-key"] = key or str(uuid.uuid4())
        timeout = httpx.Timeout(self._timeout_s + within, connect=CONNECT_S)
        options: dict[str, Any] = {"params": given(params), "headers": headers, "timeout": timeout}
        if body is not None:
            options["json"] = body
        async for attempt in self.repeated():
            with attempt, self.told_plainly():
                return good(await self.http.request(method, f"{self.url}{path}", **options))
        raise AssertionError("tenacity ends with an answer or an error")

    def repeated(self) -> AsyncRetrying:
        """Tries as the policy says, for errors that may pass."""
        return AsyncRetrying(
            sleep=sleep_async,
            stop=stop_after_attempt(self.policy.attempts) | stop_before_delay(self.policy.total_s),
            wait=self._wait,
            retry=retry_if_exception(may_pass),
            reraise=True,
        )

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return wait_s(self.policy, state.attempt_number, random.random(), asked_by(error))

    def told_plainly(self) -> "PlainErrors":
        return PlainErrors(self.url)

    async def stream(
        self, path: str, params: dict[str, Any], position: str | None, over: frozenset[str]
    ) -> AsyncIterator[ServerSentEvent]:
        """Every event of a stream, over all its connections, until one whose name is in `over`.

        After a break it goes on after the last id; it gives up when there was none for as long as the policy says.
        """
        failures, failing_since = 0, 0.0
        while True:
            pause = wait_s(self.policy, failures + 1, random.random(), None)
            try:
                async with self._connected(path, params, position) as events:
                    async for event in events:
                        failures = failures + 1 if event.event == "error" else 0
                        position = event.id or position
                        yield event
                        if event.event in over:
                            return
            except (ApiError, Unreachable) as error:
                failing_since = failing_since if failures else time.monotonic()
                failures += 1
                pause = wait_s(self.policy, failures, random.random(), asked_by(error))
                late = time.monotonic() + pause > failing_since + self.policy.total_s
                if not may_pass(error) or failures >= self.policy.attempts or late:
                    raise
            await sleep_async(pause)

    @asynccontextmanager
    async def _connected(
        self, path: str, params: dict[str, Any], position: str | None
    ) -> AsyncGenerator[AsyncIterator[ServerSentEvent]]:
        headers = self._headers | ({"last-event-id": position} if position else {})
        timeout = httpx.Timeout(STREAM_SILENCE_S, connect=CONNECT_S)
        options: dict[str, Any] = {"params": given(params), "headers": headers, "timeout": timeout}
        with self.told_plainly():
            async with aconnect_sse(self.http, "GET", f"{self.url}{path}", **options) as source:
                if source.response.is_error:
                    await source.response.aread()
                good(source.response)
                yield source.aiter_sse()


class PlainErrors:
    """What httpx says about connections, as `Unreachable`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, (httpx.TransportError, SSEError)):
            reason = str(error) or type(error).__name__
            raise Unreachable(f"{self._url} does not answer ({reason}).") from error


def good(response: httpx.Response) -> httpx.Response:
    """The answer, unless it is a refusal."""
    if response.is_success:
        return response
    raise error_of(response, time.time())


def may_pass(error: BaseException) -> bool:
    if isinstance(error, ApiError):
        return passes(error.status, asked=error.retry_after is not None)
    return isinstance(error, Unreachable)


def asked_by(error: BaseException | None) -> float | None:
    return error.retry_after if isinstance(error, ApiError) else None


def given(params: dict[str, Any] | None) -> dict[str, Any]:
    """Without what is left out."""
    return {name: value for name, value in (params or {}).items() if value is not None}


class AsyncResource:
    """A noun of the API."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._api = transport


def part(text: str) -> str:
    """A part of a path, as it must be written in a URL."""
    return quote(text, safe="")
