"""Many servers through the API: started, awaited, read and stopped with a bounded number of requests at a time."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import aiohttp

LONGEST_S = 110


def quantiles(seconds: Iterable[float]) -> dict[str, float]:
    """p50, p99 and the longest, in milliseconds."""
    ordered = sorted(seconds)
    if not ordered:
        return {"samples": 0}
    at = [ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)], ordered[-1]]
    return {"samples": len(ordered), **{name: round(s * 1000, 2) for name, s in zip(("p50", "p99", "max"), at)}}  # noqa: B905


@dataclass
class Swarm:
    """Servers take turns in the regions."""

    http: aiohttp.ClientSession
    regions: list[str]
    size: str = "micro"

    async def call(self, method: str, path: str, **kwargs: Any) -> Any:
        async with self.http.request(method, f"/api/v3{path}", **kwargs) as answer:
            body = await answer.json()
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: {answer.status} {body}")
            return body

    async def start(self, number: int, wait: bool = False, **fields: Any) -> dict[str, Any]:
        region = self.regions[number % len(self.regions)]
        body = {"name": f"s{number}", "region": region, "compute_size": self.size, **fields}
        params = {"wait_for": "running", "timeout": LONGEST_S} if wait else {}
        return await self.call("POST", "/servers/start", json=body, params=params)

    async def start_many(self, first: int, count: int, at_once: int) -> tuple[list[str], list[float]]:
        """Ids of what was accepted, and the seconds that each answer took."""
        answers = await each(range(first, first + count), self.start, at_once)
        return [server["instance_id"] for server, _ in answers], [seconds for _, seconds in answers]

    async def until_running(self, count: int, timeout_s: float) -> None:
        """Return once at least so many run."""
        end = time.monotonic() + timeout_s
        while (running := (await self.call("GET", "/servers?limit=1"))["total"]) < count:
            if time.monotonic() > end:
                raise RuntimeError(f"{running} of {count} servers run after {timeout_s:.0f} s")
            await asyncio.sleep(0.2)

    async def stop(self, instance_id: str) -> None:
        await self.call("DELETE", f"/servers/{instance_id}")

    async def stop_many(self, ids: Iterable[str], at_once: int) -> list[float]:
        return [seconds for _, seconds in await each(ids, self.stop, at_once)]

    async def seen_stopped(self, instance_id: str) -> tuple[float, dict[str, Any]]:
        """When (epoch seconds) a client that waits for the end hears of it, and what it hears."""
        params = {"wait_for": "stopped", "timeout": LONGEST_S}
        server = await self.call("GET", f"/servers/{instance_id}", params=params)
        if server["status"] != "stopped":
            raise RuntimeError(f"{instance_id} did not stop")
        return time.time(), server

    # Latencies --------------------------------------------------------------------------------------------------

    async def stop_latency(self, ids: list[str]) -> list[float]:
        """From asking for the stop until somebody else who waits has heard of it, one server after another."""
        samples: list[float] = []
        for instance_id in ids:
            waiter = asyncio.create_task(self.seen_stopped(instance_id))
            await asyncio.sleep(0.1)  # it shall wait when the stop comes
            asked = time.time()
            await self.stop(instance_id)
            heard, _ = await waiter
            samples.append(heard - asked)
        return samples

    async def crash_latency(self, first: int, count: int) -> list[float]:
        """From a game's end until somebody who waits has heard of it. The ends are spread over some seconds."""

        async def one(number: int) -> float:
            life = {"SIMULATED_BOOT_S": "0.1", "SIMULATED_END_AFTER_S": f"{2 + random.random() * 4:.3f}"}
            server = await self.start(number, environment_variables=life)
            heard, stopped = await self.seen_stopped(server["instance_id"])
            return heard - datetime.fromisoformat(stopped["stopped_at"]).timestamp()

        return list(await asyncio.gather(*(one(number) for number in range(first, first + count))))

    async def timed(self, count: int, call: Callable[[int], Awaitable[Any]]) -> list[float]:
        """Seconds of each call, one after another."""
        samples: list[float] = []
        for number in range(count):
            began = time.perf_counter()
            await call(number)
            samples.append(time.perf_counter() - began)
        return samples


async def each(items: Iterable[Any], work: Callable[[Any], Awaitable[Any]], at_once: int) -> list[tuple[Any, float]]:
    """(result, seconds) of the work on each, at most `at_once` at a time, in the items' order."""
    queue = list(enumerate(items))[::-1]
    done: list[tuple[Any, float]] = [(None, 0.0)] * len(queue)

    async def worker() -> None:
        while queue:
            index, item = queue.pop()
            began = time.perf_counter()
            done[index] = (await work(item), time.perf_counter() - began)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
    return done


@asynccontextmanager
async def swarm(url: str, key: str, regions: list[str]) -> AsyncIterator[Swarm]:
    connector = aiohttp.TCPConnector(limit=1000)
    timeout = aiohttp.ClientTimeout(total=LONGEST_S + 20)
    async with aiohttp.ClientSession(url, headers={"api-key": key}, connector=connector, timeout=timeout) as http:
        yield Swarm(http, regions)
